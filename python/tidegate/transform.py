"""A user's functions over samples and batches, off the training thread, their results charged to the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tidegate.batch import Batch, Ragged, present
from tidegate.errors import ConfigError

__all__ = ["Shape", "Steps"]

Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]
# An array that is asked for: its shape and the name of its element type.
Shape = tuple[Sequence[int], str]
Empty = Callable[[list[Shape]], list[np.ndarray]]


class Steps:
    """What happens to a batch before it is delivered: `transform`, tensors, `batch_transform`.

    Called with what the Rust side delivers and with what gives arrays of the budget; in a worker process, a copy of it
    is.
    """

    def __init__(
        self,
        transform: Transform | None,
        batch_transform: Callable[[Batch], Any] | None,
        *,
        seed: int,
        torch: bool,
        ids: bool,
    ) -> None:
        self.transform, self.batch_transform = transform, batch_transform
        self.seed, self.torch, self.ids = seed, torch, ids

    def __call__(self, raw: tuple[Any, ...], empty: Empty) -> Any:
        batch = present(raw, self.ids)
        if self.transform is not None:
            batch = _over_samples(self.transform, self.seed, batch, empty)
        if self.torch:
            from tidegate.torch import tensors

            batch = tensors(batch)
        return batch if self.batch_transform is None else self.batch_transform(batch)


def _over_samples(function: Transform, seed: int, batch: Batch, empty: Empty) -> Batch:
    """Call `function(sample, rng)` for each row of a batch and stack the results.

    `rng` is a function of (seed, epoch, position), so results do not depend on workers. Arrays and numbers are stacked
    into arrays charged to the account `user`; anything else is kept as a list. Raises ConfigError when rows differ in
    shape.
    """
    made: Batch | None = None
    for row in range(batch.rows):
        key = [seed & (2**64 - 1), batch.epoch]
        rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, int(batch.positions[row]), 0]))
        result = function({name: column[row] for name, column in batch.items()}, rng)
        made = made or _columns(result, batch, empty)
        for name, value in result.items():
            _put(made, name, row, value)
    return made if made is not None else batch


def _columns(first: dict[str, Any], batch: Batch, empty: Empty) -> Batch:
    """Make the columns that the first row's result asks for."""
    made = Batch({name: [None] * batch.rows for name in first})
    numbers = {n: np.asarray(v) for n, v in first.items() if isinstance(v, np.ndarray | np.generic | int | float)}
    arrays = empty([((batch.rows, *array.shape), array.dtype.name) for array in numbers.values()])
    made.update(zip(numbers, arrays, strict=True))
    made.rows, made.ids, made.indices, made.mask = batch.rows, batch.ids, batch.indices, batch.mask
    made.epoch, made.index, made.positions, made.weights = batch.epoch, batch.index, batch.positions, batch.weights
    return made


def _put(made: Batch, name: str, row: int, value: Any) -> None:
    column = made.get(name)
    if column is None or isinstance(column, Ragged):
        raise ConfigError(f"transform returned a field {name!r} that the first sample of the batch did not have")
    if isinstance(column, np.ndarray) and np.shape(value) != column.shape[1:]:
        raise ConfigError(
            f"transform returned {name!r} of shape {np.shape(value)} where the first sample has {column.shape[1:]}"
        )
    column[row] = value
