"""What a loader returns: `Batch`, a dict of arrays, and `Ragged`, a column of rows of any length.

Flow: the tuple that `_tidegate.Epoch.next` returns -> `present` -> `Batch`.
Memory: arrays are views of the batch's slot, charged to the account `batch`; the slot returns to
the loader when the last view is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tidegate.deprecation import renamed

__all__ = ["Batch", "Ragged"]


class Ragged:
    """Rows of any length in one array: row i is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: the elements of all rows, one axis.
        offsets: int64 of shape (rows + 1,): where each row begins in `values`.
        shapes: the shape of each row, for images and arrays; empty for text and bytes.
        text: whether rows are UTF-8 text.

    >>> import numpy as np
    >>> column = Ragged(np.frombuffer(b"onetwo", np.uint8), np.array([0, 3, 6]), [], True)
    >>> list(column)
    ['one', 'two']
    """

    __slots__ = ("offsets", "shapes", "text", "values")

    def __init__(self, values: Any, offsets: Any, shapes: list[list[int]], text: bool) -> None:
        self.values, self.offsets, self.shapes, self.text = values, offsets, shapes, text

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Any:
        """Return one row: a str for text, an array for images and arrays, bytes for the rest.

        Raises IndexError for a row past the end.
        """
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
    """One batch: {field: array}, writable, without a copy, and the consumer's alone.

    A batch stays charged to the budget until the last of its arrays is gone; then its memory
    returns to the loader.

    Attributes:
        rows: rows in the batch, padding included.
        ids: int64 of shape (rows,): the samples' ids in the whole dataset.
        indices: int64 of shape (rows,): the samples' places in the loader's own source. They
            differ from `ids` for a subset. Samplers, labels and `Loader.feedback` use these.
        mask: bool of shape (rows,): False for rows that only pad the batch.
        positions: int64 of shape (rows,): the samples' positions in the epoch, over all ranks.
        weights: float32 of shape (rows,): importance weights; 1 for orders that draw evenly, 0
            for padding. The mean of losses times weights is the mean over all samples.
        epoch: the epoch's number, from 0.
        number: the batch's number in the epoch, from 0; a resumed epoch goes on counting.
        last: whether it is the last batch of its epoch.

    >>> import tidegate as tg
    >>> next(iter(tg.Loader(tg.synthetic(10, 8), batch_size=4, memory="16MiB")))
    Batch(epoch 0, batch 0, 4 rows: data Ragged(4 rows, 32 uint8), id int64[4])
    """

    __slots__ = ("epoch", "ids", "indices", "last", "mask", "number", "positions", "rows", "weights")

    ids: np.ndarray[Any, np.dtype[np.int64]]
    indices: np.ndarray[Any, np.dtype[np.int64]]
    mask: np.ndarray[Any, np.dtype[np.bool_]]
    positions: np.ndarray[Any, np.dtype[np.int64]]
    weights: np.ndarray[Any, np.dtype[np.float32]]
    rows: int
    epoch: int
    number: int
    last: bool

    def __getattr__(self, name: str) -> Any:
        if name in EXTRAS:
            raise AttributeError(
                f"this batch has no {name}: it was made again, as frameworks do that move batches to a device. "
                f"tg.Loader(..., extras=({name!r},)) has {name} among the columns, which they keep",
                name=name,
                obj=self,
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    @property
    def index(self) -> int:
        """The old name of `number`."""
        renamed("Batch.index", "Batch.number")
        return self.number

    def __repr__(self) -> str:
        columns = ", ".join(f"{name} {_form(column)}" for name, column in self.items())
        if not hasattr(self, "rows"):
            return f"Batch({columns})"
        return f"Batch(epoch {self.epoch}, batch {self.number}, {self.rows} rows: {columns})"


def _form(column: Any) -> str:
    """Return the dtype and shape of an array or a tensor, as in `uint8[8, 3, 224, 224]`."""
    if hasattr(column, "dtype") and hasattr(column, "shape"):
        dtype = str(column.dtype).removeprefix("torch.")
        return f"{dtype}{list(column.shape)}"
    if isinstance(column, Ragged):
        return repr(column)
    return f"{type(column).__name__}[{len(column)}]" if hasattr(column, "__len__") else repr(column)


# Attributes of a batch that can be columns as well.
EXTRAS = ("ids", "indices", "mask", "positions", "weights")


def present(raw: tuple[Any, ...], extras: Sequence[str]) -> Batch:
    """Return the tuple that `_tidegate.Epoch.next` gave as a `Batch`.

    Args:
        raw: (columns, rows, ids, mask, epoch, number, positions, weights, indices, last).
        extras: attributes to add as columns, some of `EXTRAS`.
    """
    columns, rows, ids, mask, epoch, number, positions, weights, indices, last = raw
    batch = Batch(columns)
    for name, column in columns.items():
        if isinstance(column, tuple):
            batch[name] = Ragged(*column)
    batch.rows, batch.ids, batch.indices, batch.mask = rows, ids, indices, mask
    batch.epoch, batch.number, batch.positions, batch.weights = epoch, number, positions, weights
    batch.last = last
    for name in extras:
        batch[name] = getattr(batch, name)
    return batch
