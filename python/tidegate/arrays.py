"""`mapped`: arrays in files that are larger than memory, as NumPy arrays and as samples."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from tidegate import _tidegate
from tidegate.errors import ConfigError
from tidegate.source import Source

__all__ = ["MappedArray", "mapped"]

Mode = Literal["r", "r+", "c"]
Advice = Literal["normal", "sequential", "random", "willneed", "dontneed"]


class MappedArray:
    """An array in a file, mapped. `array` is NumPy's view of it; `rows()` reads it as samples, within a budget.

    Pages that are touched are the kernel's: they count as resident, and no budget governs them. A view keeps the file
    mapped. If the file is cut short under a view, touching what is gone kills the process (SIGBUS): so does np.memmap.
    Rows are read with their length checked, and say so instead.
    """

    def __init__(self, inner: _tidegate.Mapped) -> None:
        self._inner = inner

    @property
    def array(self) -> npt.NDArray[Any]:
        """The elements, in the dtype and the order in which they are stored; writable unless the mode is "r"."""
        view, fortran = self._inner.array()
        return view.T if fortran else view

    def __array__(self, dtype: npt.DTypeLike = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.array, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.array[index] = value

    def __repr__(self) -> str:
        view = self.array
        return f"MappedArray({view.shape}, {view.dtype})"

    def rows(self, field: str = "data") -> Source:
        """Return a source whose samples are the rows, as a field: `tg.Loader(array.rows(), ...)`.

        Rows are read, not mapped. Raises ConfigError for Fortran order and big-endian elements.
        """
        return Source(self._inner.rows(field))

    def advise(self, advice: Advice) -> None:
        """Tell the kernel how the array is going to be touched; "dontneed" drops written copies of mode "c" too."""
        self._inner.advise(advice)

    @property
    def resident_bytes(self) -> int:
        """Pages that this process has touched and that are still in memory."""
        return self._inner.usage()[0]

    @property
    def dirty_bytes(self) -> int:
        """Pages that were written and are not in the file; of mode "c" copies, which never will be."""
        return self._inner.usage()[1]

    def flush(self) -> None:
        """Write what was written with mode "r+" to the file, and wait until it is there. Raises DataError."""
        self._inner.flush()

    def close(self) -> None:
        """Flush and unmap. Raises ConfigError while there are views of it; without it the last view unmaps."""
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def mapped(
    path: str | PathLike[str],
    mode: Mode = "r",
    *,
    name: str | None = None,
    dtype: str | None = None,
    shape: Sequence[int] | None = None,
    offset: int = 0,
) -> MappedArray:
    """Map an .npy, an array of an .npz that was not compressed, a tensor of a safetensors file, or raw elements.

    `mode` is "r", "r+" (what is written lands in the file) or "c" (it stays in this process). `name` is needed where a
    file has several arrays; `dtype`, `shape` and `offset` where it has no header. The length of the file is checked.

    Raises DataError for what is truncated or damaged, ConfigError for what cannot be mapped, with the fix.

    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/x.npy", np.arange(12).reshape(4, 3))
    ...     x = mapped(f"{folder}/x.npy")
    ...     loader = tg.Loader(x.rows(), batch_size=2, memory="16MiB")
    ...     [int(batch["data"].sum()) for batch in loader], x[1:3, 0].tolist()
    ([15, 51], [3, 6])
    """
    if (dtype is None) != (shape is None):
        raise ConfigError('raw elements need both: dtype and shape, as in dtype="uint16", shape=(1000, 64)')
    raw = None if dtype is None or shape is None else (dtype, [int(side) for side in shape], int(offset))
    return MappedArray(_tidegate.Mapped(path, mode, name, raw))
