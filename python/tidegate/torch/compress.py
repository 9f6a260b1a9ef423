"""Activations in fewer bytes between forward and backward, by hooks on saved tensors.

Flow: what autograd saves -> 8-bit codes, bfloat16 or the largest values -> what backward gets.
Memory: codes and scales are tensors of torch; a tensor that two operations save is kept once.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tidegate import _tidegate
from tidegate.errors import ConfigError
from tidegate.options import choice, integer, number, refused
from tidegate.torch.live import storage_bytes, storage_key

__all__ = ["Compress", "Packer", "compress_of", "packer_of"]

FORMS = ("int8", "bf16", "topk")
ROUNDINGS = ("nearest", "stochastic")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Smaller tensors stay as they are: they hold nothing of note.
LEAST_VALUES = 1024


@dataclass
class Compress:
    """How activations are kept until backward.

    Gradients are then not those of the plain step; `docs/training.md` says how far they are away.

    Attributes:
        form: "int8" takes 1 byte a value and 8 a block; "bf16" 2 bytes a value; "topk" 8 bytes for
            each value that is kept, the others count as 0, which is biased.
        block: for "int8", consecutive values that share a scale; by default 256.
        rounding: for "int8", "nearest" or "stochastic", which is right in the mean.
        ratio: for "topk", the part of the values that is kept; by default 0.1.
        seed: for "stochastic".

    >>> Compress("int8", block=64).bytes_of(6400)
    7200
    """

    form: Literal["int8", "bf16", "topk"] = "int8"
    block: int = 256
    rounding: Literal["nearest", "stochastic"] = "nearest"
    ratio: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        self.form = choice("form", self.form, FORMS)  # type: ignore[assignment]
        self.block = integer("block", self.block, 8, 2**20)
        self.rounding = choice("rounding", self.rounding, ROUNDINGS)  # type: ignore[assignment]
        self.ratio = number("ratio", self.ratio, 0, 0.5)
        self.seed = integer("seed", self.seed, 0, 2**63 - 1)

    def bytes_of(self, values: int) -> int:
        """Return the bytes of a number of float32 values."""
        if self.form == "int8":
            return values + 8 * -(-values // self.block)
        return 2 * values if self.form == "bf16" else 8 * self.kept(values)

    def kept(self, values: int) -> int:
        """Return how many of the values "topk" keeps."""
        return max(1, round(values * self.ratio))


def compress_of(given: Any) -> Compress | None:
    """Return what `compress=` says: None, a `Compress`, or the name of a form."""
    if given is None or isinstance(given, Compress):
        return given
    if not isinstance(given, str):
        raise refused("compress", given, 'None, "int8", "bf16" or a Compress')
    return Compress(choice("compress", given, FORMS))  # type: ignore[arg-type]


def codes_on_device(tensor: torch.Tensor, how: Compress) -> tuple[torch.Tensor, ...] | None:
    """Return the codes of blocks, and the scale and the least value of each; on any device."""
    values = tensor.to(torch.float32).reshape(-1)
    blocks = torch.nn.functional.pad(values, (0, -values.numel() % how.block)).view(-1, how.block)
    low, high = blocks.aminmax(dim=1, keepdim=True)
    scale = (high - low) / 255
    if not bool(torch.isfinite(scale).all()):
        return None
    places = (blocks - low) / torch.where(scale > 0, scale, 1)
    if how.rounding == "stochastic":
        # A generator of its own: the default one belongs to dropout.
        places += torch.rand(places.shape, device=places.device, generator=_generator(places.device, how.seed)) - 0.5
    codes = places.round_().clamp_(0, 255)
    # Code 0 stands for 0 there: the gradient of a ReLU is 0 where its output is.
    codes = torch.where((low == 0) & (blocks > 0), codes.clamp_min(1), codes)
    return codes.to(torch.uint8), torch.cat([scale, low], 1)


@functools.lru_cache(maxsize=8)
def _generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed % 2**63)


@dataclass
class _AsItIs:
    """A tensor that is not compressed; it must not have changed when backward uses it."""

    tensor: torch.Tensor
    version: int


@dataclass
class _Packed:
    """A tensor in its form."""

    parts: tuple[torch.Tensor, ...]
    shape: torch.Size
    dtype: torch.dtype


class Packer:
    """Hooks that compress what is saved within `hooks`, parameters and buffers excepted.

    Attributes:
        steps: how many tensors were rounded so far; the random numbers follow from it.
    """

    def __init__(self, how: Compress, excepted: Iterable[torch.Tensor] = ()) -> None:
        self.how = how
        self.steps = 0
        self._excepted = {storage_key(tensor) for tensor in excepted}
        # What was packed, by what it was: the entry goes with the storage, whose address is given
        # to another tensor then.
        self._known: dict[int, dict[Any, weakref.ref[_Packed]]] = {}
        # Bytes of what was left as it is and is not excepted, by storage; only while it is noted.
        self._left: dict[int, int] | None = None

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Compress what is saved within."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield

    @contextlib.contextmanager
    def noting(self) -> Iterator[dict[int, int]]:
        """Note the storages that are kept as they are, and their bytes."""
        self._left = {}
        try:
            yield self._left
        finally:
            self._left = None

    def _pack(self, tensor: torch.Tensor) -> Any:
        key = storage_key(tensor) if tensor.layout == torch.strided else 0
        dtypes = FLOATS[:1] if self.how.form == "bf16" else FLOATS
        taken = tensor.dtype in dtypes and tensor.numel() >= LEAST_VALUES and key != 0
        packed = self._shared(tensor, key) if taken and key not in self._excepted else None
        if packed is not None:
            return packed
        if self._left is not None and key and key not in self._excepted:
            self._left[key] = storage_bytes(tensor)
        # Detached: an output that its own operation saves would hold itself otherwise.
        return _AsItIs(tensor.detach(), tensor._version)

    def _shared(self, tensor: torch.Tensor, key: int) -> _Packed | None:
        """Return a tensor's packed form, of which there is one however many operations save it."""
        view = tensor.storage_offset(), tensor.shape, tensor.stride(), tensor._version
        if (known := self._known.get(key)) is None:
            known = self._known[key] = {}
            weakref.finalize(tensor.untyped_storage(), self._known.pop, key, None).atexit = False
        found = known[view]() if view in known else None
        if found is None and (found := self._packed(tensor.detach())) is not None:
            known[view] = weakref.ref(found)
        return found

    def _packed(self, tensor: torch.Tensor) -> _Packed | None:
        """Return a tensor in its form; None where that has no place for its values."""
        if self.how.form == "bf16":
            parts: tuple[torch.Tensor, ...] | None = (tensor.to(torch.bfloat16),)
        elif self.how.form == "topk":
            parts = self._largest(tensor.reshape(-1))
        else:
            parts = self._codes(tensor)
        return None if parts is None else _Packed(parts, tensor.shape, tensor.dtype)

    def _largest(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        places = values.abs().topk(self.how.kept(values.numel()), sorted=False).indices
        return values[places], places.to(torch.int32)

    def _codes(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
        self.steps += 1
        if tensor.device.type != "cpu":
            return codes_on_device(tensor, self.how)
        values = tensor.to(torch.float32).contiguous().view(-1)
        count = values.numel()
        codes = torch.empty(count, dtype=torch.uint8)
        grids = torch.empty(2 * -(-count // self.how.block), dtype=torch.float32)
        seed = (self.how.seed + 0x9E3779B97F4A7C15 * self.steps) % 2**64
        random = seed if self.how.rounding == "stochastic" else None
        done = _tidegate.pack_blocks(values.numpy(), self.how.block, random, codes.numpy(), grids.numpy())
        return (codes, grids) if done else None

    def _unpack(self, kept: Any) -> torch.Tensor:
        if isinstance(kept, _AsItIs):
            if kept.tensor._version != kept.version:
                raise ConfigError(
                    "a tensor that backward needs was written to after forward: the operation that did it, such as "
                    "x += 1, has to make a new tensor"
                )
            return kept.tensor
        return self._values(kept).view(kept.shape).to(kept.dtype)

    def _values(self, kept: _Packed) -> torch.Tensor:
        """Return what backward gets, flat."""
        if self.how.form == "bf16":
            return kept.parts[0]
        first, second = kept.parts
        values = torch.zeros(kept.shape.numel(), dtype=torch.float32, device=first.device)
        if self.how.form == "topk":
            values[second.long()] = first.float()
        elif first.device.type != "cpu":
            values = (first.float() * second[:, :1] + second[:, 1:]).view(-1)[: values.numel()]
        else:
            codes, grids = first, second
            _tidegate.unpack_blocks(codes.numpy(), self.how.block, grids.numpy(), values.numpy())
        return values


def packer_of(how: Compress, model: torch.nn.Module) -> Packer:
    """Return the hooks for a model, whose parameters and buffers stay as they are."""
    norms = [type(module).__name__ for module in model.modules() if "norm" in type(module).__name__.lower()]
    if how.form == "topk" and norms:
        raise ConfigError(
            f'compress="topk": backward of {norms[0]} takes all values that were saved, and gradients would be wrong '
            'by more than they are large: take "int8"'
        )
    return Packer(how, [*model.parameters(), *model.buffers()])
