"""Arrays and matrices as tensor trains: chains of small arrays (cores), one for each axis.

Flow: a dense array -> TT-SVD -> cores -> entries, slices, products.
Memory: dense input and cores in float64, outside of any budget.

>>> import numpy as np
>>> from tidegate.tensor_train import TensorTrain
>>> i = np.arange(16) / 16
>>> x = 1 / (1 + i[:, None, None, None] + i[:, None, None] + i[:, None] + i)
>>> train = TensorTrain.decompose(x, tolerance=1e-4)
>>> train.ranks, train.nbytes
((1, 3, 3, 3, 1), 3072)
>>> bool(np.linalg.norm(train.to_dense() - x) <= 1e-4 * np.linalg.norm(x))
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index as index_of
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tidegate import _tidegate
from tidegate.errors import ConfigError, DataError
from tidegate.options import as_array, as_path, refused

if TYPE_CHECKING:
    # typing has it from Python 3.11 on; type checkers know this module without an installation.
    from typing_extensions import Self

__all__ = ["TTMatrix", "TensorTrain"]


class _Train:
    """What `TensorTrain` and `TTMatrix` have in common."""

    def __init__(self, inner: _tidegate.Train) -> None:
        self._inner = inner

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks between cores; the first and the last are 1."""
        return tuple(self._inner.ranks)

    @property
    def cores(self) -> list[npt.NDArray[np.float64]]:
        """The cores, each of shape (rank, side, rank)."""
        sides, ranks = self._inner.shape, self._inner.ranks
        return [core.reshape(ranks[k], sides[k], ranks[k + 1]) for k, core in enumerate(self._inner.cores())]

    @property
    def nbytes(self) -> int:
        """Bytes of all cores."""
        return 8 * self._inner.held

    def norm(self) -> float:
        """Return the Frobenius norm."""
        return self._inner.norm()

    def round(self, tolerance: float = 0.0, rank: int | None = None) -> Self:
        """Return a train with the smallest ranks that are accurate enough.

        Args:
            tolerance: the greatest error, relative to the norm; by default 0.
            rank: the greatest rank; by default not limited. It overrides `tolerance`.
        """
        return type(self)(self._inner.round(tolerance, rank))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the cores to a safetensors file."""
        self._inner.save(as_path("path", path))


class TensorTrain(_Train):
    """An array as a tensor train; made by `decompose`, `from_cores` or `load`."""

    @classmethod
    def decompose(cls, x: npt.ArrayLike, tolerance: float = 0.0, rank: int | None = None) -> Self:
        """Decompose an array by TT-SVD, in memory, in float64.

        Args:
            x: an array of real numbers, at least one axis.
            tolerance: the greatest error, relative to the norm; by default 0.
            rank: the greatest rank; by default not limited. It overrides `tolerance`.

        Raises DataError for NaN and infinities, with their place.
        """
        array = _real(x)
        if array.ndim == 0:
            raise ConfigError("a number has no axes to decompose")
        return cls(_tidegate.Train.decompose(array.reshape(-1), list(array.shape), None, tolerance, rank))

    @classmethod
    def from_cores(cls, cores: Sequence[npt.ArrayLike]) -> Self:
        """Use cores of shape (rank, side, rank), as tensorly and tntorch have them."""
        return cls(_tidegate.Train.of(_listed(cores), None))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a file that `save` wrote."""
        return cls(_tidegate.Train.load(as_path("path", path), False))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return tuple(self._inner.shape)

    def __getitem__(self, at: int | tuple[int, ...]) -> float:
        places = at if isinstance(at, tuple) else (at,)
        if len(places) != len(self.shape):
            raise ConfigError(
                f"{len(places)} indices into an array of {self.shape}: give one an axis, or use slice(axis, index)"
            )
        return self._inner.entry([_index(index, side) for index, side in zip(places, self.shape, strict=True)])

    def slice(self, axis: int, index: int) -> TensorTrain:
        """Return the array at one index of an axis, without that axis."""
        axis = _index(axis, len(self.shape))
        return TensorTrain(self._inner.slice(axis, _index(index, self.shape[axis])))

    def dot(self, other: TensorTrain) -> float:
        """Return the inner product: the sum of the products of all elements."""
        return self._inner.dot(other._inner)

    def to_dense(self) -> npt.NDArray[np.float64]:
        """Return the dense array."""
        return self._inner.to_dense().reshape(self.shape)

    def blocks(self, each: Callable[[int, npt.NDArray[np.float64]], Any], memory: str | int = "64MiB") -> None:
        """Call `each(start, block)` for the dense array in C order, one block after another.

        Args:
            each: called with the position of the block in the flat array, and the block.
            memory: the most that a block may take: bytes or text, by default "64MiB".
        """
        self._inner.blocks(_tidegate.size_bytes(memory), each)

    def __repr__(self) -> str:
        return f"TensorTrain({self.shape}, ranks={self.ranks}, nbytes={self.nbytes})"


