"""Several devices, and places in the memory of one: ZeRO, pipelines, ways to divide a step.

Flow: a profile, or numbers -> what each device holds, sends and takes.
Memory: the tables of the planners, outside of any budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from tidegate.options import choice, integer, integers, number
from tidegate.training.chain import Chain
from tidegate.training.request import MOST, all_of, ask, made, one_of, positive, size, size_of
from tidegate.training.step import NO_LIMITS, Profile

__all__ = [
    "Device",
    "Lifetime",
    "Placement",
    "Sharded",
    "Split",
    "Way",
    "compare",
    "place",
    "sharding",
    "split",
]


@dataclass
class Sharded:
    """What one device holds, and what it sends in a step.

    Attributes:
        bytes: of states.
        gathered_bytes: of the gathered layer of stage 3, which `bytes` does not contain.
        sent_elements: without a ring's (N - 1) / N.
        sent_bytes: that a device of a ring sends.
    """

    bytes: float
    gathered_bytes: float
    sent_elements: float
    sent_bytes: float


def sharding(
    parameters: int,
    devices: int,
    stage: int,
    *,
    largest_layer: int = 0,
    accounting: Literal["paper", "deep_speed", "fp32"] = "paper",
    offload: Literal["none", "optimizer", "parameters"] = "none",
) -> Sharded:
    """Return what ZeRO of a stage (0 to 3) leaves on each device.

    Source: S. Rajbhandari et al., arXiv:1910.02054; DeepSpeed's estimators, which count gradients
    in 4 bytes too.

    >>> [sharding(7_500_000_000, 64, stage).bytes / 1e9 for stage in range(4)]
    [120.0, 31.40625, 16.640625, 1.875]
    """
    request = {
        "parameters": integer("parameters", parameters, 1),
        "devices": integer("devices", devices, 1, 2**16),
        "stage": integer("stage", stage, 0, 3),
        "largest_layer": integer("largest_layer", largest_layer, 0),
        "accounting": choice("accounting", accounting, ("paper", "deep_speed", "fp32")),
        "offload": choice("offload", offload, ("none", "optimizer", "parameters")),
    }
    return made(Sharded, ask("sharding", request))


@dataclass
class Lifetime:
    """A tensor: its bytes, and the first and the last step at which it is needed."""

    bytes: int
    first: int
    last: int

    def __post_init__(self) -> None:
        self.bytes = size("bytes", self.bytes)
        self.first, self.last = integer("first", self.first, 0), integer("last", self.last, 0)


@dataclass
class Placement:
    """Where each tensor is; the peak beside its lower bound, colouring, and no sharing at all."""

    offsets: list[int]
    peak_bytes: int
    bound_bytes: int
    colouring_bytes: int
    sum_bytes: int


def place(tensors: Sequence[Lifetime], *, alignment: int = 1) -> Placement:
    """Place tensors in one block so that none that live at the same step overlap.

    The largest first, each in the smallest gap that holds it. Source: Y. Pisarchyk, J. Lee,
    arXiv:2001.03288.

    >>> place([Lifetime(4, 0, 1), Lifetime(2, 1, 2), Lifetime(3, 2, 3)]).peak_bytes
    6
    """
    given = [asdict(tensor) for tensor in all_of("tensors", tensors, Lifetime)]
    return made(Placement, ask("place", [given, integer("alignment", alignment, 1, 2**30)]))


@dataclass
class Device:
    """The stages of one device of a pipeline.

    Attributes:
        first, last: its stages, counted from 1.
        time: of forward and backward of a micro-batch, in the unit of the chain.
        in_flight: micro-batches whose activations it holds at a time.
        bytes: of states and of the activations in flight.
        sent_bytes: that it sends for a micro-batch.
    """

    first: int
    last: int
    time: float
    in_flight: int
    bytes: int
    sent_bytes: int


@dataclass
class Split:
    """A chain cut for several devices.

    Attributes:
        devices: in order.
        time: of a step without transfers, in the unit of the chain.
        bubble: the part of the time in which a device waits, were all equally fast.
    """

    devices: list[Device]
    time: float
    bubble: float


def split(
    chain: Chain,
    devices: int,
    micro_batches: int,
    *,
    state_bytes: Sequence[int] | None = None,
    schedule: Literal["1f1b", "gpipe"] = "1f1b",
    limit: int | str | None = None,
) -> Split:
    """Cut a chain, whose figures are those of one micro-batch, for a pipeline of devices.

    Args:
        chain: the stages.
        devices: how many devices.
        micro_batches: how many micro-batches a step has.
        state_bytes: parameters, gradients and optimizer of each stage; by default none.
        schedule: "1f1b", or "gpipe", which holds all micro-batches.
        limit: bytes that no device may exceed; by default unlimited.

    >>> stage = tg.training.Stage(output_bytes=10, saved_bytes=90, forward_time=1, backward_time=2)
    >>> found = split(Chain([stage] * 8), 4, 12)
    >>> [d.last for d in found.devices], found.bubble
    ([2, 4, 6, 8], 0.2)
    """
    kind = choice("schedule", schedule, ("1f1b", "gpipe"))
    request = {
        "chain": one_of("chain", chain, Chain).request(),
        "state_bytes": [0] * len(chain.stages) if state_bytes is None else integers("state_bytes", state_bytes, 0),
        "devices": integer("devices", devices, 1, 2**16),
        "micro_batches": integer("micro_batches", micro_batches, 1),
        "pipelining": "gpipe" if kind == "gpipe" else "one_forward_one_backward",
        "limit_bytes": None if limit is None else size_of(limit),
    }
    answer = ask("split", request)
    return Split([Device(**device) for device in answer["devices"]], answer["time"], answer["bubble"])


@dataclass
class Way:
    """A way to divide a step among devices.

    Attributes:
        name: of the way.
        torch: the part of torch that runs it.
        fits: whether each device has the memory.
        bytes: what a device holds: the peak; where nothing fits, the least of any plan, or for a
            pipeline the fastest cut's.
        sent_bytes: what a device sends in a step.
        time: of a step in the unit of the profile, where it fits.
        words: what the way does, or what does not fit.
    """

    name: Literal["data", "zero1", "sharded", "tensor", "pipeline"]
    torch: str
    fits: bool
    bytes: int
    sent_bytes: int
    time: float | None
    words: str


def compare(
    profile: Profile,
    devices: int,
    *,
    memory: int | str,
    link: float | str,
    latency: float = 0.0,
    micro_batches: int | None = None,
) -> list[Way]:
    """Compare ways to divide a step, the fastest that fits first.

    Args:
        profile: the step; its batch is that of all devices together.
        devices: how many devices, all alike.
        memory: the memory of one.
        link: bytes that one sends in a unit of the profile's time.
        latency: time until a message arrives, in the same unit.
        micro_batches: the most of each way, as in `plan`, and those of a pipeline; by default four
            for each device there.
    """
    most = None if micro_batches is None else integer("micro_batches", micro_batches, 1, 2**16)
    cluster = {
        "devices": integer("devices", devices, 1, 2**16),
        "memory_bytes": size_of(memory),
        "link_bytes": float(size_of(link)) if isinstance(link, str) else positive("link", link),
        "latency": number("latency", latency, 0, MOST),
        "micro_batches": most,
    }
    ways = ask(
        "compare", [one_of("profile", profile, Profile).request(), cluster, {**NO_LIMITS, "micro_batches": most}]
    )
    return [made(Way, way) for way in ways]
