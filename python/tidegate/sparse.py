"""Sparse arrays over NumPy's memory, laid out as SciPy's and torch's, with parallel products.

Flow: arrays, batches, SciPy or torch -> `CSR`, `BSR`, `COO` -> products, or back without a copy.
Memory: the arrays that were given, outside of any budget.

>>> import numpy as np
>>> from tidegate.sparse import CSR
>>> m = CSR.from_dense(np.array([[1, 0, 2], [0, 3, 0]], dtype="float32"))
>>> (m @ np.array([1, 10, 100], dtype="float32")).tolist()
[201.0, 30.0]
>>> m.entries, m.nbytes, m.sparsity
(3, 36, 0.5)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from tidegate import _tidegate
from tidegate.batch import Batch
from tidegate.errors import ConfigError, DataError
from tidegate.options import as_array, flag, integer, integers, is_row, refused
from tidegate.source import Source

if TYPE_CHECKING:
    # typing has it from Python 3.11 on; type checkers know this module without an installation.
    from typing_extensions import Self

__all__ = ["BSR", "COO", "CSR", "product"]

_NARROW = 2**31


class Batches(Protocol):
    """What `product` needs of a `Loader`: batches, and the source whose samples they are."""

    source: Source

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch."""
        ...


def _line(name: str, x: npt.ArrayLike) -> npt.NDArray[Any]:
    row = as_array(name, x)
    if row.ndim != 1 or row.dtype.kind not in "biufcV":
        raise ConfigError(f"{name} of {row.dtype} and of shape {row.shape}: give one axis of numbers")
    return np.ascontiguousarray(row)


def _sides(shape: Sequence[int]) -> tuple[int, int]:
    sides = integers("shape", shape, 0)
    if len(sides) != 2:
        raise refused("shape", shape, "the numbers of rows and of columns")
    return sides[0], sides[1]


def _of_format(matrix: Any, wanted: str) -> None:
    found = getattr(matrix, "format", type(matrix).__name__)
    if found != wanted:
        raise ConfigError(f"a matrix in the format {found}: give matrix.to{wanted}()")