class TTMatrix(_Train):
    """A matrix as a tensor train, such as an embedding table; made by `decompose` or `load`."""

    @classmethod
    def decompose(
        cls,
        matrix: npt.ArrayLike,
        rows: Sequence[int],
        cols: Sequence[int],
        tolerance: float = 0.0,
        rank: int | None = None,
    ) -> Self:
        """Decompose a matrix, in memory, in float64.

        Args:
            matrix: of shape (prod(rows), prod(cols)).
            rows: factors of the number of rows: (40, 50, 25) for 50,000.
            cols: as many factors of the number of columns: (8, 8, 8) for 512.
            tolerance: the greatest error, relative to the norm; by default 0.
            rank: the greatest rank; by default not limited. It overrides `tolerance`.
        """
        array = _real(matrix)
        if array.shape != (np.prod(rows), np.prod(cols)):
            raise ConfigError(f"a matrix of {array.shape} in rows of {tuple(rows)} and columns of {tuple(cols)}")
        return cls(_tidegate.Train.decompose(array.reshape(-1), list(rows), list(cols), tolerance, rank))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a file that `save` wrote."""
        return cls(_tidegate.Train.load(as_path("path", path), True))

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows and of columns."""
        rows, cols = self._inner.digits or ([], [])
        return int(np.prod(rows)), int(np.prod(cols))

    def __matmul__(self, vector: npt.ArrayLike) -> npt.NDArray[np.float64]:
        x = _real(vector)
        if x.ndim != 1:
            raise ConfigError(f"a matrix of {self.shape} times an array of {x.shape}: give one vector")
        return self._inner.matvec(x)

    def rows(self, rows: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return rows by number; of an embedding table, the vectors of tokens.

        Args:
            rows: ints of any shape.

        Returns an array of the shape of `rows` plus one axis of columns.
        """
        wanted = as_array("rows", rows)
        if wanted.dtype.kind not in "iu" and wanted.size:
            raise refused("rows", rows, "ints")
        if wanted.size and wanted.min() < 0:
            raise ConfigError(f"row {wanted.min()}: rows are counted from 0")
        return self._inner.rows(wanted.reshape(-1).tolist()).reshape(*wanted.shape, self.shape[1])

    def __repr__(self) -> str:
        return f"TTMatrix({self.shape}, ranks={self.ranks}, nbytes={self.nbytes})"


def _index(index: int, side: int) -> int:
    """Return the index counted from 0; negative ones count from the end."""
    place = index_of(index)
    if not -side <= place < side:
        raise IndexError(f"index {place} of {side}")
    return place % side


def _real(x: npt.ArrayLike) -> npt.NDArray[np.float64]:
    given = as_array("x", x)
    if np.iscomplexobj(given):
        raise ConfigError("complex numbers: decompose or multiply the real and imaginary parts separately")
    # Of a number, NumPy would make an array of one axis.
    return as_array("x", given, np.float64).reshape(given.shape)


def _listed(cores: Sequence[npt.ArrayLike]) -> list[tuple[int, int, int, list[float]]]:
    arrays = [_real(core) for core in cores]
    if not all(np.isfinite(core).all() for core in arrays):
        raise DataError("cores with NaN or infinities")
    if any(core.ndim != 3 for core in arrays):
        raise ConfigError("cores must have three axes: give (rank, side, rank) each")
    return [(*core.shape, core.reshape(-1).tolist()) for core in arrays]
