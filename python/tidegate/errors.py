"""The errors of Tidegate: one tree under `Error`; budget errors are `MemoryError` as well."""

__all__ = [
    "BudgetError",
    "ConfigError",
    "DataError",
    "Error",
    "HeldError",
    "InternalError",
    "SampleError",
    "StalledError",
    "StateError",
]


class Error(Exception):
    """The base of all errors of Tidegate."""


class BudgetError(Error, MemoryError):
    """The budget cannot hold what was asked; the message has both figures and the fix."""


class HeldError(BudgetError):
    """Every batch slot is held by the consumer, so no batch can be made."""


class ConfigError(Error, ValueError):
    """Options that make no sense, by name."""


class StateError(Error, ValueError):
    """A state that does not belong to this loader."""


class DataError(Error, OSError):
    """Data that are missing, truncated or damaged, with file and offset."""


class SampleError(DataError):
    """One sample that could not be made; `id`, `shard`, `offset` and `key` say which."""

    def __init__(self, message: str, id: int = -1, shard: str = "", offset: int = 0, key: str = "") -> None:
        super().__init__(message)
        self.id, self.shard, self.offset, self.key = id, shard, offset, key


class StalledError(Error, TimeoutError):
    """Nothing moved for too long; the message says who waits for what."""


class InternalError(Error, RuntimeError):
    """A defect of Tidegate: please report it."""
