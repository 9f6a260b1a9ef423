"""`stacked`: what a user's function returned for each row of a batch, as columns.

Flow: {name: value} of each row -> arrays of the budget; `Ragged` where lengths differ; lists of
values that are no numbers.
Memory: arrays are charged to the account `user`. While rows of several lengths are collected, they
are outside of the budget.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tidegate.batch import Ragged
from tidegate.errors import ConfigError

__all__ = ["Empty", "Shape", "stacked"]

# A requested array: its shape and the name of its dtype.
Shape = tuple[Sequence[int], str]
Empty = Callable[[list[Shape]], list[np.ndarray]]


class _Numbers:
    """A column of numbers: one array while all rows have one shape, then a list of rows."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array
        self.parts: list[np.ndarray] | None = None

    def put(self, row: int, value: Any) -> None:
        array, dtype = np.asarray(value), self.array.dtype
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise ConfigError(
                f"transform returned {self.name!r} of {array.dtype.name} where the first sample has {dtype.name}: "
                "return one dtype for all samples"
            )
        if self.parts is None and array.shape != self.array.shape[1:]:
            if array.ndim != self.array.ndim - 1 or not array.ndim:
                raise ConfigError(
                    f"transform returned {self.name!r} of shape {array.shape} where the first sample has "
                    f"{self.array.shape[1:]}: return as many axes for all samples"
                )
            self.parts = [self.array[i].copy() for i in range(row)]
        if self.parts is None:
            self.array[row] = array
        else:
            self.parts.append(array.astype(dtype))

    def finished(self, empty: Empty) -> Any:
        if self.parts is None:
            return self.array
        offsets = np.cumsum([0, *(part.size for part in self.parts)], dtype=np.int64)
        dtype = self.array.dtype.name
        # The array of one shape makes room first.
        del self.array
        (values,) = empty([((int(offsets[-1]),), dtype)])
        for part, start in zip(self.parts, offsets[:-1], strict=True):
            values[start : start + part.size] = part.reshape(-1)
        return Ragged(values, offsets, [list(part.shape) for part in self.parts], False)


class _Values(list[Any]):
    """A column of values that are no numbers: text, bytes, objects."""

    def put(self, row: int, value: Any) -> None:
        self[row] = value

    def finished(self, empty: Empty) -> Any:
        return list(self)


def stacked(results: Iterable[Any], rows: int, empty: Empty) -> dict[str, Any]:
    """Return columns of what a function returned for each row, called as it is iterated.

    Raises ConfigError for results that are no dicts, and for rows that differ in their fields,
    dtypes or numbers of axes.
    """
    columns: dict[str, _Numbers | _Values] | None = None
    for row, result in enumerate(results):
        if not isinstance(result, Mapping):
            raise ConfigError(
                f"transform returned {type(result).__name__}: expected a dict of values, such as the sample that it "
                "was given"
            )
        values = {name: _plain(name, value) for name, value in result.items()}
        if columns is None:
            columns = _columns(values, rows, empty)
        if values.keys() != columns.keys():
            odd = sorted(str(name) for name in values.keys() ^ columns.keys())
            raise ConfigError(
                f"transform returned the fields {', '.join(map(str, values))}, and others for the first sample of the "
                f"batch (they differ in {', '.join(odd)}): return the same fields for all samples"
            )
        for name, value in values.items():
            columns[name].put(row, value)
    return {name: column.finished(empty) for name, column in (columns or {}).items()}


def _columns(first: dict[str, Any], rows: int, empty: Empty) -> dict[str, _Numbers | _Values]:
    numbers = {n: np.asarray(v) for n, v in first.items() if isinstance(v, np.ndarray | np.generic | int | float)}
    arrays = empty([((rows, *array.shape), array.dtype.name) for array in numbers.values()])
    made = {name: _Numbers(name, array) for name, array in zip(numbers, arrays, strict=True)}
    return {name: made[name] if name in made else _Values([None] * rows) for name in first}


def _plain(name: str, value: Any) -> Any:
    """Return a tensor as the array over its memory, and anything else as it is."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return value
    from tidegate.torch import array_of

    array = array_of(value)
    if array is None:
        raise ConfigError(f"transform returned {name!r} as {value.layout} on {value.device}: return dense CPU tensors")
    return array
