"""Gradients between ranks as their largest entries: a communication hook of torch's DDP.

Flow: a bucket of gradients + what was not sent before -> the largest entries, their places as gaps
-> all ranks -> the mean.
Memory: what was not sent, as large as the gradients; with momentum correction twice that.
"""

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.utils.weak import WeakIdKeyDictionary

from tidegate.errors import ConfigError, StateError
from tidegate.options import choice, flag, integer, number, refused

__all__ = ["TopKState", "decoded", "encoded", "topk_hook"]

VALUES = ("int8", "float16", "float32")
# Values that share a scale.
BLOCK = 256
# A byte of a gap has 7 bits of it; its highest bit says that more follow.
BITS, MORE = 7, 128
# The part that is sent falls to a quarter in each part of the warm-up.
FIRST, PARTS = 0.25, 5


# By parameter, as long as it lives: DDP puts them into other buckets after the first step.
Kept = MutableMapping[torch.Tensor, torch.Tensor]


@dataclass
class Chosen:
    """What a rank sends of a bucket, as bytes, of how many entries; and what it keeps."""

    payload: torch.Tensor
    count: int
    unsent: torch.Tensor | None
    velocity: torch.Tensor | None


class TopKState:
    """What `topk_hook` keeps from step to step.

    Each rank sends the largest entries of its gradients. What it does not send, and what rounding
    takes off, is added to the next step's (error feedback). Source: Y. Lin et al., Deep Gradient
    Compression, arXiv:1712.01887.

    A gradient that is not finite is sent as it is, for a GradScaler to see, and changes nothing
    here. With a GradScaler what was not sent is in its units: a change of the scale weighs it
    wrongly. `find_unused_parameters=True` loses what was sent of a parameter that no rank used.

    Args:
        ratio: the part of the entries that is sent.
        values: "int8" with a scale for 256 values, "float16" or "float32".
        momentum: momentum correction: the momentum is applied here, before entries are chosen, and
            the optimizer has to be SGD without momentum. By default 0, which leaves the momentum to
            the optimizer.
        warm_up: steps in which the part falls from 1/4 to `ratio`.
        error_feedback: False forgets what was not sent, which is worse; for comparisons.
        group: the process group; by default the whole world.

    Attributes:
        sent_bytes: what this rank has sent, sizes and scales too.
        dense_bytes: what a ring of all-reduce would have sent instead.
        steps: steps so far.

    >>> state = TopKState(ratio=0.01)
    >>> # model = DistributedDataParallel(net); model.register_comm_hook(state, topk_hook)
    >>> round(state.part(), 3)
    0.01
    """

    def __init__(
        self,
        ratio: float = 0.01,
        values: Literal["int8", "float16", "float32"] = "int8",
        *,
        momentum: float = 0.0,
        warm_up: int = 0,
        error_feedback: bool = True,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.ratio = number("ratio", ratio, 0, 1)
        if self.ratio == 0:
            raise ConfigError("ratio=0: nothing would be sent")
        self.values = choice("values", values, VALUES)
        self.momentum = number("momentum", momentum, 0, 1)
        self.warm_up = integer("warm_up", warm_up, 0)
        self.error_feedback = flag("error_feedback", error_feedback)
        self.group = group
        self.sent_bytes = self.dense_bytes = self.steps = 0
        self._unsent: Kept = WeakIdKeyDictionary()
        self._velocity: Kept = WeakIdKeyDictionary()

    def part(self) -> float:
        """Return the part of the entries that this step sends."""
        if self.steps >= self.warm_up:
            return self.ratio
        return max(self.ratio, FIRST ** (1 + self.steps * PARTS // self.warm_up))

    def chosen(self, gradient: torch.Tensor, parameters: Sequence[torch.Tensor]) -> Chosen:
        """Return what a rank sends of a bucket, and what it keeps of it."""
        total, velocity = gradient, None
        if self.momentum:
            total = velocity = _kept(self._velocity, parameters).mul_(self.momentum).add_(gradient)
        if self.error_feedback:
            total = _kept(self._unsent, parameters).add_(total)
        count = max(1, round(total.numel() * self.part()))
        places = total.abs().topk(count, sorted=False).indices.sort().values
        payload = encoded(places, total[places], self.values)
        if not bool(torch.isfinite(gradient).all()):
            return Chosen(payload, count, None, None)
        if self.error_feedback:
            total[places] -= decoded(payload, count, self.values, total.dtype)[1]
        if velocity is not None:
            # What was sent has its momentum in it.
            velocity[places] = 0
        return Chosen(payload, count, total if self.error_feedback else None, velocity)

    def keep(self, chosen: Chosen, parameters: Sequence[torch.Tensor]) -> None:
        """Keep what was not sent, once the rest has arrived."""
        for kept, values in ((self._unsent, chosen.unsent), (self._velocity, chosen.velocity)):
            if values is not None:
                pieces = torch.split(values, [p.numel() for p in parameters])
                kept.update(zip(parameters, pieces, strict=True))

    def state_dict(self, parameters: Iterable[torch.Tensor]) -> dict[str, Any]:
        """Return what a resumed run needs, in the order of the model's parameters."""
        order = list(parameters)
        kept = {"unsent": self._unsent, "velocity": self._velocity}
        return {"steps": self.steps, **{name: [of.get(p) for p in order] for name, of in kept.items()}}

    def load_state_dict(self, state: Mapping[str, Any], parameters: Iterable[torch.Tensor]) -> None:
        """Go on where a state was saved, with the same parameters."""
        order = list(parameters)
        try:
            steps = integer("steps", state["steps"], 0)
            pairs = [list(zip(order, state[name], strict=True)) for name in ("unsent", "velocity")]
            fits = all(value is None or value.numel() == p.numel() for all_of in pairs for p, value in all_of)
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise StateError(f"this is not the state of a TopKState ({error!r})") from None
        if not fits:
            raise StateError("the state is of parameters of other sizes")
        self.steps = steps
        for kept, all_of in zip((self._unsent, self._velocity), pairs, strict=True):
            kept.clear()
            kept.update((p, value.to(p.device)) for p, value in all_of if value is not None)


def _kept(kept: Kept, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return what is kept of some parameters, in one vector."""
    return torch.cat([kept[p] if p in kept else p.new_zeros(p.numel()) for p in parameters])


def encoded(places: torch.Tensor, values: torch.Tensor, form: str) -> torch.Tensor:
    """Return bytes of entries: values, then the gaps between ascending places, 7 bits a byte."""
    if form == "int8":
        blocks = torch.nn.functional.pad(values.float(), (0, -values.numel() % BLOCK)).view(-1, BLOCK)
        scale = blocks.abs().amax(1, keepdim=True) / 127
        codes = (
            (blocks / torch.where(scale > 0, scale, 1))
            .round_()
            .clamp_(-127, 127)
            .to(torch.int8)
            .view(-1)[: values.numel()]
        )
        head = torch.cat([scale.view(-1).view(torch.uint8), codes.view(torch.uint8)])
    else:
        kind = getattr(torch, form)
        most = torch.finfo(kind).max
        head = torch.where(values.isfinite(), values.clamp(-most, most), values).to(kind).view(torch.uint8)
    gaps = torch.diff(places, prepend=places.new_full((1,), -1)) - 1
    lengths = sum(((gaps >= 1 << (BITS * n)).long() for n in range(1, 5)), torch.ones_like(gaps))
    ends = lengths.cumsum(0)
    coded = torch.zeros(int(ends[-1]), dtype=torch.uint8, device=places.device)
    for n in range(int(lengths.max())):
        has = lengths > n
        digit = (gaps[has] >> (BITS * n)) & (MORE - 1)
        more = torch.where(lengths[has] > n + 1, MORE, 0)
        coded[(ends - lengths)[has] + n] = (digit + more).to(torch.uint8)
    return torch.cat([head, coded])


def decoded(payload: torch.Tensor, count: int, form: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places and the values of entries."""
    if form == "int8":
        blocks = -(-count // BLOCK)
        scale, codes, coded = torch.split(payload, [4 * blocks, count, payload.numel() - 4 * blocks - count])
        scales = scale.clone().view(torch.float32).repeat_interleave(BLOCK)[:count]
        values = (codes.view(torch.int8).float() * scales).to(dtype)
    else:
        kind = getattr(torch, form)
        head, coded = torch.split(payload, [count * kind.itemsize, payload.numel() - count * kind.itemsize])
        values = head.clone().view(kind).to(dtype)
    last = coded < MORE
    number = last.cumsum(0) - last.long()
    begins = torch.cat([last.new_ones(1), last[:-1]]).nonzero().view(-1)
    digits = torch.arange(coded.numel(), device=coded.device) - begins[number]
    gaps = torch.zeros(count, dtype=torch.long, device=coded.device)
    gaps.scatter_add_(0, number, (coded.long() & (MORE - 1)) << (BITS * digits))
    return (gaps + 1).cumsum(0) - 1, values


def topk_hook(
    state: TopKState,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket over all ranks by its largest entries; see `TopKState`.

    Use it as torch's own hooks: `model.register_comm_hook(TopKState(0.01), topk_hook)`.
    """
    if not isinstance(state, TopKState):
        raise refused("state", state, "a TopKState")
    kind: Any = getattr(dist, "GradBucket", object)
    if not isinstance(bucket, kind):
        raise refused("bucket", bucket, "a bucket of DistributedDataParallel, which calls this")
    group = state.group if state.group is not None else dist.group.WORLD
    ranks = dist.get_world_size(group)
    gradient = bucket.buffer()
    if not gradient.is_floating_point() or gradient.layout != torch.strided:
        raise ConfigError(f"gradients of {gradient.dtype}, {gradient.layout}: top-k takes dense floats")
    parameters = bucket.parameters()
    chosen = state.chosen(gradient, parameters)
    payload, count = chosen.payload, chosen.count
    size = torch.tensor([payload.numel()], device=payload.device)
    sizes = [torch.zeros_like(size) for _ in range(ranks)]
    dist.all_gather(sizes, size, group=group)
    most = int(max(sizes))
    padded = torch.nn.functional.pad(payload, (0, most - payload.numel()))
    payloads = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(payloads, padded, group=group)
    # In a ring each rank passes on what it has to every other one.
    state.sent_bytes += (ranks - 1) * (padded.numel() + 8)
    state.dense_bytes += 2 * (ranks - 1) * gradient.numel() * gradient.element_size() // ranks
    total = torch.zeros_like(gradient)
    for one, length in zip(payloads, sizes, strict=True):
        places, values = decoded(one[: int(length)], count, state.values, gradient.dtype)
        total[places] += values / ranks
    state.keep(chosen, parameters)
    if bucket.is_last():
        state.steps += 1
    found: Any = torch.futures.Future()
    found.set_result(total)
    return found  # type: ignore[no-any-return]
