"""Numbers as codes of 2 to 8 bits, with the grids that turn them back.

>>> import numpy as np
>>> from tidegate.quantize import quantize
>>> x = np.linspace(-1, 1, 4096, dtype="float32").reshape(64, 64)
>>> small = quantize(x, bits=4, per=("block", 128))
>>> small.nbytes, round(small.fidelity(x)["bits_per_value"], 2)
(2304, 4.5)
>>> bool(abs(small.dequantize() - x).max() < 0.003)
True
"""

from __future__ import annotations

import json
from typing import Any, Literal, Self, TypedDict

import numpy as np
import numpy.typing as npt

from tidegate import _tidegate
from tidegate.errors import ConfigError

__all__ = ["Calibrator", "Fidelity", "Quantized", "quantize"]

Scheme = Literal["affine", "symmetric", "offset"]
Range = Literal["whole", "best"]
Per = Literal["tensor", "row"] | tuple[Literal["channel", "block"], int]


class Fidelity(TypedDict):
    """How far codes are from what they stand for."""

    sqnr_db: float
    largest_error: float
    bias: float
    bits_per_value: float


def _flat(x: npt.ArrayLike) -> tuple[npt.NDArray[np.float32], tuple[int, ...]]:
    values = np.asarray(x)
    if np.iscomplexobj(values):
        raise ConfigError("complex numbers: quantize their parts apart")
    return np.ascontiguousarray(values, dtype=np.float32).reshape(-1), values.shape


class Quantized:
    """Codes with their grids; made by `quantize`, or read by `from_bytes`."""

    def __init__(self, inner: _tidegate.Quantized) -> None:
        self._inner = inner

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values."""
        return tuple(self._inner.shape)

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self._inner.bits

    @property
    def nbytes(self) -> int:
        """Bytes of codes and grids."""
        return self._inner.held_bytes

    @property
    def codes(self) -> npt.NDArray[np.uint8]:
        """The codes, packed: the lowest bits of a byte first."""
        return self._inner.codes()

    @property
    def grids(self) -> npt.NDArray[np.float32]:
        """(scale, zero, base) of each group: code q stands for (q - zero) * scale + base."""
        return self._inner.grids().reshape(-1, 3)

    def dequantize(self, dtype: npt.DTypeLike = "float32") -> npt.NDArray[Any]:
        """Return the values as float32, float16 or bfloat16 (of `ml_dtypes`)."""
        wanted = np.dtype(dtype)
        values = self._inner.dequantize(wanted.name).view(wanted.newbyteorder("="))
        return values.reshape(self.shape).astype(wanted, copy=False)

    def fidelity(self, x: npt.ArrayLike) -> Fidelity:
        """Return how far the codes are from what they were made of: SQNR in dB, errors, bits a value with grids."""
        values, shape = _flat(x)
        if shape != self.shape:
            raise ConfigError(f"an array of {shape} beside codes of {self.shape}")
        sqnr_db, largest_error, bias, bits = self._inner.fidelity(values)
        return {"sqnr_db": sqnr_db, "largest_error": largest_error, "bias": bias, "bits_per_value": bits}

    def to_bytes(self) -> bytes:
        """Return the bytes that a quantized column of a shard holds."""
        return self._inner.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` returned. Raises DataError for bytes that are cut short or something else."""
        return cls(_tidegate.Quantized.of(data))

    def __repr__(self) -> str:
        return f"Quantized({self.shape}, bits={self.bits}, nbytes={self.nbytes})"


class Calibrator:
    """Sees values pass by, and says what grids suit them: one for all, or one for each index of an axis (`channel`).

    `range="best"` keeps a histogram of 128 KiB a channel and leaves the least mean square error; "whole" goes from the
    least value to the largest.
    """

    def __init__(
        self,
        bits: int = 8,
        *,
        scheme: Scheme = "affine",
        range: Range = "whole",
        channel: int | None = None,
        channels: int | None = None,
    ) -> None:
        if (channel is None) != (channels is None):
            raise ConfigError("give both channel, the axis, and channels, how many it has, or neither")
        channels = 1 if channels is None else channels
        self.bits, self.scheme, self.range, self.channel, self.channels = bits, scheme, range, channel, channels
        self._inner = _tidegate.Calibrator(bits, json.dumps(scheme), json.dumps(range), channels)

    def observe(self, x: npt.ArrayLike) -> None:
        """See more values. Raises DataError for NaN and infinities, which no range can hold."""
        values, shape = _flat(x)
        inner = values.size
        if self.channel is not None:
            if not 0 <= self.channel < len(shape) or shape[self.channel] != self.channels:
                raise ConfigError(f"an array of {shape} for {self.channels} channels along axis {self.channel}")
            inner = int(np.prod(shape[self.channel + 1 :]))
        self._inner.observe(values, inner)

    @property
    def grids(self) -> npt.NDArray[np.float32]:
        """(scale, zero, base) of each channel."""
        return self._inner.grids().reshape(-1, 3)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return self._inner.held_bytes

    def quantize(self, x: npt.ArrayLike, *, stochastic: int | None = None) -> Quantized:
        """Quantize by the grids of what was seen; what lies beyond becomes their ends."""
        per: Per = "tensor" if self.channel is None else ("channel", self.channel)
        return _quantized(x, self.bits, self.scheme, per, self.range, stochastic, self._inner.grids())


def quantize(
    x: npt.ArrayLike,
    bits: int = 8,
    *,
    scheme: Scheme = "offset",
    per: Per = "tensor",
    range: Range = "whole",
    stochastic: int | None = None,
) -> Quantized:
    """Quantize an array by grids of its own range.

    `scheme`: "affine" and "symmetric" have a code for 0, as arithmetic needs it; "offset" spends none on it, which is
    closest for storage. `per`: "tensor", "row", ("channel", axis) or ("block", values). `range="best"` cuts off what
    leaves the least mean square error. `stochastic` is the seed of rounding either way, right on average.

    Raises DataError for NaN and infinities, with their place; ConfigError for bits but 2 to 8.
    """
    return _quantized(x, bits, scheme, per, range, stochastic, None)


def _quantized(
    x: npt.ArrayLike,
    bits: int,
    scheme: Scheme,
    per: Per,
    range: Range,
    stochastic: int | None,
    grids: npt.NDArray[np.float32] | None,
) -> Quantized:
    values, shape = _flat(x)
    for name, number in (("bits", bits), ("stochastic", stochastic)):
        if number is not None and (not isinstance(number, int | np.integer) or number < 0):
            raise ConfigError(f"{name}={number!r}: give a whole number from 0 on")
    if range not in ("whole", "best"):
        raise ConfigError(f'range={range!r}: give "whole" or "best"; for other ends, see Calibrator')
    if not isinstance(per, str):
        kind, of = per
        # As NumPy counts axes.
        per = (kind, of + len(shape) if kind == "channel" and -len(shape) <= of < 0 else of)
        if per[1] < 0:
            raise ConfigError(f"{kind} {of} of an array of {shape}")
    options = {
        "bits": int(bits),
        "scheme": scheme,
        "per": per if isinstance(per, str) else {per[0]: per[1]},
        "extent": range,
        "rounding": "nearest" if stochastic is None else {"stochastic": int(stochastic)},
    }
    return Quantized(_tidegate.Quantized(values, list(shape), json.dumps(options), grids))
