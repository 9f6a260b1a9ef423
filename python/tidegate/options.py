"""Checks of options: each error names the option, the value, what is allowed and what is nearest.

Flow: what a user gave -> a plain int, float, bool or str, or ConfigError.
Memory: holds none.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Set, ValuesView
from typing import Any, ParamSpec, TypeGuard

import numpy as np

from tidegate.errors import ConfigError

__all__ = [
    "as_array",
    "as_path",
    "choice",
    "dtype_name",
    "dtype_of",
    "flag",
    "function",
    "integer",
    "integers",
    "is_row",
    "known_options",
    "listed",
    "nearest",
    "number",
    "numbers",
    "refused",
    "text",
]

# The most threads that an option may ask for.
MOST_THREADS = 4096

# Options of torch's DataLoader that this loader does not have, and what to use.
OF_TORCH = {
    "num_workers": "decoding runs on threads: workers=N says how many; processes=N is for Python transforms",
    "pin_memory": "a batch is writable memory of your own: copy it with batch[name].pin_memory() or .to(device)",
    "collate_fn": "batches are made as they are decoded; change a batch with batch_transform=",
    "persistent_workers": "worker processes live as long as the loader: leave it out",
    "prefetch_factor": "give prefetch=N, the batches that are made ahead",
    "batch_sampler": "give sampler= for the order of samples, and batch_size=",
    "worker_init_fn": "transforms get a generator `rng`, and in worker processes the global ones are seeded",
    "generator": "give seed=",
    "timeout": "give stall_seconds=",
    "dataset": "the first argument is the source: a path, a pattern, a URL or tg.open(...)",
}


def refused(name: str, given: Any, expected: str) -> ConfigError:
    """Return the error for the value of an option."""
    shown = repr(given)
    if len(shown) > 80:
        shown = f"{shown[:77]}..."
    return ConfigError(f"{name}={shown}: expected {expected}")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint at the known word that is most like this one; nothing if none is."""
    words = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), list(words), 1)
    return f"; did you mean {words[found[0]]!r}?" if found else ""


def integer(name: str, given: Any, least: int, most: int = 2**63 - 1) -> int:
    """Return an int from `least` to `most`; NumPy and torch integers are taken too.

    >>> import numpy as np
    >>> integer("batch_size", np.int64(8), 1)
    8
    """
    limits = f"an int of at least {least}" if most >= 2**63 - 1 else f"an int from {least} to {most}"
    if isinstance(given, bool):
        raise refused(name, given, limits)
    try:
        value = operator.index(given)
    except TypeError:
        raise refused(name, given, f"{limits}{_as_integer(name, given)}") from None
    if not least <= value <= most:
        raise refused(name, value, limits)
    return value


def _as_integer(name: str, given: Any) -> str:
    try:
        value = float(given)
    except (TypeError, ValueError):
        return ""
    return f", such as {name}={int(value)}" if value.is_integer() else ""


def number(name: str, given: Any, low: float, high: float = math.inf) -> float:
    """Return a finite float from `low` to `high`; NumPy and torch numbers are taken too."""
    limits = f"a number of at least {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
    if isinstance(given, bool | str | bytes) or not hasattr(given, "__float__"):
        raise refused(name, given, limits)
    try:
        value = float(given)
    except (TypeError, ValueError, RuntimeError):
        raise refused(name, given, limits) from None
    if not (low <= value <= high and math.isfinite(value)):
        raise refused(name, given, limits)
    return value


def numbers(name: str, given: Any, count: int, what: str) -> list[float]:
    """Return `count` finite floats of a sequence, an array or a tensor."""
    expected = f"{count} numbers, {what}"
    if isinstance(given, str | bytes) or not hasattr(given, "__len__"):
        raise refused(name, given, expected)
    try:
        values = [float(value) for value in given]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise refused(name, given, expected) from None
    if len(values) != count or not all(math.isfinite(value) for value in values):
        raise refused(name, given, expected)
    return values


