"""Sparse arrays: equal to SciPy's, over the same memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import tidegate as tg
from tidegate.sparse import BSR, COO, CSR

DTYPES = ["float32", "float64", "int8", "uint8", "int16", "int32", "int64"]


def drawn(seed, shape, dtype, density=0.2):
    rng = np.random.default_rng(seed)
    dense = rng.integers(-9, 10, shape) if not dtype.startswith("u") else rng.integers(0, 19, shape)
    return (dense * (rng.random(shape) < density)).astype(dtype)


@settings(deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 30), st.sampled_from(DTYPES), st.sampled_from("il"),
    st.integers(1, 3), st.integers(0, 4),
)  # fmt: skip
def test_products_and_forms_are_scipys(seed, rows, cols, dtype, width, threads, columns):
    dense = drawn(seed, (rows, cols), dtype)
    theirs = sparse.csr_array(dense)
    theirs.indptr, theirs.indices = theirs.indptr.astype(width), theirs.indices.astype(width)
    ours = CSR.from_scipy(theirs)
    wide = {"f": dtype}.get(dtype[0], "int32" if dtype in ("int8", "uint8", "int16") else "int64")
    x = drawn(seed + 1, (cols, columns), dtype, 1)
    np.testing.assert_array_equal(ours.dot(x, threads=threads), dense.astype(wide) @ x.astype(wide))
    np.testing.assert_array_equal(ours @ drawn(seed, cols, dtype, 1), dense.astype(wide) @ drawn(seed, cols, dtype, 1))
    y = drawn(seed + 2, rows, dtype, 1)
    np.testing.assert_array_equal(ours.transposed_dot(y), dense.T.astype(wide) @ y.astype(wide))
    np.testing.assert_array_equal(ours.to_dense(), dense)
    np.testing.assert_array_equal(ours.T.to_dense(), dense.T)
    np.testing.assert_array_equal(ours.to_coo().to_scipy().toarray(), dense)
    np.testing.assert_array_equal(CSR.from_dense(dense).to_scipy().toarray(), dense)
    np.testing.assert_array_equal(COO.from_dense(dense).to_csr().to_dense(), dense)
    blocks = ours.to_bsr((3, 4))
    np.testing.assert_array_equal(blocks.dot(x, threads=threads), ours @ x)
    np.testing.assert_array_equal(blocks.to_csr().to_dense(), dense)
    assert ours.entries == theirs.nnz
    assert ours.sparsity == pytest.approx(1 - theirs.nnz / dense.size)
    assert ours.nbytes == theirs.data.nbytes + theirs.indices.nbytes + theirs.indptr.nbytes


def test_arrays_of_scipy_are_taken_as_they_lie():
    theirs = sparse.csr_array(drawn(0, (12, 8), "float32", 0.5))
    ours = CSR.from_scipy(theirs)
    assert np.shares_memory(ours.data, theirs.data)
    assert np.shares_memory(ours.indices, theirs.indices)
    assert np.shares_memory(ours.to_scipy().data, theirs.data)
    dense = drawn(0, (12, 8), "float32", 0.5)
    theirs = sparse.bsr_array(dense, blocksize=(3, 4))
    ours = BSR.from_scipy(theirs)
    assert np.shares_memory(ours.data, theirs.data)
    assert ours.block == (3, 4)
    x = np.arange(8, dtype="float32")
    np.testing.assert_allclose(ours @ x, theirs @ x)
    np.testing.assert_array_equal(ours.to_scipy().toarray(), dense)
    cube = COO([[0, 1, 1], [2, 0, 0], [3, 1, 1]], np.array([5, 6, 7], "int32"), (2, 3, 4))
    assert cube.canonical().data.tolist() == [5, 13]
    assert cube.to_dense()[1, 0, 1] == 13
    assert cube.nbytes == 84
    entries = sparse.coo_array(dense)
    assert np.shares_memory(COO.from_scipy(entries).data, entries.data)


def test_tensors_of_torch_are_taken_as_they_lie():
    import torch

    from tidegate.torch import sparse as sparse_of

    theirs = torch.tensor([[0.0, 1.0], [2.0, 0.0]]).to_sparse_csr()
    ours = CSR.from_torch(theirs)
    theirs.values()[0] = 5
    assert (ours @ [1, 1]).tolist() == [5, 2]
    again = ours.to_torch()
    np.testing.assert_array_equal(again.to_dense().numpy(), ours.to_dense())
    again.values()[1] = 9
    assert ours.data[1] == 9
    blocks = BSR.from_torch(torch.eye(4).to_sparse_bsr((2, 2)))
    np.testing.assert_array_equal(blocks.to_torch().to_dense().numpy(), np.eye(4))
    np.testing.assert_array_equal(sparse_of(ours.to_coo()).to_dense().numpy(), ours.to_dense())


def test_what_is_no_matrix_says_why():
    def csr(indptr, indices, data=(1.0, 2.0), **options):
        return CSR(np.array(indptr, "int32"), np.array(indices, "int32"), np.array(data), (2, 3), **options)

    for indptr, indices, words in (
        ([0, 1, 2], [0, 3], "entry 1, in row 1, is in column 3 of 3"),
        ([0, 1, 2], [0, -1], r"is in column 4294967295 \(or -1\) of 3"),
        ([0, 2, 1], [0, 1], "rows go from entry 0 to 1"),
        ([0, 3, 2], [0, 1], "row 1 begins at entry 3"),
        ([0, 1], [0, 1], "one more than rows"),
        ([0, 2, 2], [2, 1], "row 0: column 1 comes after a larger one, at entry 1"),
        ([0, 2, 2], [1, 1], "comes twice"),
    ):
        with pytest.raises(tg.DataError, match=words):
            csr(indptr, indices)
    loose = csr([0, 2, 2], [2, 1], sorted=False)
    assert loose.canonical().indices.tolist() == [1, 2]
    with pytest.raises(tg.ConfigError, match="its rows must be 3"):
        _ = loose @ np.zeros(2)
    with pytest.raises(tg.ConfigError, match="not complex128"):
        csr([0, 1, 2], [0, 1], data=[1j, 2j])
    with pytest.raises(tg.ConfigError, match="different widths"):
        CSR(np.array([0, 1, 1], "int64"), np.array([0], "int32"), np.array([1.0]), (2, 3))
    with pytest.raises(tg.DataError, match="entry 0 is at 5 of 2 along axis 0"):
        COO([[5], [0]], [1.0], (2, 2))
    with pytest.raises(tg.ConfigError, match="height, width"):
        BSR([0, 1], [0], [1.0], (1, 1))
    whole = CSR.from_dense(np.eye(2, dtype="int8"))
    for other in ([0.5, 0.5], [300, 300], [1j, 1j]):
        with pytest.raises(tg.ConfigError, match="convert the entries first"):
            _ = whole @ other
    with pytest.raises(tg.DataError, match="more than memory has"):
        CSR(np.zeros(2, "int64"), np.zeros(0, "int64"), np.zeros(0), (1, 1 << 60)).transposed_dot([1.0])
    # Forms and shapes are never taken for others.
    square = sparse.csr_array(np.array([[0.0, 1], [0, 0]]))
    for made, words in (
        (lambda: CSR.from_scipy(square.T), r"format csc: give matrix.tocsr\(\)"),
        (lambda: BSR.from_scipy(square), r"tobsr\(\)"),
        (lambda: COO.from_scipy(square), r"tocoo\(\)"),
        (lambda: CSR.from_dense(np.ones(3)), "a matrix has two axes"),
        (lambda: CSR([0, 1], [0], np.ones((1, 1)), (1, 2)), "give one axis"),
        (lambda: CSR.from_dense(np.ones((3, 3))).transposed_dot(np.eye(3)), "give one axis"),
        (lambda: CSR.from_dense(np.ones((3, 3))) @ CSR.from_dense(np.ones((3, 3))), "no array of numbers"),
        (lambda: CSR.from_dense(np.ones((2, 3))).to_bsr((2, 2)).to_scipy(), "do not divide"),
    ):
        with pytest.raises(tg.ConfigError, match=words):
            made()
    with pytest.raises(tg.DataError, match="blocks of 1048576 by 1048576 elements are more than memory has"):
        CSR.from_dense(np.eye(2)).to_bsr((1 << 20, 1 << 20))
    assert BSR([0, 0], [], np.ones((0, 2, 2)), (2, 2)).to_dense().tolist() == [[0, 0], [0, 0]]
    assert COO(([], []), [], (2, 2)).to_dense().shape == (2, 2)
    assert COO.from_dense(np.float64(3)).to_dense() == 3
    # Memory that changes after it was checked is checked again where it is used.
    loose.indices[0] = 77
    with pytest.raises(tg.DataError, match="was changed"):
        _ = loose @ np.zeros(3)
