"""`mapped`: arrays in files larger than memory, as NumPy arrays and as samples.

Flow: a file -> `_tidegate.Mapped` -> a NumPy view, or a `Source` of its rows.
Memory: touched pages belong to the kernel and to no budget; rows that a loader reads are budgeted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from tidegate import _tidegate
from tidegate.errors import ConfigError
from tidegate.options import as_path, choice, dtype_of, flag, integer, integers, refused
from tidegate.source import Recipe, Source

if TYPE_CHECKING:
    # typing has it from Python 3.11 on; type checkers know this module without an installation.
    from typing_extensions import Self

__all__ = ["MappedArray", "mapped"]

Mode = Literal["r", "r+", "c"]
Advice = Literal["normal", "sequential", "random", "willneed", "dontneed"]


class MappedArray:
    """An array in a file, mapped into memory; made by `mapped`.

    `array` is a NumPy view of it; `rows()` reads it as samples, within a budget. Indexing, `len`
    and `numpy.asarray` work as on the view.

    Touched pages are the kernel's: they count as resident, and no budget governs them. A view
    keeps the file mapped. If another process cuts the file short, touching the missing part kills
    this process (SIGBUS), as with `numpy.memmap`. `rows()` checks lengths and raises DataError
    instead.
    """

    def __init__(self, inner: _tidegate.Mapped, arguments: tuple[Any, ...]) -> None:
        self._inner, self._arguments = inner, arguments

    @property
    def array(self) -> npt.NDArray[Any]:
        """The elements, in their stored dtype and order; writable unless the mode is "r"."""
        view, fortran = self._inner.array()
        return view.T if fortran else view

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
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
        """Return a source whose samples are the rows, for `tg.Loader(array.rows(), ...)`.

        Args:
            field: the name of the field, by default "data".

        The loader reads rows, it does not map them. Raises ConfigError for Fortran order and for
        big-endian elements.
        """
        return Source(self._inner.rows(field), Recipe(_rows, (self._arguments, field)))

    def advise(self, advice: Advice) -> None:
        """Tell the kernel how the array will be touched.

        Args:
            advice: "normal", "sequential", "random", "willneed" or "dontneed", as of `madvise`.
                "dontneed" also drops pages written in mode "c".
        """
        self._inner.advise(advice)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pages that this process has touched and that are still in memory."""
        return self._inner.usage()[0]

    @property
    def dirty_bytes(self) -> int:
        """Bytes of written pages that are not in the file. Those of mode "c" never will be."""
        return self._inner.usage()[1]

    def flush(self) -> None:
        """Write the pages changed in mode "r+" to the file, and wait for it. Raises DataError."""
        self._inner.flush()

    def close(self) -> None:
        """Flush and unmap. Raises ConfigError while there are views of the array.

        Without `close`, the array is unmapped when the last view is gone.
        """
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
    verify: bool = False,
) -> MappedArray:
    """Map an array in a file: .npy, uncompressed .npz, safetensors, or raw elements.

    The length of the file is checked.

    Args:
        path: a local path.
        mode: "r" (default), "r+" (writes go to the file) or "c" (writes stay in this process).
        name: the array's name in a file of several; by default the only one.
        dtype: of raw elements, such as "uint16"; with `shape`, for files without a header.
        shape: of raw elements.
        offset: where raw elements begin in the file, in bytes; by default 0.
        verify: reads an array of an .npz once and compares it with its checksum, as `np.load` does;
            by default False, because mapping reads nothing.

    Raises DataError for a file that is cut short or damaged, and ConfigError for one that cannot
    be mapped, with the fix.

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
    raw = None
    if dtype is not None and shape is not None:
        known = dtype if isinstance(dtype, str) else dtype_of("dtype", dtype)
        if isinstance(known, np.dtype):
            if not known.isnative:
                raise refused("dtype", dtype, "a dtype in the byte order of this machine")
            known = known.name
        raw = (known, integers("shape", shape, 0), integer("offset", offset, 0))
    choice("mode", mode, ("r", "r+", "c"))
    if name is not None and not isinstance(name, str):
        raise refused("name", name, "the name of an array")
    local = os.path.expanduser(as_path("path", path))
    arguments = (os.path.abspath(local), "r", name, dtype, shape, offset)
    return MappedArray(_tidegate.Mapped(local, mode, name, raw, flag("verify", verify)), arguments)


def _rows(arguments: tuple[Any, ...], field: str) -> Source:
    path, mode, name, dtype, shape, offset = arguments
    return mapped(path, mode, name=name, dtype=dtype, shape=shape, offset=offset).rows(field)
