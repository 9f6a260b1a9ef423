"""`quantize`: numbers as codes of 2 to 8 bits, with the grids that turn codes back into numbers.

Flow: float32 values -> a grid for each group -> packed codes -> float32, float16 or bfloat16.
Memory: the codes and grids, outside of any budget.

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
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from tidegate import _tidegate
from tidegate.errors import ConfigError
from tidegate.options import as_array, choice, dtype_of, integer, refused

if TYPE_CHECKING:
    # typing has it from Python 3.11 on; type checkers know this module without an installation.
    from typing_extensions import Self

__all__ = ["Calibrator", "Fidelity", "Quantized", "quantize"]

Scheme = Literal["affine", "symmetric", "offset"]
_SCHEMES = ("affine", "symmetric", "offset")
Range = Literal["whole", "best"]
Per = Literal["tensor", "row"] | tuple[Literal["channel", "block"], int]


class Fidelity(TypedDict):
    """How far codes are from the values they were made of.

    `sqnr_db` is the ratio of signal to quantization noise in dB; `largest_error` and `bias` (the
    mean error) are in units of the values; `bits_per_value` counts codes and grids.
    """

    sqnr_db: float
    largest_error: float
    bias: float
    bits_per_value: float


def _flat(x: npt.ArrayLike) -> tuple[npt.NDArray[np.float32], tuple[int, ...]]:
    values = as_array("x", x)
    if np.iscomplexobj(values):
        raise ConfigError("complex numbers: quantize the real and imaginary parts separately")
    return as_array("x", values, np.float32).reshape(-1), values.shape


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
        """Bits of a code, 2 to 8."""
        return self._inner.bits

    @property
    def nbytes(self) -> int:
        """Bytes of codes and grids."""
        return self._inner.held_bytes

    @property
    def codes(self) -> npt.NDArray[np.uint8]:
        """The codes, packed into bytes: the lowest bits of a byte first."""
        return self._inner.codes()

    @property
    def grids(self) -> npt.NDArray[np.float32]:
        """(scale, zero, base) of each group: code q stands for (q - zero) * scale + base."""
        return self._inner.grids().reshape(-1, 3)

    def dequantize(self, dtype: npt.DTypeLike = "float32") -> npt.NDArray[Any]:
        """Return the values.

        Args:
            dtype: "float32" (default), "float16", or `ml_dtypes.bfloat16`.
        """
        wanted = dtype_of("dtype", dtype)
        choice("dtype", wanted.name, ("float32", "float16", "bfloat16"))
        values = self._inner.dequantize(wanted.name).view(wanted.newbyteorder("="))
        shaped: npt.NDArray[Any] = values.reshape(self.shape).astype(wanted, copy=False)
        return shaped

    def fidelity(self, x: npt.ArrayLike) -> Fidelity:
        """Return how far the codes are from `x`, the values they were made of."""
        values, shape = _flat(x)
        if shape != self.shape:
            raise ConfigError(
                f"an array of shape {shape} for codes of shape {self.shape}: give the array that was quantized"
            )
        sqnr_db, largest_error, bias, bits = self._inner.fidelity(values)
        return {"sqnr_db": sqnr_db, "largest_error": largest_error, "bias": bias, "bits_per_value": bits}

    def to_bytes(self) -> bytes:
        """Return codes, grids and shape as bytes, as a quantized column of a shard holds them."""
        return self._inner.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` returned. Raises DataError for other or incomplete bytes."""
        if not isinstance(data, bytes):
            raise refused("data", data, "bytes, as to_bytes returns")
        return cls(_tidegate.Quantized.of(data))

    def __repr__(self) -> str:
        return f"Quantized({self.shape}, bits={self.bits}, nbytes={self.nbytes})"


class Calibrator:
    """Finds grids from values that come in parts: one for all, or one for each index of an axis.

    Args:
        bits: of a code, 2 to 8; by default 8.
        scheme: as of `quantize`; by default "affine".
        range: "whole" (default): from the least value to the greatest. "best": the range with the
            least mean square error, from a histogram of 128 KiB a channel.
        channel: the axis of the channels; by default one grid for all.
        channels: the length of that axis.

    >>> calibrator = Calibrator(bits=8)
    >>> calibrator.observe([0.0, 1.0])
    >>> calibrator.observe([-1.0])
    >>> calibrator.quantize([0.5]).dequantize().round(1).tolist()
    [0.5]
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
        channels = 1 if channels is None else integer("channels", channels, 1)
        channel = None if channel is None else integer("channel", channel, 0)
        bits = integer("bits", bits, 2, 8)
        choice("scheme", scheme, _SCHEMES)
        choice("range", range, ("whole", "best"))
        self.bits, self.scheme, self.range, self.channel, self.channels = bits, scheme, range, channel, channels
        self._inner = _tidegate.Calibrator(bits, json.dumps(scheme), json.dumps(range), channels)

    def observe(self, x: npt.ArrayLike) -> None:
        """Take more values into account. Raises DataError for NaN and infinities."""
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
        """Bytes that the calibrator holds."""
        return self._inner.held_bytes

    def quantize(self, x: npt.ArrayLike, *, stochastic: int | None = None) -> Quantized:
        """Quantize with the grids found so far; values beyond them become their ends."""
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
    """Quantize an array with grids of its own range.

    Args:
        x: an array of real numbers of any shape.
        bits: of a code, 2 to 8; by default 8.
        scheme: "offset" (default) fits the range closest and suits storage; "affine" and
            "symmetric" have an exact code for 0, which arithmetic needs.
        per: the values that share a grid: "tensor" (default), "row", ("channel", axis) or
            ("block", values).
        range: "whole" (default), or "best": clips to the range with the least mean square error.
        stochastic: a seed for stochastic rounding, which is right on average; by default rounds to
            the nearest code.

    Raises DataError for NaN and infinities, with their place, and ConfigError for options that are
    not valid.
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
    bits = integer("bits", bits, 2, 8)
    if stochastic is not None:
        stochastic = integer("stochastic", stochastic, 0)
    choice("scheme", scheme, _SCHEMES)
    choice("range", range, ("whole", "best"))
    if not isinstance(per, str) or per not in ("tensor", "row"):
        if not isinstance(per, tuple | list) or len(per) != 2 or per[0] not in ("channel", "block"):
            raise refused("per", per, '"tensor", "row", ("channel", axis) or ("block", values)')
        kind, of = per[0], integer("per[1]", per[1], -(2**63))
        # Negative axes count from the end, as in NumPy.
        per = (kind, of + len(shape) if kind == "channel" and -len(shape) <= of < 0 else of)
        if per[1] < 0:
            raise ConfigError(f"{kind} {of} of an array of {shape}")
    options = {
        "bits": bits,
        "scheme": scheme,
        "per": per if isinstance(per, str) else {per[0]: per[1]},
        "extent": range,
        "rounding": "nearest" if stochastic is None else {"stochastic": stochastic},
    }
    return Quantized(_tidegate.Quantized(values, list(shape), json.dumps(options), grids))
