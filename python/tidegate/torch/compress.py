"""Activations in fewer bytes between forward and backward, by hooks on saved tensors.

Flow: what autograd saves -> 8-bit codes, bfloat16 or the largest values -> what backward gets.
Memory: codes and scales are tensors of torch; a tensor that two operations save is kept once.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tidegate import _tidegate
from tidegate.errors import ConfigError
from tidegate.options import choice, integer, number, refused
from tidegate.torch.live import storage_bytes, storage_key

__all__ = ["Compress", "Packer", "compress_of"]

FORMS = ("int8", "bf16", "topk")
ROUNDINGS = ("nearest", "stochastic")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Smaller tensors stay as they are: their scales would take as much.
LEAST_VALUES = 16
# What is nearly 0; as in `tidegate_array::quantize::blocks`.
TINY = 2.0**-63


@dataclass
class Compress:
    """How activations are kept until backward.

    Gradients are then not those of the plain step: `docs/training.md` says how far they are away.
    "topk" fits layers whose backward is a product with what was saved, and little else.

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
        self.ratio = number("ratio", self.ratio, 1e-6, 0.5)
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


def codes_on_device(tensor: torch.Tensor, block: int, seed: int | None) -> tuple[torch.Tensor, ...] | None:
    """Return the codes of blocks, and two numbers of each; on any device.

    They are those of the Rust kernel up to rounding: see `tidegate_array::quantize::blocks`.
    """
    values = tensor.to(torch.float32).reshape(-1)
    blocks = torch.cat([values, values[-1:].expand(-values.numel() % block)]).view(-1, block)
    low, high = blocks.aminmax(dim=1, keepdim=True)
    if not bool(torch.isfinite(high - low).all()):
        return None
    around = (low <= 0) & (high >= 0)
    scale = (high - low) / torch.where(around, 252.0, 255.0)
    scale = torch.where(around, scale.clamp_min(TINY), scale)
    second = torch.where(around, torch.where(low < 0, (-low / scale).round() + 1, 0.0), low)
    places = torch.where(around, blocks, blocks - low) / torch.where(scale > 0, scale, 1)
    if seed is not None:
        # A generator of its own: the default one belongs to dropout.
        generator = torch.Generator(places.device).manual_seed(seed % 2**63)
        drawn = torch.rand(places.shape, device=places.device, generator=generator)
        steps = torch.minimum((places.abs() + drawn).floor(), places.abs().ceil()).copysign(places)
    else:
        steps = places.round()
    codes = (steps + torch.where(around, second + blocks.sign(), 0.0)).clamp_(0, 255)
    return codes.to(torch.uint8), torch.cat([torch.where(around, -scale, scale), second], 1)


def values_on_device(codes: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """Return the values of codes in blocks; on any device."""
    scale, second = grids[:, :1], grids[:, 1:]
    numbers = codes.float()
    steps = numbers - second
    around = ((steps.abs() - 1) * -scale).clamp_min(TINY).copysign(steps) * (steps != 0)
    return torch.where(scale < 0, around, numbers * scale + second)


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

    Args:
        how: the form.
        model: whose parameters and buffers stay as they are.

    Attributes:
        steps: how many tensors were rounded so far; the random numbers follow from it.
    """

    def __init__(self, how: Compress, model: torch.nn.Module | None = None) -> None:
        self.how = how
        self.steps = 0
        self._model = model
        self._excepted: set[int] = set()
        # What was packed, by what it was: the entry goes with the storage, whose address is given
        # to another tensor then.
        self._known: dict[int, weakref.WeakValueDictionary[Any, _Packed]] = {}
        # Bytes of what was left as it is and is not excepted, by storage; only while it is noted.
        self._left: dict[int, int] | None = None

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Compress what is saved within."""
        if self._model is not None:
            # Again each time: `load_state_dict(assign=True)` gives a model other parameters.
            tensors = [*self._model.parameters(), *self._model.buffers()]
            self._excepted = {storage_key(tensor) for tensor in tensors if tensor.layout == torch.strided}
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
        plain = tensor.layout == torch.strided and not tensor.is_nested
        key = storage_key(tensor) if plain else 0
        packed = self._shared(tensor, key) if plain and key not in self._excepted and self._pays(tensor) else None
        if packed is not None:
            return packed
        if self._left is not None and plain and key not in self._excepted:
            self._left[key] = storage_bytes(tensor)
        # Detached: an output that its own operation saves would hold itself otherwise.
        return _AsItIs(tensor.detach(), tensor._version)

    def _pays(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is taken: vectors are statistics, of rows or of channels."""
        if tensor.dtype not in FLOATS or tensor.numel() < LEAST_VALUES or tensor.dim() < 2 or tensor.shape[-1] == 1:
            return False
        return self.how.bytes_of(tensor.numel()) < min(tensor.numel() * tensor.element_size(), storage_bytes(tensor))

    def _shared(self, tensor: torch.Tensor, key: int) -> _Packed | None:
        """Return a tensor's packed form, of which there is one however many operations save it."""
        place = tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor.is_neg(), tensor._version
        if (known := self._known.get(key)) is None:
            known = self._known[key] = weakref.WeakValueDictionary()
            weakref.finalize(tensor.untyped_storage(), self._known.pop, key, None).atexit = False
        found = known.get(place)
        if found is None and (found := self._packed(tensor.detach())) is not None:
            known[place] = found
        return found

    def _packed(self, tensor: torch.Tensor) -> _Packed | None:
        """Return a tensor in its form; None where that has no place for its values."""
        parts: tuple[torch.Tensor, ...] | None
        if self.how.form == "int8":
            parts = self._codes(tensor)
        else:
            low = self.how.form == "bf16"
            parts = (tensor.to(torch.bfloat16),) if low else self._largest(tensor.reshape(-1))
            # A sum is not finite where a value is not, and makes no other tensor of that size.
            if not bool(torch.isfinite((parts[0] if low else tensor).sum(dtype=torch.float32))):
                parts = None
        return None if parts is None else _Packed(parts, tensor.shape, tensor.dtype)

    def _largest(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        places = values.abs().topk(self.how.kept(values.numel()), sorted=False).indices
        return values[places], places.to(torch.int32 if values.numel() < 2**31 else torch.int64)

    def _codes(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
        self.steps += 1
        seed = None
        if self.how.rounding == "stochastic":
            seed = (self.how.seed + 0x9E3779B97F4A7C15 * self.steps) % 2**64
        if tensor.device.type != "cpu":
            return codes_on_device(tensor, self.how.block, seed)
        values = tensor.to(torch.float32).contiguous().view(-1)
        if values.data_ptr() % 4:
            values = values.clone()
        count = values.numel()
        codes = torch.empty(count, dtype=torch.uint8)
        grids = torch.empty(2 * -(-count // self.how.block), dtype=torch.float32)
        done = _tidegate.pack_blocks(values.numpy(), self.how.block, seed, codes.numpy(), grids.numpy())
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
            values = values_on_device(first, second).view(-1)[: values.numel()]
        else:
            codes, grids = first, second
            _tidegate.unpack_blocks(codes.numpy(), self.how.block, grids.numpy(), values.numpy())
        return values
