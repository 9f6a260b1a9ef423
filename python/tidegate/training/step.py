"""A training step within a budget: its profile, and plans of it.

Flow: layers, or what was measured -> `Profile` -> `plan`, `curve`, `largest_batch`.
Memory: the tables of the planners, outside of any budget.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from tidegate import _tidegate
from tidegate.options import as_path, choice, flag, integer, integers, listed, number, refused, text
from tidegate.training.chain import Chain, Replay, Schedule, replay_of
from tidegate.training.layers import Layer
from tidegate.training.request import MOST, MOST_BYTES, all_of, ask, made, one_of, size, size_of

__all__ = [
    "Held",
    "Part",
    "Plan",
    "Planner",
    "Point",
    "Profile",
    "curve",
    "largest_batch",
    "model",
    "plan",
    "states",
]

PRECISIONS = ("fp32", "autocast", "bf16", "bf16_master")
# Any number of micro-batches, each budget in 500 steps.
NO_LIMITS = {"micro_batches": None, "fused": False, "recompute": True, "slots": 500}
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "adam8bit", "lion", "adafactor")


@dataclass
class Part:
    """A kind of memory: its bytes, and the sum in words."""

    name: str
    bytes: int
    words: str


def states(
    shapes: Sequence[Sequence[int]],
    *,
    precision: Literal["fp32", "autocast", "bf16", "bf16_master"] = "fp32",
    optimizer: Literal["sgd", "momentum", "adam", "adamw", "adam8bit", "lion", "adafactor"] = "adamw",
) -> list[Part]:
    """Return what parameters, gradients, optimizer and copies take.

    >>> sum(part.bytes for part in states([(1000, 1000)], precision="bf16_master"))
    16000000
    """
    given = listed(shapes)
    if not isinstance(given, list | tuple):
        raise refused("shapes", shapes, "a list of shapes")
    request = {
        "shapes": [integers("shapes", shape, 0) for shape in given],
        "precision": choice("precision", precision, PRECISIONS),
        "optimizer": choice("optimizer", optimizer, OPTIMIZERS),
    }
    return [made(Part, part) for part in ask("states", request)]


@dataclass
class Held:
    """A kind of memory that a step holds all the time: `parameters`, `optimizer`, `buffers`, …"""

    name: str
    bytes: int

    def __post_init__(self) -> None:
        self.name = text("name", self.name)
        self.bytes = integer("bytes", self.bytes, 0, MOST_BYTES)


@dataclass
class Profile:
    """A training step for some batch: measured, or computed from layers.

    Attributes:
        batch: the samples that bytes and times are for.
        chain: the stages.
        held: what is held all the time, without gradients.
        input_bytes: the batch itself.
        largest_gradient_bytes: the largest gradient of a parameter, which micro-batches make beside
            the sum that they add it to; by default those of the largest stage.
        optimizer_extra_bytes: what the optimizer's step takes besides, when activations are gone.
        batch_norm: whether a batch that is cut gives another result, because statistics are over
            the batch.
        overhead_time: what each micro-batch takes besides its stages.
        time_unit: "s", or "Tflop" where times are computed.
        name: of the model.
        fingerprint: what tells this model from others.
    """

    batch: int
    chain: Chain
    held: list[Held] = field(default_factory=list)
    input_bytes: int = 0
    optimizer_extra_bytes: int = 0
    largest_gradient_bytes: int = 0
    batch_norm: bool = False
    overhead_time: float = 0.0
    time_unit: str = "s"
    name: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        self.batch = integer("batch", self.batch, 1, 2**32)
        self.chain = one_of("chain", self.chain, Chain)
        self.held = all_of("held", self.held, Held)
        for name in ("input_bytes", "optimizer_extra_bytes", "largest_gradient_bytes"):
            setattr(self, name, integer(name, getattr(self, name), 0, MOST_BYTES))
        self.batch_norm = flag("batch_norm", self.batch_norm)
        self.overhead_time = number("overhead_time", self.overhead_time, 0, MOST)
        for name in ("time_unit", "name", "fingerprint"):
            setattr(self, name, text(name, getattr(self, name)))

    def request(self) -> dict[str, Any]:
        """Return what the planners take."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)},
                "chain": self.chain.request(), "held": [asdict(h) for h in self.held]}  # fmt: skip

    def save(self, path: Any) -> None:
        """Write JSON that `tidegate plan` and `Profile.load` read."""
        with open(as_path("path", path), "w", encoding="utf-8") as file:
            json.dump(self.request(), file)

    @classmethod
    def load(cls, path: Any) -> Profile:
        """Read what `save` wrote, or the layers of a model."""
        with open(as_path("path", path), encoding="utf-8") as file:
            return _profile(ask("profile", file.read()))

    @classmethod
    def from_request(cls, request: Mapping[str, Any]) -> Profile:
        """Return the profile of which `request` gave this."""
        return _profile(ask("profile", json.dumps(dict(request))))