def _as(dense: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the dense operand in the dtype of the entries.

    Floats may have any width; integers must fit. Raises ConfigError for others.
    """
    if dense.dtype == object:
        raise ConfigError("the operand is no array of numbers: give a vector or a dense matrix")
    if dense.dtype == dtype:
        return np.ascontiguousarray(dense)
    made = dense.astype(dtype) if np.can_cast(dense.dtype, dtype, "same_kind") else None
    if made is None or (np.issubdtype(dtype, np.integer) and not np.array_equal(made, dense)):
        raise ConfigError(
            f"entries of {dtype} times {dense.dtype}: convert the entries first, they cannot hold the other"
        )
    return np.ascontiguousarray(made)


def _like(indices: npt.ArrayLike, indptr: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return the indices; an empty array gets the dtype of `indptr`."""
    places = _line("indices", indices)
    return places if places.size else places.astype(as_array("indptr", indptr).dtype)


def _threads(threads: int | None) -> int:
    return len(os.sched_getaffinity(0)) if threads is None else integer("threads", threads, 1, 2**16)


class _Matrix:
    """What `CSR` and `BSR` have in common."""

    _inner: _tidegate.Csr | _tidegate.Bsr

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows and of columns."""
        return self._inner.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the entries."""
        return self._inner.data.dtype

    @property
    def indptr(self) -> npt.NDArray[Any]:
        """Where each row, or row of blocks, begins, and where the last one ends."""
        return self._inner.indptr

    @property
    def indices(self) -> npt.NDArray[Any]:
        """The column of each entry, or of each block."""
        return self._inner.indices

    @property
    def sparsity(self) -> float:
        """The fraction of places, or of blocks, that are not stored."""
        return self._inner.size()[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self._inner.size()[0]

    def dot(self, other: npt.ArrayLike, *, threads: int | None = None) -> npt.NDArray[Any]:
        """Multiply with a vector or a dense matrix, in parallel.

        The product is computed in the dtype of the entries: float32 entries give float32. Integers
        of up to 16 bits are summed in int32, wider ones in int64. It does not depend on `threads`.

        Args:
            other: of shape (columns,) or (columns, n).
            threads: an int; by default the cores that this process may use.

        Returns an array of shape (rows,) or (rows, n). Raises ConfigError for other shapes, and
        for a dtype that the entries cannot hold.
        """
        dense = _as(as_array("other", other), self.dtype)
        if dense.ndim not in (1, 2) or len(dense) != self.shape[1]:
            raise ConfigError(
                f"a matrix of {self.shape} times an array of {dense.shape}: its rows must be {self.shape[1]}"
            )
        columns = dense.shape[1] if dense.ndim == 2 else None
        product = self._inner.product(dense.reshape(-1), columns, _threads(threads))
        return product if columns is None else product.reshape(self.shape[0], columns)

    def __matmul__(self, other: npt.ArrayLike) -> npt.NDArray[Any]:
        return self.dot(other)

    def to_dense(self) -> npt.NDArray[Any]:
        """Return a dense array; entries in the same place are summed."""
        return self._inner.to_dense().reshape(self.shape)

    def to_torch(self) -> Any:
        """Return a sparse torch tensor over the same memory."""
        from tidegate.torch import sparse

        if not isinstance(self, CSR | BSR):
            raise TypeError(f"no torch layout for a {type(self).__name__}")
        return sparse(self)


class CSR(_Matrix):
    """A sparse matrix by rows: `indptr`, `indices` and `data` as in SciPy and torch.

    Arrays are kept without a copy.

    Args:
        indptr: int32 or int64 of shape (rows + 1,): where each row begins.
        indices: the column of each entry, in the dtype of `indptr`.
        data: the entries.
        shape: (rows, columns).
        sorted: whether columns must ascend in each row; by default True.

    Raises DataError, with row and entry, for columns past the end, rows that end before they
    begin, and unsorted columns where `sorted`.
    """

    def __init__(
        self,
        indptr: npt.ArrayLike,
        indices: npt.ArrayLike,
        data: npt.ArrayLike,
        shape: Sequence[int],
        *,
        sorted: bool = True,
    ) -> None:
        self._inner: _tidegate.Csr = _tidegate.Csr(
            _line("indptr", indptr),
            _like(indices, indptr),
            _line("data", data),
            _sides(shape),
            flag("sorted", sorted),
        )

    @classmethod
    def _of(cls, inner: _tidegate.Csr) -> Self:
        made = cls.__new__(cls)
        made._inner = inner
        return made

    @classmethod
    def from_scipy(cls, matrix: Any) -> Self:
        """Use the arrays of a SciPy `csr_array` or `csr_matrix`, without a copy."""
        _of_format(matrix, "csr")
        return cls(matrix.indptr, matrix.indices, matrix.data, matrix.shape, sorted=matrix.has_sorted_indices)

    @classmethod
    def from_torch(cls, tensor: Any) -> Self:
        """Use the memory of a `sparse_csr` tensor on the CPU, without a copy."""
        if "sparse_csr" not in str(getattr(tensor, "layout", "")):
            raise refused("tensor", tensor, "a tensor in the layout torch.sparse_csr: give tensor.to_sparse_csr()")
        return cls(tensor.crow_indices(), tensor.col_indices(), tensor.values().detach(), tensor.shape)

    @classmethod
    def from_batch(cls, batch: Batch, columns: int, *, indices: str = "indices", values: str = "values") -> Self:
        """Use the sparse rows of a batch, without a copy: LIBSVM, or two lists of Parquet.

        Args:
            batch: of a loader.
            columns: of the matrix, such as `source.columns`.
            indices: the field of the columns; by default "indices".
            values: the field of the entries; by default "values".

        Rows need not be sorted. Raises ConfigError where the two fields differ in length,
        DataError for columns past the end.
        """
        if not isinstance(batch, Mapping):
            raise refused("batch", batch, "a batch of a loader")
        for name, field in (("indices", indices), ("values", values)):
            if not isinstance(field, str) or field not in batch:
                raise refused(name, field, f"a field of the batch, which has {', '.join(map(str, batch))}")
        columns = integer("columns", columns, 0)
        places, entries = batch[indices], batch[values]
        if isinstance(places, np.ndarray) and isinstance(entries, np.ndarray):
            # Rows of one length.
            starts, alike = np.arange(len(places) + 1) * places.shape[1], places.shape == entries.shape
            flat = places.reshape(-1), entries.reshape(-1)
        else:
            starts, alike = places.offsets, np.array_equal(places.offsets, entries.offsets)
            flat = places.values, entries.values
        if not alike:
            raise ConfigError(
                f"rows of {indices!r} and {values!r} differ in length: they do not belong to the same entries"
            )
        width = np.int32 if flat[0].itemsize == 4 else np.int64
        return cls(starts.astype(width), *flat, (batch.rows, columns), sorted=False)

    @classmethod
    def from_dense(cls, dense: npt.ArrayLike) -> Self:
        """Return the nonzero entries of a dense matrix."""
        matrix = np.ascontiguousarray(as_array("dense", dense))
        if matrix.ndim != 2:
            raise ConfigError(f"an array of {matrix.shape}: a matrix has two axes")
        rows, cols = matrix.shape
        return cls._of(_tidegate.Csr.from_dense(matrix.reshape(-1), (rows, cols), max(matrix.size, cols) >= _NARROW))

    @property
    def data(self) -> npt.NDArray[Any]:
        """The stored entries."""
        return self._inner.data

    @property
    def entries(self) -> int:
        """The number of stored entries, stored zeros included."""
        return len(self._inner.data)

    @property
    def T(self) -> CSR:
        """The transposed matrix, as a copy."""
        return CSR._of(self._inner.transposed())

    def transposed_dot(self, vector: npt.ArrayLike) -> npt.NDArray[Any]:
        """Multiply the transposed matrix with a vector, without making it: what a gradient needs.

        Args:
            vector: of shape (rows,).

        Returns an array of shape (columns,).
        """
        flat = _line("vector", _as(as_array("vector", vector), self.dtype))
        if len(flat) != self.shape[0]:
            raise ConfigError(f"a vector of {len(flat)} for {self.shape[0]} rows")
        return self._inner.transposed_product(flat)

    def canonical(self) -> CSR:
        """Return a copy with ascending columns in each row, and one entry a place: their sum."""
        return CSR._of(self._inner.canonical())

    def to_bsr(self, block: tuple[int, int]) -> BSR:
        """Return the blocks that have an entry; the block need not divide the shape."""
        return BSR._of(self._inner.to_bsr(block))

    def to_coo(self) -> COO:
        """Return the matrix as a list of entries."""
        return COO._of(self._inner.to_coo())

    def to_scipy(self) -> Any:
        """Return a SciPy `csr_array` over the same memory."""
        from scipy.sparse import csr_array  # type: ignore[import-untyped, unused-ignore]

        return csr_array((self.data, self.indices, self.indptr), shape=self.shape, copy=False)

    def __repr__(self) -> str:
        return f"CSR({self.shape}, {self.entries} entries, {self.dtype})"


class BSR(_Matrix):
    """A sparse matrix of dense blocks of one shape; the last ones may extend past the edges.

    Arrays are kept without a copy.

    Args:
        indptr: where each row of blocks begins, shape (rows of blocks + 1,).
        indices: the column of each block, in blocks.
        data: the blocks, of shape (blocks, height, width).
        shape: (rows, columns) of the matrix.

    Raises ConfigError for `data` of other axes, DataError for indices past the end.
    """

    def __init__(
        self, indptr: npt.ArrayLike, indices: npt.ArrayLike, data: npt.ArrayLike, shape: Sequence[int]
    ) -> None:
        blocks = np.ascontiguousarray(as_array("data", data))
        if blocks.ndim != 3:
            raise ConfigError(f"blocks as an array of {blocks.ndim} axes: give (blocks, height, width)")
        (rows, cols), (height, width) = _sides(shape), blocks.shape[1:]
        self._inner: _tidegate.Bsr = _tidegate.Bsr(
            _line("indptr", indptr), _like(indices, indptr), blocks.reshape(-1), (rows, cols), (height, width)
        )

    @classmethod
    def _of(cls, inner: _tidegate.Bsr) -> Self:
        made = cls.__new__(cls)
        made._inner = inner
        return made

    @classmethod
    def from_scipy(cls, matrix: Any) -> Self:
        """Use the arrays of a SciPy `bsr_array` or `bsr_matrix`, without a copy."""
        _of_format(matrix, "bsr")
        return cls(matrix.indptr, matrix.indices, matrix.data, matrix.shape)

    @classmethod
    def from_torch(cls, tensor: Any) -> Self:
        """Use the memory of a `sparse_bsr` tensor on the CPU, without a copy."""
        if "sparse_bsr" not in str(getattr(tensor, "layout", "")):
            raise refused("tensor", tensor, "a tensor in the layout torch.sparse_bsr: give tensor.to_sparse_bsr(...)")
        return cls(tensor.crow_indices(), tensor.col_indices(), tensor.values().detach(), tensor.shape)

    @property
    def block(self) -> tuple[int, int]:
        """Height and width of a block."""
        return self._inner.block

    @property
    def data(self) -> npt.NDArray[Any]:
        """The blocks, of shape (blocks, height, width)."""
        return self._inner.data.reshape(-1, *self.block)

    def to_csr(self) -> CSR:
        """Return the nonzero entries, by rows."""
        return CSR._of(self._inner.to_csr())

    def to_scipy(self) -> Any:
        """Return a SciPy `bsr_array` over the same memory.

        Raises ConfigError for blocks that do not divide the shape, as SciPy's must.
        """
        from scipy.sparse import bsr_array  # type: ignore[import-untyped, unused-ignore]

        if any(side % part for side, part in zip(self.shape, self.block, strict=True)):
            raise ConfigError(
                f"blocks of {self.block} do not divide {self.shape}, as SciPy's must: use to_csr().to_scipy()"
            )
        return bsr_array((self.data, self.indices, self.indptr), shape=self.shape, copy=False)

    def __repr__(self) -> str:
        return f"BSR({self.shape}, {len(self.indices)} blocks of {self.block}, {self.dtype})"


class COO:
    """A sparse N-d array as a list of entries; entries in the same place add up.

    Args:
        coords: for each axis, the index of every entry.
        data: the entries.
        shape: of the array.

    Raises DataError, with entry and axis, for indices past the end.
    """

    def __init__(self, coords: Sequence[npt.ArrayLike], data: npt.ArrayLike, shape: Sequence[int]) -> None:
        entries = _line("data", data)
        if isinstance(coords, str | bytes) or not is_row(coords):
            raise refused("coords", coords, "a row of indices for each axis")
        # Without entries, lists of their indices have no dtype.
        places = [_line("coords", axis) if len(entries) else np.zeros(0, np.int32) for axis in coords]
        self._inner = _tidegate.Coo(places, entries, integers("shape", shape, 0))

    @classmethod
    def _of(cls, inner: _tidegate.Coo) -> Self:
        made = cls.__new__(cls)
        made._inner = inner
        return made

    @classmethod
    def from_scipy(cls, array: Any) -> Self:
        """Use the arrays of a SciPy `coo_array` or `coo_matrix`, without a copy."""
        _of_format(array, "coo")
        coords = array.coords if hasattr(array, "coords") else (array.row, array.col)
        return cls(coords, array.data, array.shape)

    @classmethod
    def from_dense(cls, dense: npt.ArrayLike) -> Self:
        """Return the nonzero entries of a dense array."""
        given = as_array("dense", dense)
        wide = max(given.shape, default=0) >= _NARROW
        flat = np.ascontiguousarray(given).reshape(-1)
        return cls._of(_tidegate.Coo.from_dense(flat, list(given.shape), wide))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return tuple(self._inner.shape)

    @property
    def coords(self) -> tuple[npt.NDArray[Any], ...]:
        """The indices of all entries along each axis."""
        return tuple(self._inner.coords)

    @property
    def data(self) -> npt.NDArray[Any]:
        """The stored entries."""
        return self._inner.data

    @property
    def entries(self) -> int:
        """The number of stored entries."""
        return len(self._inner.data)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self._inner.size()[0]

    @property
    def sparsity(self) -> float:
        """The fraction of places without an entry, if none has two."""
        return self._inner.size()[1]

    def canonical(self) -> COO:
        """Return a copy in C order; entries in the same place are summed."""
        return COO._of(self._inner.canonical())

    def to_csr(self) -> CSR:
        """Return a matrix by rows; entries in the same place are summed."""
        return CSR._of(self._inner.to_csr())

    def to_dense(self) -> npt.NDArray[Any]:
        """Return a dense array; entries in the same place are summed."""
        return self._inner.to_dense().reshape(self.shape)

    def to_scipy(self) -> Any:
        """Return a SciPy `coo_array` over the same memory."""
        from scipy.sparse import coo_array  # type: ignore[import-untyped, unused-ignore]

        return coo_array((self.data, self.coords), shape=self.shape, copy=False)

    def __repr__(self) -> str:
        return f"COO({self.shape}, {self.entries} entries, {self.data.dtype})"


def product(
    loader: Batches, dense: npt.ArrayLike, *, indices: str = "indices", values: str = "values"
) -> npt.NDArray[Any]:
    """Multiply all sparse rows of a loader with a vector or a matrix, one batch at a time.

    The rows need not fit in memory.

    Args:
        loader: over sparse rows, in any order.
        dense: of shape (columns,) or (columns, n).
        indices: as of `CSR.from_batch`.
        values: as of `CSR.from_batch`.

    Returns a row for each sample of the source, in its order, in the dtype of the entries. Raises
    DataError where the loader leaves samples out: by `drop_last`, `on_error="skip"`, or because
    other ranks get them.
    """
    matrix = as_array("dense", dense)
    if not isinstance(getattr(loader, "source", None), Source):
        raise refused("loader", loader, "a Loader over sparse rows")
    if matrix.ndim not in (1, 2):
        raise refused("dense", dense, "a vector or a matrix")
    columns = loader.source.columns
    if columns is not None and len(matrix) < columns:
        raise ConfigError(f"an array of {matrix.shape} for rows of {columns} columns: give {columns} rows")
    out: npt.NDArray[Any] | None = None
    came = np.zeros(len(loader.source), bool)
    for batch in loader:
        rows = CSR.from_batch(batch, len(matrix), indices=indices, values=values)
        # Converts the matrix with the first batch only.
        matrix = _as(matrix, rows.dtype)
        part = rows @ matrix
        if out is None:
            out = np.zeros((len(came), *part.shape[1:]), part.dtype)
        ids = batch.indices[batch.mask]
        out[ids], came[ids] = part[batch.mask], True
    if not came.all():
        left = np.flatnonzero(~came)
        raise DataError(
            f"the loader left out {len(left)} of {len(came)} samples, the first is {left[0]}: give a loader with "
            'rank=0, world_size=1, drop_last=False and on_error="raise"'
        )
    return np.zeros((0, *matrix.shape[1:]), matrix.dtype) if out is None else out
