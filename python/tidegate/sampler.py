"""What `Loader(sampler=...)` accepts: an array of ids, a function of the epoch, or an iterable.

Flow: the user's sampler -> `prepared` -> an array or a function for `_tidegate.Loader`.
Memory: the ids of an epoch, 8 bytes each.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tidegate._tidegate import Drawn
from tidegate.errors import ConfigError
from tidegate.options import as_array

__all__ = ["Sampler", "SizedIterable"]


class SizedIterable(Protocol):
    """An iterable of ids with a length, such as torch's samplers."""

    def __iter__(self) -> Iterator[int]:
        """Begin an epoch."""
        ...

    def __len__(self) -> int:
        """Return the number of ids in an epoch."""
        ...


Sampler: TypeAlias = Drawn | npt.ArrayLike | Sequence[int] | Callable[[int], npt.ArrayLike] | SizedIterable


def prepared(sampler: Any, samples: int, raised: list[BaseException]) -> Any:
    """Return the ids as an array, or (function of the epoch, length, whether it returns arrays).

    Exceptions of the user's code on a thread of the loader are appended to `raised`.
    """
    if isinstance(sampler, Drawn):
        return sampler
    if isinstance(sampler, np.ndarray | list | tuple | range) or hasattr(sampler, "__array__"):
        return _array(sampler, samples, "the sampler")
    if hasattr(sampler, "num_replicas"):
        raise ConfigError(
            f"{type(sampler).__name__} divides ids among ranks, which the loader does itself: give a sampler of all "
            "ids, or shuffle=True"
        )
    if hasattr(sampler, "__iter__"):
        try:
            length = len(sampler)
        except TypeError:
            raise ConfigError(
                f"sampler={sampler!r} has no length: give an array, or an object with __iter__ and with __len__, the "
                "number of ids in an epoch"
            ) from None
        return lambda epoch: _begin(sampler, epoch, raised), length, False
    if callable(sampler):
        first = [_array(sampler(0), samples, "the sampler's epoch 0")]

        def listed(epoch: int) -> npt.NDArray[np.uint64]:
            if epoch == 0 and first:
                return first.pop()
            with _noting(raised):
                return _array(sampler(epoch), samples, f"the sampler's epoch {epoch}")

        return listed, len(first[0]), True
    raise ConfigError(f"sampler={sampler!r}: give an array of ids, a function of the epoch, or an iterable of ids")


def _array(given: Any, samples: int, what: str) -> npt.NDArray[np.uint64]:
    ids = as_array(what, given, what="one row of integers")
    if ids.ndim != 1 or (ids.dtype.kind not in "iu" and ids.size):
        fix = "; np.flatnonzero makes ids of a mask" if ids.dtype == bool else ""
        raise ConfigError(f"{what} must be one row of integers, not {ids.dtype} of shape {ids.shape}{fix}")
    wrong = np.flatnonzero((ids < 0) | (ids >= samples))
    if wrong.size:
        raise ConfigError(f"{what} gives id {ids[wrong[0]]} at position {wrong[0]}, but there are {samples} samples")
    return np.ascontiguousarray(ids, np.uint64)


def _begin(sampler: Iterable[Any], epoch: int, raised: list[BaseException]) -> Iterator[int]:
    with _noting(raised):
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        for given in sampler:
            yield _id(given)


def _id(given: Any) -> int:
    try:
        number = operator.index(given)
    except TypeError:
        number = -1
    if number < 0:
        raise ConfigError(f"{given!r} is no id: a sampler gives single ids, and the loader makes batches of them")
    return number


@contextlib.contextmanager
def _noting(raised: list[BaseException]) -> Iterator[None]:
    try:
        yield
    except GeneratorExit:
        raise
    except BaseException as error:
        raised.append(error)
        raise
