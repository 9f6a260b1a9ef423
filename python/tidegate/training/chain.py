"""Recomputation: the stages of a step, schedules of what is stored, and the fastest of them.

Flow: stages -> planners -> schedules; a schedule -> its time and its bytes.
Memory: the tables of the planners, outside of any budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tidegate.options import choice, integer, listed, number, refused, text
from tidegate.training.request import MOST, MOST_BYTES, all_of, ask, made, one_of, size, size_of

__all__ = [
    "Chain",
    "Keep",
    "Moment",
    "Replay",
    "Schedule",
    "Skip",
    "Stage",
    "Uniform",
    "replay",
    "revolve",
    "rotor",
    "segments",
    "uniform",
]

# What to do with stages: the number of a stage to store it, a dict to keep it in another form, a
# list to recompute what is in it.
Schedule = list[Any]

SIZES = ("output_bytes", "saved_bytes", "gradient_bytes", "forward_extra_bytes", "save_extra_bytes")
GRADIENTS = ("kept", "resident", "fused")
# A list within a list, at most this deep: torch runs one checkpoint within another.
DEEPEST = 100


@dataclass
class Keep:
    """A way to keep what a stage's backward needs, other than to leave it where it is.

    Attributes:
        name: such as "int8" or "offload".
        bytes: bytes in this form.
        time: time to bring it into this form and back, in the unit of the stage.
    """

    name: str
    bytes: int
    time: float

    def __post_init__(self) -> None:
        self.name = text("name", self.name)
        self.bytes = size("bytes", self.bytes)
        self.time = number("time", self.time, 0, MOST)


@dataclass
class Stage:
    """A block of a model in forward and backward: bytes for a batch, and times in any one unit.

    Attributes:
        output_bytes: its output, which the next stage takes.
        output_gradient_bytes: the gradient of its output; by default as much as the output. It may
            be a part of a larger tensor, or share one with another.
        saved_bytes: what its backward needs besides its input and its output.
        gradient_bytes: the gradients of its own parameters.
        forward_extra_bytes: above the output, while it runs forward and keeps nothing.
        save_extra_bytes: above what it saves and the output, while it runs forward and saves.
        backward_extra_bytes: of backward at its worst moment, above what is saved, the output and
            all gradients; negative where not all of them are there at that moment.
        forward_time: time of forward.
        backward_time: time of backward.
        keeps: other forms of what it saves.
        name: for messages.
    """

    output_bytes: int = 0
    output_gradient_bytes: int | None = None
    saved_bytes: int = 0
    gradient_bytes: int = 0
    forward_extra_bytes: int = 0
    save_extra_bytes: int = 0
    backward_extra_bytes: int = 0
    forward_time: float = 0.0
    backward_time: float = 0.0
    keeps: list[Keep] = field(default_factory=list)
    name: str = ""

    def __post_init__(self) -> None:
        for name in SIZES:
            setattr(self, name, size(name, getattr(self, name)))
        if self.output_gradient_bytes is not None:
            self.output_gradient_bytes = size("output_gradient_bytes", self.output_gradient_bytes)
        least = "backward_extra_bytes"
        self.backward_extra_bytes = integer(least, self.backward_extra_bytes, -MOST_BYTES, MOST_BYTES)
        self.forward_time = number("forward_time", self.forward_time, 0, MOST)
        self.backward_time = number("backward_time", self.backward_time, 0, MOST)
        self.keeps = all_of("keeps", self.keeps, Keep)
        self.name = text("name", self.name)


@dataclass
class Skip:
    """An output that later stages use too.

    Attributes:
        from_: the stage that makes it, counted from 1.
        to: the last stage that uses it.
    """

    from_: int
    to: int

    def __post_init__(self) -> None:
        self.from_ = integer("from_", self.from_, 1, 2**16)
        self.to = integer("to", self.to, 1, 2**16)


@dataclass
class Chain:
    """The stages of a step in the order in which they run; the last one makes the loss.

    Attributes:
        stages: the stages.
        skips: outputs that later stages use too.
        gradients: "kept" until the optimizer's step, "resident" all the time because micro-batches
            add to them, or "fused": used up in backward.
    """

    stages: list[Stage]
    skips: list[Skip] = field(default_factory=list)
    gradients: Literal["kept", "resident", "fused"] = "kept"

    def __post_init__(self) -> None:
        self.stages = all_of("stages", self.stages, Stage)
        self.skips = all_of("skips", self.skips, Skip)
        choice("gradients", self.gradients, GRADIENTS)

    @property
    def plain_time(self) -> float:
        """Time of forward and backward of all stages, without recomputation."""
        return sum(stage.forward_time + stage.backward_time for stage in self.stages)

    def request(self) -> dict[str, Any]:
        """Return what the planners take."""
        skips = [{"from": skip.from_, "to": skip.to} for skip in self.skips]
        return {"stages": [asdict(s) for s in self.stages], "skips": skips, "gradients": self.gradients}

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> Chain:
        """Return the chain that a planner gave."""
        stages = [Stage(**{**s, "keeps": [Keep(**k) for k in s["keeps"]]}) for s in answer["stages"]]
        return cls(stages, [Skip(s["from"], s["to"]) for s in answer["skips"]], answer["gradients"])


@dataclass
class Moment:
    """The worst moment of a stage's forward or backward.

    Attributes:
        stage: counted from 1.
        phase: what it does.
        time: at its end, in the unit of the chain.
        bytes: by kind.
    """

    stage: int
    phase: Literal["forward", "recompute", "backward"]
    time: float
    bytes: dict[str, int]


@dataclass
class Replay:
    """What a schedule takes.

    Attributes:
        time: of the step, in the unit of the chain.
        extra_time: of it, what recomputation and other forms of keeping take.
        peak: bytes of the worst moment by kind.
        moments: in order.
    """

    time: float
    extra_time: float
    peak: dict[str, int]
    moments: list[Moment]

    @property
    def peak_bytes(self) -> int:
        """Bytes of the worst moment."""
        return sum(self.peak.values())


def replay_of(answer: Mapping[str, Any]) -> Replay:
    """Return the replay that a planner gave."""
    moments = [Moment(**moment) for moment in answer["moments"]]
    return Replay(answer["time"], answer["extra_time"], answer["peak"], moments)


def _steps(schedule: Any, depth: int = 0) -> Schedule:
    """Return a schedule whose items are what they must be."""
    steps = listed(schedule)
    if not isinstance(steps, list | tuple) or depth > DEEPEST:
        raise refused("schedule", schedule, f"stage numbers, and lists of them at most {DEEPEST} deep")
    return [_item(step, depth) for step in steps]


def _item(step: Any, depth: int) -> Any:
    if isinstance(step, Mapping) and set(step) == {"stage", "keep"}:
        return {name: integer(name, step[name], 0, 2**16) for name in ("stage", "keep")}
    if isinstance(step, list | tuple):
        return _steps(step, depth + 1)
    return integer("a stage of the schedule", step, 1, 2**16)


def replay(chain: Chain, schedule: Schedule) -> Replay:
    """Return what a schedule takes, tensor by tensor.

    >>> stage = Stage(output_bytes=1, saved_bytes=2, forward_time=1, backward_time=2)
    >>> chain = Chain([stage, stage, Stage(saved_bytes=2, forward_time=1, backward_time=2)])
    >>> [replay(chain, s).peak_bytes for s in ([1, 2, 3], [[1, 2], 3])]
    [9, 8]
    """
    return replay_of(ask("replay", [one_of("chain", chain, Chain).request(), _steps(schedule)]))


def rotor(chain: Chain, memory: int | float | str, *, slots: int = 500) -> tuple[Schedule, float]:
    """Return the fastest memory-persistent schedule of a chain within a budget, and its time.

    In the schedule a number is a stage that is stored, and a list is recomputed: `[[1, 2], 3]`.
    Skip connections are counted once; stages may have several ways to keep what they save. Source:
    O. Beaumont et al., arXiv:1911.13214.

    Args:
        chain: the stages.
        memory: the budget of activations and gradients: bytes, or text such as "2GiB".
        slots: steps of the budget that are told apart.

    Raises:
        BudgetError: when no schedule fits; it names the least that one takes.
    """
    schedule, time = ask(
        "rotor", [one_of("chain", chain, Chain).request(), size_of(memory), integer("slots", slots, 1, 2**20)]
    )
    return schedule, time


def revolve(stages: int, checkpoints: int) -> tuple[int, Schedule]:
    """Return the fewest extra forward steps of a uniform chain, and a schedule with that many.

    The input is one of the checkpoints.

    Source: A. Griewank, A. Walther, ACM TOMS 26(1), 2000.

    >>> revolve(10, 3)[0]
    15
    """
    steps = [integer("stages", stages, 1, 4096), integer("checkpoints", checkpoints, 1)]
    advances, schedule = ask("revolve", steps)
    return advances, schedule


@dataclass
class Uniform:
    """Segments of equal blocks: their length, the bytes they take, and forward passes a block."""

    length: int
    bytes: int
    plain_bytes: int
    forwards: float


def uniform(blocks: int, saved_bytes: int, boundary_bytes: int) -> Uniform:
    """Return the segments of a chain of equal blocks that take the fewest bytes.

    The length is about the root of blocks * boundary_bytes / saved_bytes. Source: T. Chen et al.,
    arXiv:1604.06174.

    >>> uniform(64, 5, 1).length
    4
    """
    sizes = [integer("blocks", blocks, 1, 2**16), integer("saved_bytes", saved_bytes, 1)]
    return made(Uniform, ask("uniform", [*sizes, integer("boundary_bytes", boundary_bytes, 1)]))


def segments(stages: int, length: int) -> Schedule:
    """Return the schedule of equal segments, of which the last is stored at once.

    >>> segments(7, 3)
    [[1, 2, 3], [4, 5, 6], 7]
    """
    found: Schedule = ask("segments", [integer("stages", stages, 1, 2**16), integer("length", length, 1, 2**16)])
    return found
