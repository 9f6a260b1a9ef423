"""`pack` and `unpack`: arrays as compressed bytes, without loss or within an error bound.

Flow: an array -> a chain of codecs -> bytes that name their codec, dtype and shape -> the array.
Memory: the packed or unpacked array, outside of any budget.

>>> import numpy as np
>>> from tidegate import compress
>>> x = np.sin(np.arange(10_000) / 100).astype("float32")
>>> exact, near = compress.pack(x, "pco"), compress.pack(x, "abs:1e-3")
>>> bool((compress.unpack(exact) == x).all() and abs(compress.unpack(near) - x).max() <= 1e-3)
True
>>> len(near) < len(exact) < x.nbytes
True
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tidegate import _tidegate
from tidegate.options import as_array, dtype_of, refused

__all__ = ["codecs", "pack", "unpack"]


def pack(x: npt.ArrayLike, codec: str = "shuffle+zstd") -> bytes:
    """Pack an array with a codec.

    Args:
        x: an array of numbers of any shape.
        codec: a chain such as "delta+shuffle+zstd:3", "pco", "lz4" or "bitround:10+shuffle+zstd";
            by default "shuffle+zstd". "abs:1e-3" and "rel:1e-3" store floats within an error,
            absolute or as a fraction of the range.

    Raises ConfigError for an unknown codec, with the known ones, and for one that cannot pack this
    dtype.
    """
    if not isinstance(codec, str) or not codec.isascii():
        raise refused("codec", codec, 'a chain of codecs, such as "shuffle+zstd"')
    numbers = as_array("x", x)
    if numbers.dtype == object:
        raise refused("x", x, "an array of numbers")
    # Elements are stored in the byte order of this machine.
    numbers = numbers.astype(numbers.dtype.newbyteorder("="), copy=False)
    elements = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)
    return _tidegate.pack_array(codec, numbers.dtype.name, list(numbers.shape), elements)


def unpack(packed: bytes) -> npt.NDArray[Any]:
    """Return the array that `pack` packed.

    Raises DataError for bytes that are cut short or are something else. There is no checksum:
    flipped bits may give other elements, as they do in an array that is not packed.
    """
    if not isinstance(packed, bytes):
        raise refused("packed", packed, "bytes, as pack returns")
    name, shape, elements = _tidegate.unpack_array(packed)
    return elements.view(_dtype(name)).reshape(shape)


def codecs(dtype: npt.DTypeLike) -> list[str]:
    """Return the lossless codecs that are worth trying for a dtype, the simplest first.

    >>> "shuffle+zstd" in codecs("float32")
    True
    """
    return _tidegate.codecs(dtype_of("dtype", dtype).name)


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)