def _profile(answer: Mapping[str, Any]) -> Profile:
    held = [Held(**held) for held in answer["held"]]
    return made(Profile, {**answer, "chain": Chain.from_answer(answer["chain"]), "held": held})


def model(
    layers: Sequence[Layer],
    batch: int,
    *,
    optimizer: str = "adamw",
    precision: str = "fp32",
    sample_bytes: int = 0,
    name: str = "",
) -> Profile:
    """Return the profile of a model by its layers: bytes by formula, times by multiplications.

    Args:
        layers: each, and each `Block`, is a stage.
        batch: samples of a step.
        optimizer: as in `states`.
        precision: as in `states`.
        sample_bytes: bytes of one sample of the input.
        name: of the model.

    >>> profile = model([tg.training.Linear(784, 10), tg.training.CrossEntropy(10)], 32)
    >>> profile.chain.stages[0].gradient_bytes
    31400
    """
    request = _layers(layers, batch, precision)
    request |= {"name": text("name", name), "optimizer": choice("optimizer", optimizer, OPTIMIZERS)}
    return _profile(ask("model", {**request, "sample_bytes": size("sample_bytes", sample_bytes)}))


def _layers(layers: Sequence[Layer], batch: int, precision: str) -> dict[str, Any]:
    return {
        "batch": integer("batch", batch, 1, 2**32),
        "layers": [layer.request() for layer in all_of("layers", layers, Layer)],
        "precision": choice("precision", precision, PRECISIONS),
    }


def sums(layers: Sequence[Layer], batch: int, *, precision: str = "fp32") -> str:
    """Return what each layer takes as sums in words: parameters, output, what backward needs.

    Args:
        layers: of a model.
        batch: samples of a step.
        precision: as in `states`.

    >>> print(sums([tg.training.Dropout(64)], 32))
    dropout
      output: 32 × 64 × 4 = 8192 bytes
      backward needs where zeros are: 32 × 64 = 2048 bytes
    <BLANKLINE>
    """
    words: str = ask("sums", _layers(layers, batch, precision))
    return words


@dataclass
class Plan:
    """A plan of a step; `print` it for words.

    Attributes:
        micro_batches: samples of each.
        schedule: what is stored and recomputed in each.
        gradients: "kept", "resident" or "fused".
        peak_bytes: bytes of the worst moment; `peak` has them by kind.
        time: of the step in `time_unit`; `plain_time` is that with all the memory that it can use.
        plain_bytes: what the step takes without a plan.
        floor_bytes: the least of any plan.
        memory_bytes: the budget.
        replay: the moments of the largest micro-batch.
        recomputed_stages: how many stages run forward again.
        fingerprint: of the profile.
        time_unit: "s", or "Tflop" for layers.
        text: all this in words.
    """

    micro_batches: list[int]
    schedule: Schedule
    gradients: Literal["kept", "resident", "fused"]
    peak_bytes: int
    peak: dict[str, int]
    time: float
    plain_time: float
    plain_bytes: int
    floor_bytes: int
    memory_bytes: int
    replay: Replay
    recomputed_stages: int
    fingerprint: str
    time_unit: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass
class Point:
    """The time of the fastest plan for a budget."""

    memory_bytes: int
    time: float
    micro_batches: int


def _limits(micro_batches: int | None, fused: bool, recompute: bool, slots: int) -> dict[str, Any]:
    return {
        "micro_batches": None if micro_batches is None else integer("micro_batches", micro_batches, 1, 2**16),
        "fused": flag("fused", fused),
        "recompute": flag("recompute", recompute),
        "slots": integer("slots", slots, 1, 2**16),
    }


