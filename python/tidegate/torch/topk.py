"""Gradients between ranks as their largest entries: a communication hook of torch's DDP.

Flow: a bucket of gradients + what was not sent before -> the largest entries, their places as gaps
-> all ranks -> the mean.
Memory: what was not sent, as large as the gradients; with momentum correction twice that.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist

from tidegate.errors import ConfigError
from tidegate.options import choice, flag, integer, number

__all__ = ["TopKState", "decoded", "encoded", "topk_hook"]

VALUES = ("int8", "float16", "float32")
# Values that share a scale.
BLOCK = 256
# A byte of a gap has 7 bits of it; its highest bit says that more follow.
BITS, MORE = 7, 128
# The part that is sent falls to a quarter in each part of the warm-up.
FIRST, PARTS = 0.25, 5


class TopKState:
    """What `topk_hook` keeps from step to step.

    Each rank sends the largest entries of its gradients. What it does not send, and what rounding
    takes off, is added to the next step's (error feedback). Source: Y. Lin et al., Deep Gradient
    Compression, arXiv:1712.01887.

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
        steps: buckets that begin a step.

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
        # By parameter: DDP puts them into other buckets after the first step.
        self._unsent: dict[int, torch.Tensor] = {}
        self._velocity: dict[int, torch.Tensor] = {}

    def part(self) -> float:
        """Return the part of the entries that this step sends."""
        if self.steps >= self.warm_up:
            return self.ratio
        return max(self.ratio, FIRST ** (1 + self.steps * PARTS // self.warm_up))

    def _kept(self, kept: dict[int, torch.Tensor], parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return what is kept of some parameters, in one vector."""
        return torch.cat([kept[id(p)] if id(p) in kept else p.new_zeros(p.numel()) for p in parameters])

    def _keep(self, kept: dict[int, torch.Tensor], parameters: Sequence[torch.Tensor], values: torch.Tensor) -> None:
        pieces = torch.split(values, [p.numel() for p in parameters])
        kept.update({id(p): piece for p, piece in zip(parameters, pieces, strict=True)})

    def chosen(self, gradient: torch.Tensor, parameters: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a rank sends of a bucket as bytes, and what arrives of it; keeps the rest."""
        total = gradient
        if self.momentum:
            velocity = self._kept(self._velocity, parameters).mul_(self.momentum).add_(gradient)
            total = velocity
        if self.error_feedback:
            total = self._kept(self._unsent, parameters).add_(total)
        count = max(1, round(total.numel() * self.part()))
        places = total.abs().topk(count, sorted=False).indices.sort().values
        payload = encoded(places, total[places], self.values)
        arrives = decoded(payload, count, self.values, total.dtype)[1]
        if self.error_feedback:
            total[places] -= arrives
            self._keep(self._unsent, parameters, total)
        if self.momentum:
            # What was sent has its momentum in it.
            velocity[places] = 0
            self._keep(self._velocity, parameters, velocity)
        return payload, torch.tensor(count)


def encoded(places: torch.Tensor, values: torch.Tensor, form: str) -> torch.Tensor:
    """Return bytes of entries: values, then the gaps between ascending places, 7 bits a byte."""
    if form == "int8":
        blocks = torch.nn.functional.pad(values.float(), (0, -values.numel() % BLOCK)).view(-1, BLOCK)
        scale = blocks.abs().amax(1, keepdim=True) / 127
        codes = (blocks / torch.where(scale > 0, scale, 1)).round_().to(torch.int8).view(-1)[: values.numel()]
        head = torch.cat([scale.view(-1).view(torch.uint8), codes.view(torch.uint8)])
    else:
        head = values.to(getattr(torch, form)).view(torch.uint8)
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
    group = state.group if state.group is not None else dist.group.WORLD
    ranks = dist.get_world_size(group)
    gradient = bucket.buffer()
    if not gradient.is_floating_point():
        raise ConfigError(f"gradients of {gradient.dtype}: top-k takes floats")
    payload, count = state.chosen(gradient, bucket.parameters())
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
        places, values = decoded(one[: int(length)], int(count), state.values, gradient.dtype)
        total[places] += values
    if bucket.is_last():
        state.steps += 1
    found: Any = torch.futures.Future()
    found.set_result(total.div_(ranks))
    return found  # type: ignore[no-any-return]
