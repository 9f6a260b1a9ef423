"""The plan of a step: the fastest of several ways to take it within a budget.

Flow: profiles of one batch, one for each way -> planners -> the fastest plan.
Memory: profiles; the tables of the planners are dropped after each plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidegate import training
from tidegate.errors import BudgetError, ConfigError
from tidegate.options import flag, integer

__all__ = ["Planners", "Way"]

FLAGS = ("packs", "lowers", "fused", "whole")
# Times that differ by less are equal.
EQUAL = 1e-6


@dataclass
class Way:
    """A way to take a step, and its profile.

    Attributes:
        profile: bytes and times of the stages.
        packs: whether what is saved is compressed; nothing is then recomputed.
        lowers: whether named modules run in bfloat16.
        fused: whether the optimizer may step in backward.
        whole: whether the batch stays in one piece.
    """

    profile: training.Profile
    packs: bool = False
    lowers: bool = False
    fused: bool = False
    whole: bool = False

    def state(self) -> dict[str, Any]:
        """Return what `of` takes."""
        return {"profile": self.profile.request(), **{name: getattr(self, name) for name in FLAGS}}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Way:
        """Return the way of a state."""
        profile = training.Profile.from_request(state["profile"])
        return cls(profile, **{name: flag(name, state[name]) for name in FLAGS})


class Planners:
    """Plans of one batch.

    The tables of the planners are as large as those of a small model: they are dropped after each
    plan, and solved again for the next.

    Attributes:
        ways: the ways to choose from; of equally fast ones the first is taken.
        samples: of the batch.
        memory: the budget of the last plan; of a state that was loaded, the plan is that of then
            where there is room for it.
    """

    def __init__(self, ways: Sequence[Way], samples: int, most: int | None, memory: int | None = None) -> None:
        self.ways, self.samples, self._most, self.memory = list(ways), samples, most, memory
        self._curve: list[training.Point] | None = None

    def state(self, key: str) -> dict[str, Any]:
        """Return what `of` takes."""
        return {
            "key": key,
            "ways": [way.state() for way in self.ways],
            "samples": self.samples,
            "memory": self.memory,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any], most: int | None) -> Planners:
        """Return the planners of a state."""
        if not state["ways"]:
            raise ConfigError("there is no way to take a step")
        samples, memory = integer("samples", state["samples"], 1, 2**32), integer("memory", state["memory"], 0)
        return cls([Way.of(way) for way in state["ways"]], samples, most, memory)

    def of_samples(self, samples: int) -> Planners:
        """Return the planners of a batch of another size."""
        return Planners(self.ways, samples, self._most)

    @property
    def profile(self) -> training.Profile:
        """The profile of the step that compresses nothing."""
        return self.ways[0].profile

    def _all(self) -> Iterator[tuple[training.Planner, Way]]:
        for way in self.ways:
            how: dict[str, Any] = {"batch": self.samples, "micro_batches": 1 if way.whole else self._most}
            yield training.Planner(way.profile, **how, fused=way.fused, recompute=not way.packs), way

    def plan(self, memory: int) -> tuple[training.Plan, Way]:
        """Return the fastest plan within a budget, and the way that it is of."""
        best: tuple[training.Plan, Way] | None = None
        refusals: list[tuple[int, BudgetError]] = []
        for planner, way in self._all():
            try:
                plan = planner.plan(memory)
            except BudgetError as error:
                refusals.append((planner.floor_bytes, error))
                continue
            if best is None or plan.time < best[0].time * (1 - EQUAL):
                best = plan, way
            if best[0].time <= best[0].plain_time * (1 + EQUAL):
                break
        if best is None:
            raise min(refusals, key=lambda pair: pair[0])[1]
        self.memory = memory
        return best

    def curve(self) -> list[training.Point]:
        """Return the time of the fastest plan for every budget; solved once."""
        if self._curve is None:
            self._curve = [point for planner, _ in self._all() for point in planner.curve()]
        return self._curve
