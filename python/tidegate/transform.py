"""`Steps`: a user's functions over samples and batches, called off the training thread.

Flow: a raw batch -> `transform` of each sample -> tensors -> `batch_transform` -> the result.
Memory: stacked results are charged to the account `user`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tidegate._tidegate import Budget
from tidegate.batch import Batch, Ragged, present
from tidegate.errors import ConfigError
from tidegate.generators import Seeder

__all__ = ["Shape", "Steps", "arrays", "tensors_after"]

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
        extras: Sequence[str],
    ) -> None:
        self.transform, self.batch_transform = transform, batch_transform
        self.seed, self.torch, self.extras = seed, torch, tuple(extras)
        # Seeds the global generators before each call; set in worker processes only.
        self.seeder: Seeder | None = None

    def functions(self) -> list[Callable[..., Any]]:
        """Return the user's functions."""
        return [function for function in (self.transform, self.batch_transform) if function is not None]

    def __call__(self, raw: tuple[Any, ...], empty: Empty) -> Any:
        batch = present(raw, self.extras)
        first = int(batch.positions[0]) if batch.rows else 0
        epoch = batch.epoch
        if self.transform is not None:
            batch = _over_samples(self.transform, self.seed, batch, empty, self.seeder)
        if self.torch:
            from tidegate.torch import tensors

            batch = tensors(batch)
        if self.batch_transform is None:
            return batch
        if self.seeder is not None:
            self.seeder(1, epoch, first)
        return self.batch_transform(batch)


def arrays(budget: Budget, shapes: list[Shape]) -> list[Any]:
    """Return arrays that are charged to a budget."""
    return [budget.empty(list(shape), dtype) for shape, dtype in shapes]


def tensors_after(hook: Callable[[tuple[Any, ...]], Batch]) -> Callable[[tuple[Any, ...]], Batch]:
    """Return a function that makes tensors of what `hook` returns."""
    from tidegate.torch import tensors

    return lambda raw: tensors(hook(raw))


def _over_samples(function: Transform, seed: int, batch: Batch, empty: Empty, seeder: Seeder | None) -> Batch:
    """Call `function(sample, rng)` for each row of a batch and stack the results.

    `rng` is a function of (seed, epoch, position), so results do not depend on workers. Arrays and
    numbers are stacked into arrays charged to the account `user`; other values stay a list. Raises
    ConfigError when rows differ in shape or in their fields.
    """
    made: Batch | None = None
    for row in range(batch.rows):
        key = [seed & (2**64 - 1), batch.epoch]
        position = int(batch.positions[row])
        rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, position, 0]))
        if seeder is not None:
            seeder(0, batch.epoch, position)
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
    made.epoch, made.number, made.last = batch.epoch, batch.number, batch.last
    made.positions, made.weights = batch.positions, batch.weights
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
