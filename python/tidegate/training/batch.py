"""Batches: micro-batches and their weights, growth, the noise scale, the time to a target.

Flow: numbers that were measured -> sizes, weights, batches.
Memory: holds none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tidegate.options import choice, integer, integers, number, numbers, refused
from tidegate.training.request import MOST, ask, made, positive, rows

__all__ = [
    "AdaBatch",
    "LinearGrowth",
    "NoiseScale",
    "Reached",
    "Target",
    "front",
    "micro_batches",
    "noise_driven",
    "weights",
]


def micro_batches(batch: int, parts: int) -> list[int]:
    """Return the sizes of micro-batches, as equal as they can be.

    >>> micro_batches(10, 4)
    [3, 3, 2, 2]
    """
    found: list[int] = ask("micro_batches", [integer("batch", batch, 1), integer("parts", parts, 1, 2**16)])
    return found


def weights(counts: Sequence[int]) -> list[float]:
    """Return the weight of each micro-batch's mean loss; `counts` are samples, or valid tokens.

    >>> weights([3, 3, 2])
    [0.375, 0.375, 0.25]
    """
    found: list[float] = ask("weights", integers("counts", counts, 0))
    return found


@dataclass
class AdaBatch:
    """A batch that is multiplied after a number of epochs.

    Source: A. Devarakonda et al., arXiv:1712.02029.
    """

    first: int
    factor: float
    epochs: int
    most: int

    def __post_init__(self) -> None:
        self.first, self.most = integer("first", self.first, 1), integer("most", self.most, 1)
        self.factor = number("factor", self.factor, 1)
        self.epochs = integer("epochs", self.epochs, 1)

    def batch(self, epoch: int) -> int:
        """Return the batch of an epoch, counted from 0."""
        return _grown({"kind": "adabatch", **asdict(self)}, epoch)


@dataclass
class LinearGrowth:
    """A batch of first * (1 + rate * epoch), at most `most`."""

    first: int
    rate: float
    most: int

    def __post_init__(self) -> None:
        self.first, self.most = integer("first", self.first, 1), integer("most", self.most, 1)
        self.rate = number("rate", self.rate, 0)

    def batch(self, epoch: int) -> int:
        """Return the batch of an epoch, counted from 0."""
        return _grown({"kind": "linear", **asdict(self)}, epoch)


def _grown(growth: dict[str, Any], epoch: int) -> int:
    found: int = ask("growth", [growth, integer("epoch", epoch, 0)])
    return found


def noise_driven(batch: int, optimum: float, *, share: float, least: int, most: int) -> int:
    """Return the next batch: share * optimum + (1 - share) * batch, between `least` and `most`.

    >>> noise_driven(100, 300.0, share=0.25, least=1, most=1000)
    150
    """
    bounds = [integer("least", least, 1), integer("most", most, 1)]
    found: int = ask(
        "noise_driven",
        [integer("batch", batch, 1), number("optimum", optimum, 0), number("share", share, 0, 1), *bounds],
    )
    return found


class NoiseScale:
    """The noise scale of gradients, about the critical batch, from the norms of two batches.

    Micro-batches give the small norm, their sum the large one. Both estimates are averaged and then
    divided. Source: S. McCandlish et al., arXiv:1812.06162, appendix A.

    Args:
        small_batch: samples of the small batch.
        large_batch: samples of the large batch.
        decay: what an older estimate weighs after each newer one; by default 1: the mean of all.

    >>> scale = NoiseScale(1, 4)
    >>> scale.add(9.0, 3.0)
    >>> scale.value
    8.0
    """

    def __init__(self, small_batch: int, large_batch: int, decay: float = 1.0) -> None:
        batches = [integer("small_batch", small_batch, 1), integer("large_batch", large_batch, 1)]
        self._state: dict[str, Any] = ask("noise", [*batches, number("decay", decay, 0, 1)])
        self._value: float | None = None

    def add(self, small_squared: float, large_squared: float) -> None:
        """Take the squared norms of the gradients of one step."""
        squared = [number("small_squared", small_squared, 0, MOST), number("large_squared", large_squared, 0, MOST)]
        self._state, self._value = ask("noise_add", [self._state, *squared])

    @property
    def value(self) -> float | None:
        """The noise scale in samples; None while the estimate of the gradient is not positive."""
        return self._value

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        return {"state": self._state, "value": self._value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        names = {"small_batch", "large_batch", "decay", "weight", "squared_gradient", "trace"}
        inner = state.get("state") if isinstance(state, Mapping) else None
        if not isinstance(inner, Mapping) or set(inner) != names:
            raise refused("state", state, "what state_dict returned")
        same = NoiseScale(inner["small_batch"], inner["large_batch"], inner["decay"])._state
        rest = {name: number(name, inner[name], -MOST, MOST) for name in ("weight", "squared_gradient", "trace")}
        self._state = {**rest, **{name: same[name] for name in ("small_batch", "large_batch", "decay")}}
        value = state.get("value")
        self._value = None if value is None else number("value", value, 0)


@dataclass
class Reached:
    """What a batch means for a target: steps, samples, time."""

    batch: int
    steps: float
    samples: float
    time: float


@dataclass
class Target:
    """Least steps and least samples to a target: (S/S_min - 1)(E/E_min - 1) = 1.

    Source: S. McCandlish et al., arXiv:1812.06162.
    """

    least_steps: float
    least_samples: float

    def __post_init__(self) -> None:
        self.least_steps = positive("least_steps", self.least_steps)
        self.least_samples = positive("least_samples", self.least_samples)

    @property
    def critical_batch(self) -> float:
        """The batch that takes twice the least steps and twice the least samples."""
        return self.least_samples / self.least_steps

    def reached(self, measured: Sequence[tuple[int, float]]) -> list[Reached]:
        """Return steps, samples and time for each (batch, step time) that was measured.

        >>> Target(1000, 64_000).reached([(64, 0.1)])
        [Reached(batch=64, steps=2000.0, samples=128000.0, time=200.0)]
        """
        given = []
        for pair in rows("measured", measured):
            parts = rows("measured", pair)
            if len(parts) != 2:
                raise refused("measured", pair, "a batch and its step time")
            given.append([integer("batch", parts[0], 1), positive("step_time", parts[1])])
        return [made(Reached, r) for r in ask("reached", [asdict(self), given])]


def front(points: Sequence[Sequence[float]], better: Sequence[Literal["less", "more"]]) -> list[int]:
    """Return the indices of the measured points that no other point beats in everything.

    >>> front([(8, 100), (4, 80), (6, 70)], ["less", "more"])
    [0, 1]
    """
    directions = [choice("better", b, ("less", "more")) for b in rows("better", better)]
    what = "one for each direction"
    given = [numbers("points", point, len(directions), what) for point in rows("points", points)]
    found: list[int] = ask("front", [given, directions])
    return found
