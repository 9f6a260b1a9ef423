"""`Steps`: a user's functions over samples and batches, called off the training thread.

Flow: a raw batch -> `transform` of each sample -> tensors -> `batch_transform` -> the result.
Memory: stacked results are charged to the account `user`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tidegate.batch import Batch, Ragged, present
from tidegate.errors import ConfigError

__all__ = ["Shape", "Steps"]

Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]
# A requested array: its shape and the name of its dtype.
Shape = tuple[Sequence[int], str]
Empty = Callable[[list[Shape]], list[np.ndarray]]


class Steps:
    """What happens to a batch before it is delivered: `transform`, tensors, `batch_transform`.

    A call takes the raw batch and a function that returns arrays of the budget. A worker process
    has a copy of the object.
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

    `rng` is a function of (seed, epoch, position), so results do not depend on workers. Arrays and
    numbers are stacked into arrays charged to the account `user`; other values stay a list. Raises
    ConfigError when rows differ in shape or in their fields.
    """
    made: Batch | None = None
    for row in range(batch.rows):
        key = [seed & (2**64 - 1), batch.epoch]
        rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, int(batch.positions[row]), 0]))
        result = function({name: column[row] for name, column in batch.items()}, rng)
        if made is None:
            made = _columns(result, batch, empty)
        for name, value in result.items():
            _put(made, name, row, value)
    return made if made is not None else batch


def _columns(first: dict[str, Any], batch: Batch, empty: Empty) -> Batch:
    """Make the columns for the fields of the first row's result."""
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
