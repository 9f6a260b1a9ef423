"""A user's function over samples, on the worker threads, its results charged to the budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tidegate._tidegate import Budget
from tidegate.batch import Batch, Ragged
from tidegate.errors import ConfigError

__all__ = ["over_samples"]

Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


def over_samples(function: Transform, seed: int, budget: Budget) -> Callable[[Batch], Batch]:
    """Return what calls `function(sample, rng)` for each row of a batch and stacks the results.

    `rng` is a function of (seed, epoch, position), so results do not depend on workers. Arrays and numbers are stacked
    into arrays charged to the account `user`; anything else is kept as a list. Raises ConfigError when rows differ in
    shape.
    """

    def transform(batch: Batch) -> Batch:
        made: Batch | None = None
        for row in range(batch.rows):
            key = [seed & (2**64 - 1), batch.epoch]
            rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, int(batch.positions[row]), 0]))
            result = function({name: column[row] for name, column in batch.items()}, rng)
            made = made or _columns(result, batch, budget)
            for name, value in result.items():
                _put(made, name, row, value)
        return made if made is not None else batch

    return transform


def _columns(first: dict[str, Any], batch: Batch, budget: Budget) -> Batch:
    """Make the columns that the first row's result asks for."""
    made = Batch()
    for name, value in first.items():
        if isinstance(value, np.ndarray | np.generic | int | float):
            array = np.asarray(value)
            made[name] = budget.empty([batch.rows, *array.shape], array.dtype.name)
        else:
            made[name] = [None] * batch.rows
    made.rows, made.ids, made.mask = batch.rows, batch.ids, batch.mask
    made.epoch, made.index, made.positions = batch.epoch, batch.index, batch.positions
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
