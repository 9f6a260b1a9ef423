"""The exceptions of Tidegate, one tree under `Error`, and its warning.

Flow: `python/src/errors.rs` picks the class by the variant of the Rust error; `warn` blames the
line of the user's that led to a warning.
Memory: holds none.
"""

import sys
import warnings

__all__ = [
    "BudgetError",
    "ConfigError",
    "DataError",
    "DataWarning",
    "Error",
    "HeldError",
    "InternalError",
    "PatchTooLargeError",
    "SampleError",
    "SamplerError",
    "StalledError",
    "StateError",
    "warn",
]


class Error(Exception):
    """The base class of all exceptions of Tidegate."""


class BudgetError(Error, MemoryError):
    """The budget is too small for the request.

    The message states the bytes asked for, the cap, and the option to change.
    """


class HeldError(BudgetError):
    """The consumer holds every batch slot, so the loader cannot make another batch."""


class ConfigError(Error, ValueError):
    """An option or an argument is not valid; the message names it and shows a valid one."""


class SamplerError(ConfigError):
    """The function or iterable given as `sampler=` raised; `__cause__` is what it raised."""


class PatchTooLargeError(ConfigError):
    """A patch has more voxels along an axis than its array."""


class StateError(Error, ValueError):
    """A saved state belongs to another dataset, another order, or a newer version."""


class DataError(Error, OSError):
    """Data are missing, cut short or damaged; the message names the file and the offset."""


class SampleError(DataError):
    """One sample cannot be read or decoded.

    Attributes:
        id: the sample's id, an int; -1 if unknown.
        shard: the file or object that holds it.
        offset: where it begins there, in bytes.
        key: its name.
    """

    def __init__(self, message: str, id: int = -1, shard: str = "", offset: int = 0, key: str = "") -> None:
        super().__init__(message)
        self.id, self.shard, self.offset, self.key = id, shard, offset, key


class DataWarning(UserWarning):
    """Data or transforms are used in another way than they may seem to be.

    `warnings.simplefilter("error", tidegate.DataWarning)` makes it an error.
    """


class StalledError(Error, TimeoutError):
    """Nothing moved for `stall_seconds`; the message says which stage waits for what."""


class InternalError(Error, RuntimeError):
    """Tidegate has a bug: please report the message."""


def warn(said: str, category: type[Warning] = DataWarning) -> None:
    """Warn about the line outside of this package that led here."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "tidegate":
        level, frame = level + 1, frame.f_back
    warnings.warn(said, category, stacklevel=level)