def integers(name: str, given: Any, least: int, what: str = "ints") -> list[int]:
    """Return the ints of a sequence, an array or a tensor, each at least `least`.

    >>> integers("shape", (3, 4), 1)
    [3, 4]
    """
    values = listed(given)
    if isinstance(values, str | bytes) or not is_row(values):
        raise refused(name, given, f"a sequence of {what}")
    return [integer(f"{name}[{i}]", value, least) for i, value in enumerate(values)]


def listed(given: Any) -> Any:
    """Return the list of a set or of a generator; anything else as it is."""
    return list(given) if isinstance(given, Set | Iterator | ValuesView) else given


def as_array(name: str, given: Any, dtype: Any = None, what: str = "an array of numbers") -> np.ndarray:
    """Return the array of a value, of a dtype if one is given; tensors are taken too.

    >>> as_array("weights", [1, 2], np.float32).tolist()
    [1.0, 2.0]
    """
    try:
        found = np.asarray(given)
        if found.dtype.kind not in "USmM" or dtype is None:
            return found if dtype is None else np.ascontiguousarray(found, dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise refused(name, given, what)


def as_path(name: str, given: Any) -> str:
    """Return a path as text."""
    if not isinstance(given, str | os.PathLike):
        raise refused(name, given, "a path")
    return text(name, os.fsdecode(os.fspath(given)), "a path in UTF-8")


def text(name: str, given: Any, what: str = "text") -> str:
    """Return a str that UTF-8 can hold."""
    if not isinstance(given, str) or any("\ud800" <= letter <= "\udfff" for letter in given):
        raise refused(name, given, what)
    return given


def is_row(given: Any) -> TypeGuard[Sequence[Any]]:
    """Return whether a value has several parts: a sequence, an array or a tensor with an axis."""
    axes = getattr(given, "ndim", 0)
    return isinstance(given, Sequence) or (isinstance(axes, int) and axes > 0)


def flag(name: str, given: Any) -> bool:
    """Return a bool; NumPy's is taken too."""
    if isinstance(given, bool) or type(given).__name__ in ("bool", "bool_"):
        return bool(given)
    raise refused(name, given, "True or False")


def choice(name: str, given: Any, allowed: Sequence[str]) -> str:
    """Return one of the words that are allowed.

    >>> choice("remainder", "pad", ("drop", "pad", "uneven"))
    'pad'
    """
    if isinstance(given, str) and given in allowed:
        return given
    words = [repr(word) for word in allowed]
    listed = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    hint = nearest(given, allowed) if isinstance(given, str) else ""
    raise refused(name, given, f"{listed}{hint}")


def dtype_name(name: str, given: Any, allowed: Sequence[str]) -> str:
    """Return the name of a dtype: given as a name, a NumPy dtype or type, or a torch dtype.

    >>> import numpy as np
    >>> dtype_name("dtype", np.float32, ("uint8", "float32"))
    'float32'
    """
    if isinstance(given, str):
        word = given
    elif isinstance(given, type):
        word = given.__name__
    else:
        word = str(getattr(given, "name", given)).removeprefix("torch.")
    return choice(name, word, allowed)


def dtype_of(name: str, given: Any) -> np.dtype[Any]:
    """Return the dtype that NumPy makes of a value."""
    try:
        dtype: np.dtype[Any] = np.dtype(given)
    except (TypeError, ValueError):
        raise refused(name, given, 'a dtype, such as "float32"') from None
    return dtype


def function(name: str, given: Any) -> None:
    """Check that an option is a function, or None."""
    if given is not None and not callable(given):
        raise refused(name, given, "a function")


P = ParamSpec("P")


def known_options(init: Callable[P, None]) -> Callable[P, None]:
    """Make a constructor raise ConfigError for keywords that it does not have.

    The message says what to use instead of an option of torch's DataLoader.
    """
    known = tuple(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked(*args: P.args, **options: P.kwargs) -> None:
        for name in options:
            if name in known:
                continue
            if name in OF_TORCH:
                raise ConfigError(f"there is no option {name!r}, which torch's DataLoader has: {OF_TORCH[name]}")
            raise ConfigError(f"there is no option {name!r}{nearest(name, known)}")
        init(*args, **options)

    return checked
