"""Arrays packed by a codec, without loss or within an error, as bytes that say what they are.

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

__all__ = ["codecs", "pack", "unpack"]


def pack(x: npt.ArrayLike, codec: str = "shuffle+zstd") -> bytes:
    """Pack an array by a codec: a chain such as "delta+shuffle+zstd:3", "pco", "lz4", "bitround:10+shuffle+zstd", or
    "abs:1e-3" and "rel:1e-3" for floats within an error, absolute or as a share of the range.

    Raises ConfigError for a codec that there is not, with the known ones, or that cannot have such elements.
    """
    array = np.asarray(x)
    # Elements are stored as this machine has them.
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    elements = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return _tidegate.pack_array(codec, array.dtype.name, list(array.shape), elements)


def unpack(packed: bytes) -> npt.NDArray[Any]:
    """Return the array that was packed.

    Raises DataError for bytes that are something else, cut short, or of another length than they say. There is no
    checksum: bits that flip within may give other elements, as they do in arrays that are not packed.
    """
    name, shape, elements = _tidegate.unpack_array(packed)
    return elements.view(_dtype(name)).reshape(shape)


def codecs(dtype: npt.DTypeLike) -> list[str]:
    """Return the lossless codecs that are worth trying for a dtype, from the simplest on."""
    return _tidegate.codecs(np.dtype(dtype).name)


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