class Planner:
    """Plans of one step for every budget: what is slow is done once.

    Args:
        profile: the step.
        batch: samples of the step; by default those of the profile.
        micro_batches: the most micro-batches. By default any, and 1 under batch normalization,
            where they change the result.
        fused: whether the optimizer may step within backward; by default False.
        recompute: whether stages may run forward again in backward; by default True.
        slots: steps of the budget that are told apart; by default 500.

    >>> layer = tg.training.Transformer(1024, 768, 12, scores="blockwise")
    >>> planner = Planner(model([tg.training.Block([layer], repeat=12)], 8), micro_batches=1)
    >>> planner.plan(planner.floor_bytes).peak_bytes <= planner.floor_bytes
    True
    """

    def __init__(
        self,
        profile: Profile,
        *,
        batch: int | None = None,
        micro_batches: int | None = None,
        fused: bool = False,
        recompute: bool = True,
        slots: int = 500,
    ) -> None:
        step = one_of("profile", profile, Profile)
        batch = step.batch if batch is None else integer("batch", batch, 1, 2**32)
        request = {"profile": step.request(), "batch": batch, "limits": _limits(micro_batches, fused, recompute, slots)}
        self._inner = _tidegate.Planner(json.dumps(request))

    @property
    def floor_bytes(self) -> int:
        """The least budget of any plan."""
        return self._inner.floor_bytes()

    def plan(self, memory: int | float | str) -> Plan:
        """Return the fastest plan within a budget: bytes, text, or a fraction of the memory limit.

        Raises:
            BudgetError: below the floor; it names the floor, its parts and what would lower it.
        """
        found = json.loads(self._inner.plan(min(size_of(memory), 2**63 - 1)))
        answer = {**found["plan"], "text": found["text"], "recomputed_stages": found["recomputed_stages"]}
        answer |= {"peak": dict(found["plan"]["peak"]), "replay": replay_of(found["plan"]["replay"])}
        return made(Plan, answer)

    def curve(self) -> list[Point]:
        """Return the time of the fastest plan for every budget, from the floor on."""
        return [made(Point, point) for point in json.loads(self._inner.curve())]


def plan(
    profile: Profile,
    memory: int | float | str,
    *,
    batch: int | None = None,
    micro_batches: int | None = None,
    fused: bool = False,
    slots: int = 500,
) -> Plan:
    """Return the fastest plan of a step within a budget: micro-batches and recomputation.

    Args:
        profile: the step.
        memory: bytes, text such as "8GiB", or a fraction of the memory limit.
        batch: samples of the step; by default those of the profile.
        micro_batches: the most micro-batches. By default any, and 1 under batch normalization,
            where they change the result.
        fused: whether the optimizer may step within backward.
        slots: steps of the budget that are told apart.

    Raises:
        BudgetError: below the floor; it names the floor, its parts and what would lower it.

    >>> layer = tg.training.Transformer(1024, 768, 12, scores="blockwise")
    >>> found = plan(model([tg.training.Block([layer], repeat=12)], 8), "2GiB", micro_batches=1)
    >>> found.peak_bytes <= 2 << 30, found.recomputed_stages > 0
    (True, True)
    """
    options = {"batch": batch, "micro_batches": micro_batches, "fused": fused, "slots": slots}
    return Planner(profile, **options).plan(memory)  # type: ignore[arg-type]


def curve(
    profile: Profile,
    *,
    batch: int | None = None,
    micro_batches: int | None = None,
    fused: bool = False,
    slots: int = 500,
) -> list[Point]:
    """Return the time of the fastest plan for every budget; arguments as in `plan`."""
    options = {"batch": batch, "micro_batches": micro_batches, "fused": fused, "slots": slots}
    return Planner(profile, **options).curve()  # type: ignore[arg-type]


def largest_batch(
    profile: Profile,
    memory: int | float | str,
    *,
    recompute: bool = True,
    micro_batches: int | None = 1,
    fused: bool = False,
    most: int = 2**20,
) -> int:
    """Return the largest batch whose step fits a budget; 0 where none does.

    Args:
        profile: the step.
        memory: as in `plan`.
        recompute: whether stages may run forward again.
        micro_batches: as in `plan`; by default one piece.
        fused: as in `plan`.
        most: the largest batch to look at.
    """
    request = {"profile": one_of("profile", profile, Profile).request(), "memory_bytes": size_of(memory)}
    request |= {"most": integer("most", most, 1), "limits": _limits(micro_batches, fused, recompute, 500)}
    found: int = ask("largest_batch", request)
    return found
