"""Runs a schedule: stages that are stored, and stages whose forward runs again in backward.

Flow: a schedule, stages -> `torch.utils.checkpoint`, one within another -> the loss.
Memory: what the schedule stores; what is recomputed is kept as its input alone.

Gradients are bit for bit those without recomputation: random numbers are replayed, and running
statistics of batch normalization are written once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from tidegate.torch.graph import Stage, Stages, Values, frozen
from tidegate.torch.kept import Draws
from tidegate.torch.lower import Lowered
from tidegate.training import Schedule

__all__ = ["Runner"]


class Runner:
    """Runs a model and its loss by a schedule."""

    def __init__(
        self,
        stages: Stages,
        loss: Callable[..., torch.Tensor],
        schedule: Schedule,
        lowered: Lowered | None = None,
    ) -> None:
        self._stages, self._loss, self._schedule, self._lowered = stages, loss, schedule, lowered
        self._count = len(stages.stages)
        self._norms: dict[tuple[int, int], list[nn.Module]] = {}
        self._last: dict[fx.Node, int] = dict.fromkeys(stages.results, self._count)
        for number, stage in enumerate(stages.stages, 1):
            for node in stage.takes:
                self._last[node] = max(self._last.get(node, 0), number)

    def __call__(self, inputs: Sequence[Any], targets: Sequence[Any]) -> torch.Tensor:
        """Return the loss of a batch."""
        values = self._stages.given(inputs)
        loss: torch.Tensor = self._steps(self._schedule, values, targets)[0]
        return loss

    def _between(self, first: int, last: int) -> list[Stage]:
        return self._stages.stages[first - 1 : last]

    def _norms_of(self, first: int, last: int) -> list[nn.Module]:
        """Return the batch normalizations of stages, which are looked for once."""
        key = first, last
        if key not in self._norms:
            self._norms[key] = self._stages.norms(self._between(first, last))
        return self._norms[key]

    def _takes(self, first: int, last: int) -> list[fx.Node]:
        """Return what stages take from before the first of them."""
        stages = self._between(first, last)
        own = {node for stage in stages for node in stage.nodes}
        taken = [node for stage in stages for node in stage.takes]
        taken += self._stages.results if last == self._count else []
        return [node for node in dict.fromkeys(taken) if node not in own]

    def _gives(self, first: int, last: int) -> list[fx.Node]:
        """Return what stages make that later ones take."""
        return [node for stage in self._between(first, last) for node in stage.gives if self._last[node] > last]

    def _steps(self, steps: Schedule, values: Values, targets: Sequence[Any]) -> list[Any]:
        """Run steps over values, which they change; return what they give, or the loss."""
        first, last = _ends(steps)
        result: list[Any] = []
        for step in steps:
            begin, end = _ends([step])
            if isinstance(step, list):
                result = self._recomputed(step, values, targets)
            else:
                result = self._stored(begin, values, targets)
            for node in [node for node in values if self._last.get(node, 0) <= end]:
                del values[node]
        if last == self._count:
            return result
        return [values[node] for node in self._gives(first, last)]

    def _stored(self, number: int, values: Values, targets: Sequence[Any]) -> list[Any]:
        stage = self._stages.stages[number - 1]
        for node in stage.nodes:
            values[node] = self._stages.run(node, values, self._lowered)
        if number == self._count:
            return [self._loss(self._stages.output(values), *targets)]
        gives = set(stage.gives)
        for node in [node for node in stage.nodes if node not in gives]:
            del values[node]
        return []

    def _recomputed(self, steps: Schedule, values: Values, targets: Sequence[Any]) -> list[Any]:
        first, last = _ends(steps)
        takes = self._takes(first, last)
        norms = self._norms_of(first, last)

        def forward(*taken: Any) -> tuple[Any, ...]:
            return tuple(self._steps(steps, dict(zip(takes, taken, strict=True)), targets))

        given = checkpoint(
            forward,
            *(values[node] for node in takes),
            use_reentrant=False,
            context_fn=lambda: _contexts(norms),
        )
        if last == self._count:
            return list(given)
        values.update(zip(self._gives(first, last), given, strict=True))
        return []


def _contexts(
    norms: list[nn.Module],
) -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
    """Return what the first forward runs within, and what the one in backward."""
    draws = Draws()
    return draws.forward(), _again(draws, norms)


@contextlib.contextmanager
def _again(draws: Draws, norms: list[nn.Module]) -> Iterator[None]:
    with draws.again(), frozen(norms):
        yield


def _ends(steps: Schedule) -> tuple[int, int]:
    """Return the first and the last stage of steps."""
    first, last = steps[0], steps[-1]
    while isinstance(first, list):
        first = first[0]
    while isinstance(last, list):
        last = last[-1]
    return first, last
