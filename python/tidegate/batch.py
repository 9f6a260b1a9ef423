"""What a loader delivers: `Batch`, a dict of arrays, and `Ragged`, a column of rows of many lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["Batch", "Ragged"]


class Ragged:
    """Rows of many lengths in one array: row i is `values[offsets[i]:offsets[i + 1]]`.

    >>> import numpy as np
    >>> column = Ragged(np.frombuffer(b"onetwo", np.uint8), np.array([0, 3, 6]), [], True)
    >>> list(column)
    ['one', 'two']
    """

    __slots__ = ("offsets", "shapes", "text", "values")

    def __init__(self, values: Any, offsets: Any, shapes: list[list[int]], text: bool) -> None:
        self.values, self.offsets, self.shapes, self.text = values, offsets, shapes, text

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Any:
        """Return row `row`: str for text, an array of the row's shape for images and arrays, else bytes."""
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        part = self.values[self.offsets[row] : self.offsets[row + 1]]
        if self.shapes:
            return part.reshape(self.shapes[row])
        return bytes(part).decode() if self.text else bytes(part)

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        return f"Ragged({len(self)} rows, {len(self.values)} {self.values.dtype})"


class Batch(dict[str, Any]):
    """One batch: {field: array}, writable, yours alone, without a copy.

    `ids` are the samples' ids; of a subset those of the whole dataset. `indices` are places in the loader's own source,
    which samplers, labels and feedback speak of. `mask` is False
    for rows that only pad the batch. `weights` are 1, but where an order draws by importance, and 0 for padding: losses
    times weights have the mean of all samples.

    The memory goes back to the loader when the last array of the batch is gone; batches that you keep stay charged to
    the budget.
    """

    __slots__ = ("epoch", "ids", "index", "indices", "mask", "positions", "rows", "weights")

    ids: np.ndarray[Any, np.dtype[np.int64]]
    indices: np.ndarray[Any, np.dtype[np.int64]]
    mask: np.ndarray[Any, np.dtype[np.bool_]]
    positions: np.ndarray[Any, np.dtype[np.int64]]
    weights: np.ndarray[Any, np.dtype[np.float32]]
    rows: int
    epoch: int
    index: int


def present(raw: tuple[Any, ...], extra: bool) -> Batch:
    """Make a `Batch` of what the Rust side delivers."""
    columns, rows, ids, mask, epoch, index, positions, weights, indices = raw
    batch = Batch(columns)
    for name, column in columns.items():
        if isinstance(column, tuple):
            batch[name] = Ragged(*column)
    batch.rows, batch.ids, batch.indices, batch.mask = rows, ids, indices, mask
    batch.epoch, batch.index, batch.positions, batch.weights = epoch, index, positions, weights
    if extra:
        batch["ids"] = ids
    return batch
