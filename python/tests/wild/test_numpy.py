"""Arrays of NumPy: .npy members of a tar, and .npy and .npz files that are mapped.

Flow: an array -> `np.save` -> `np.load`, and `tg.open` or `tg.mapped`.
Memory: a few hundred bytes an array; mapped pages are the kernel's.
"""

import numpy as np
import pytest
from compare import equal, ours, refused, same
from made import npy, tar

import tidegate as tg

# {dataset: array}.
ARRAYS = {
    "fortran_order": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "big_endian": np.arange(6, dtype=">i4").reshape(2, 3),
    "big_endian_in_fortran_order": np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3)),
    "bool": np.array([True, False, True]),
    "float16": np.array([0.1, np.nan, -np.inf], np.float16),
    "uint64": np.array([2**64 - 1, 2**63], np.uint64),
    "no_elements": np.zeros((0, 3), np.float32),
    "no_axes": np.array(3),
    "not_contiguous": np.arange(20, dtype=np.int16).reshape(4, 5)[::2, 1:],
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("shape", [True, False], ids=["of_one_shape", "of_any_shape"])
def test_members_of_a_tar(tmp_path, name, shape):
    array = ARRAYS[name]
    path = tar(tmp_path / "a.tar", ("a.npy", npy(array)), ("b.npy", npy(array)))
    spec = tg.Array(array.dtype.newbyteorder("=").name, array.shape if shape else None)
    if name == "no_axes" and not shape:
        refused(path, r"an array without axes, .* needs shape=\(\)", {"npy": spec})
        return
    same(ours(path, {"npy": spec}), [{"npy": array}] * 2)


@pytest.mark.parametrize("name", ARRAYS)
def test_mapped_files(tmp_path, name):
    np.save(tmp_path / "a.npy", ARRAYS[name])
    mapped = tg.mapped(tmp_path / "a.npy").array
    theirs = np.load(tmp_path / "a.npy")
    assert mapped.dtype == theirs.dtype
    assert np.array_equal(mapped, theirs, equal_nan=theirs.dtype.kind == "f")


ROWS_REFUSED = {
    "fortran_order": "its rows are not contiguous",
    "big_endian": "its elements are big-endian",
    "big_endian_in_fortran_order": "big-endian|not contiguous",
    "no_axes": "an array without axes has no rows",
}


@pytest.mark.parametrize("name", ARRAYS)
def test_rows_of_mapped_files(tmp_path, name):
    np.save(tmp_path / "a.npy", ARRAYS[name])
    mapped = tg.mapped(tmp_path / "a.npy")
    if name in ROWS_REFUSED:
        with pytest.raises(tg.ConfigError, match=ROWS_REFUSED[name]):
            mapped.rows("x")
        return
    batches = list(tg.Loader(mapped.rows("x"), batch_size=2, memory=tg.Budget("16MiB")))
    rows = [row for batch in batches for row in batch["x"]]
    assert equal(np.array(rows, mapped.array.dtype).reshape(mapped.array.shape), np.load(tmp_path / "a.npy"))


def test_members_of_npz_are_mapped_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", x=ARRAYS["bool"], y=ARRAYS["fortran_order"])
    with np.load(tmp_path / "a.npz") as theirs:
        for name in theirs:
            assert equal(tg.mapped(tmp_path / "a.npz", name=name).array, theirs[name])


REFUSED_ARRAYS = {
    "structured": (np.zeros(2, [("x", "i4"), ("y", "f4")]), "a structured dtype cannot be read"),
    "complex": (np.zeros(2, np.complex64), "dtype <c8 cannot be read"),
    "text": (np.array(["ab", "c"]), "dtype <U2 cannot be read"),
    "dates": (np.array(["2020-01-01"], "datetime64[D]"), r"dtype <M8\[D\] cannot be read"),
    "objects": (np.array([1, None], object), "can only be unpickled"),
    "another_type": (np.zeros(2), "an array of float64 .* where int32 .* was declared"),
}


@pytest.mark.parametrize("name", REFUSED_ARRAYS)
def test_the_cause_is_named(tmp_path, name):
    array, words = REFUSED_ARRAYS[name]
    refused(tar(tmp_path / "a.tar", ("a.npy", npy(array))), words, {"npy": tg.Array("int32")})
