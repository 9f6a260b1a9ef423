"""Mapped arrays: files of NumPy and safetensors, modes, hints, closing, rows within a budget."""

import json
import os
import struct
import zipfile

import numpy as np
import pytest

import tidegate as tg


@pytest.fixture
def array():
    return (np.arange(60 * 7 * 5) * 7919 % 65521).astype("uint16").reshape(60, 7, 5)


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint16", "int32", "uint64", "float16", "float32", "float64", ">u2", ">f8"]
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_saved_is_the_same(tmp_path, array, dtype, order):
    saved = np.asarray(array.astype(dtype), order=order)
    np.save(tmp_path / "a.npy", saved)
    ours = tg.mapped(tmp_path / "a.npy")
    assert ours.array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(ours.array, saved)
    np.testing.assert_array_equal(np.asarray(ours), np.load(tmp_path / "a.npy", mmap_mode="r"))
    assert not ours.array.flags.writeable
    assert ours[3, 2].tolist() == saved[3, 2].tolist()


def test_members_and_tensors_have_names(tmp_path, array):
    np.savez(tmp_path / "a.npz", one=array, two=array[:3] * 2)
    np.testing.assert_array_equal(tg.mapped(tmp_path / "a.npz", name="two").array, array[:3] * 2)
    header = {
        "x": {"dtype": "U16", "shape": [60, 7, 5], "data_offsets": [0, 4200]},
        "y": {"dtype": "BF16", "shape": [2], "data_offsets": [4200, 4204]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + array.tobytes() + b"\x80\x3f\x00\x40"
    )
    np.testing.assert_array_equal(tg.mapped(tmp_path / "a.safetensors", name="x").array, array)
    assert tg.mapped(tmp_path / "a.safetensors", name="y").array.astype("float32").tolist() == [1.0, 2.0]
    (tmp_path / "raw").write_bytes(b"head" + array.tobytes())
    raw = tg.mapped(tmp_path / "raw", dtype="uint16", shape=(60, 35), offset=4)
    np.testing.assert_array_equal(raw.array, array.reshape(60, 35))
    for path, name, word in (
        ("a.npz", None, "one, two"),
        ("a.npz", "three", "one, two"),
        ("a.safetensors", "z", "x, y"),
    ):
        with pytest.raises(tg.ConfigError, match=word):
            tg.mapped(tmp_path / path, name=name)


def test_modes_write_where_numpy_does(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    copy = tg.mapped(tmp_path / "a.npy", "c")
    copy[0] = 0
    assert np.load(tmp_path / "a.npy")[0].any()
    assert copy.dirty_bytes >= 4096
    with tg.mapped(tmp_path / "a.npy", "r+") as shared:
        shared[1] = 7
        shared.flush()
        assert (np.load(tmp_path / "a.npy")[1] == 7).all()
        assert shared.resident_bytes >= 4096
        shared.advise("random")
    view = copy.array
    with pytest.raises(tg.ConfigError, match="1 arrays still view it"):
        copy.close()
    assert view[0].sum() == 0
    del view
    copy.close()
    with pytest.raises(tg.ConfigError, match="closed"):
        _ = copy.array
    # A view alone keeps the file mapped.
    alone = tg.mapped(tmp_path / "a.npy").array
    np.testing.assert_array_equal(alone[2:], array[2:])
    for mode, advice in (("w", "normal"), ("r", "often")):
        with pytest.raises(tg.ConfigError, match="give|expected"):
            tg.mapped(tmp_path / "a.npy", mode).advise(advice)


def test_what_is_damaged_says_where(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    whole = (tmp_path / "a.npy").read_bytes()
    np.savez(tmp_path / "a.npz", x=array)
    np.savez_compressed(tmp_path / "packed.npz", x=array)
    zipped = (tmp_path / "a.npz").read_bytes()

    def tensors(**header):
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + bytes(100)

    def tensor(shape, start, end):
        return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}

    overlap = tensors(a=tensor([10], 0, 40), b=tensor([10], 20, 60))
    huge = tensors(a=tensor([2**40, 2**40], 0, 2**60))
    for name, data, error, word in [
        ("cut.npy", whole[:-1], tg.DataError, "4200 bytes, and the file has 4199"),
        ("head.npy", whole[:50], tg.DataError, "the header is truncated"),
        ("none.npy", b"", tg.DataError, "NUMPY"),
        ("huge.npy", whole.replace(b"(60, 7, 5)", b"(2**70,)  "), tg.DataError, "not a list of numbers"),
        ("long.npy", whole.replace(b"(60, 7, 5)", b"(60, 7, 9)"), tg.DataError, "7560 bytes"),
        ("objects.npy", whole.replace(b"'<u2'", b"'|O' "), tg.DataError, "unpickled"),
        ("cut.npz", zipped[:-30], tg.DataError, "truncated or damaged"),
        ("packed.npz", (tmp_path / "packed.npz").read_bytes(), tg.ConfigError, "np.savez"),
        ("a.safetensors", overlap, tg.DataError, "safetensors"),
        ("b.safetensors", huge, tg.DataError, "safetensors"),
        ("c.safetensors", tensors(a=tensor([100], 0, 400)), tg.DataError, ""),
        ("d.safetensors", struct.pack("<Q", 2**50) + b"{}", tg.DataError, "header of"),
        ("e.safetensors", b"abc", tg.DataError, "ends before its header"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(error) as caught:
            tg.mapped(tmp_path / name)
        assert word in str(caught.value)
        assert name in str(caught.value)
    with pytest.raises(tg.DataError, match="give the shape"):
        tg.mapped(tmp_path / "a.npy", dtype="float32", shape=(60, 7, 5))
    with pytest.raises(tg.ConfigError, match="both"):
        tg.mapped(tmp_path / "a.npy", dtype="float32")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("x.npy", b"no array")
    with pytest.raises(tg.DataError, match="NUMPY"):
        tg.mapped(tmp_path / "text.npz")


def test_rows_are_samples_under_a_budget(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    rows = tg.mapped(tmp_path / "a.npy").rows("x")
    assert len(rows) == 60
    assert next(iter(tg.Loader(rows, batch_size=2, memory=tg.Budget("8MiB"), fields=["x"])))["x"].dtype == "uint16"

    def batches(memory, workers, **more):
        loader = tg.Loader(
            rows, batch_size=8, memory=tg.Budget(memory), workers=workers, shuffle=True, seed=2, extras=("ids",), **more
        )
        return [(batch.ids.tolist(), batch["x"].copy()) for batch in loader]

    expected = batches("64MiB", 1)
    assert sorted(id for ids, _ in expected for id in ids) == list(range(60))
    for ids, x in expected:
        np.testing.assert_array_equal(x, array[ids])
    for memory, workers in (("4MiB", 1), ("9MiB", 3)):
        for (ids, x), (other, y) in zip(expected, batches(memory, workers), strict=True):
            assert ids == other
            np.testing.assert_array_equal(x, y)
    # A file that is cut short while it is trained on.
    with open(tmp_path / "a.npy", "r+b") as file:
        file.truncate(2000)
    with pytest.raises(tg.DataError, match="file ends"):
        batches("16MiB", 1)
    np.save(tmp_path / "f.npy", np.asfortranarray(array))
    with pytest.raises(tg.ConfigError, match="ascontiguousarray"):
        tg.mapped(tmp_path / "f.npy").rows()
    np.save(tmp_path / "b.npy", array.astype(">u2"))
    with pytest.raises(tg.ConfigError, match="little-endian"):
        tg.mapped(tmp_path / "b.npy").rows()


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    for name in ("a.npy", "a.npz", "a.safetensors"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(tg.ConfigError, match="a pipe or a device"):
            tg.mapped(tmp_path / name)


def test_the_checksum_of_an_npz_is_compared_on_request(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(1000), y=np.arange(5))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    assert tg.mapped(tmp_path / "a.npz", name="x", verify=True)[999] == 999
    data[2000] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(tg.DataError, match=r'a\.npz.*array "x".*checksum'):
        tg.mapped(tmp_path / "a.npz", name="x", verify=True)
    assert tg.mapped(tmp_path / "a.npz", name="y", verify=True)[4] == 4
    np.save(tmp_path / "a.npy", np.arange(5))
    with pytest.raises(tg.ConfigError, match="only .npz files have checksums"):
        tg.mapped(tmp_path / "a.npy", verify=True)
