"""Compact arrays in shards: `pack --quantize` and `--codec`, and what the stock reader sees."""

import io
import json
import tarfile

import ml_dtypes
import numpy as np
import pytest

import tidegate as tg
from tidegate import _tidegate, compress
from tidegate.quantize import Quantized


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """200 samples of floats and token ids in a tar, as webdataset writes them."""
    folder = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.normal(0, 0.1, (200, 8, 64)), axis=2).astype("float32")
    tokens = rng.zipf(1.5, (200, 128)).clip(0, 30_000).astype("uint16")
    with tarfile.open(folder / "a.tar", "w") as tar:
        for i in range(200):
            for name, array in (("x.npy", x[i]), ("t.npy", tokens[i]), ("cls", str(i % 5).encode())):
                data = array
                if isinstance(array, np.ndarray):
                    buffer = io.BytesIO()
                    np.save(buffer, array)
                    data = buffer.getvalue()
                info = tarfile.TarInfo(f"{i:04}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder / "a.tar", x, tokens


def packed(arrays, out, *arguments):
    assert _tidegate.cli(["tidegate", "pack", str(arrays[0]), str(out), *arguments]) == 0
    return tg.open(out)


def epoch(source, **options):
    loader = tg.Loader(source, **({"batch_size": 16, "memory": tg.Budget("32MiB")} | options))
    names = ("x.npy", "t.npy", "cls")
    batches = [[batch[name].copy() for name in names] for batch in loader]
    columns = {name: np.concatenate(parts) for name, parts in zip(names, zip(*batches, strict=True), strict=True)}
    return columns, loader.report()["stages"]["read_bytes"]


def test_small_copies_give_the_same_batches(arrays, tmp_path):
    _, x, tokens = arrays
    source = packed(arrays, tmp_path / "auto", "--codec", "auto")
    # No codec gains a fifth of a random walk.
    assert source.schema == {"x.npy": "ndarray", "t.npy": "compact array", "cls": "int"}
    columns, read = epoch(source)
    np.testing.assert_array_equal(columns["x.npy"], x)
    np.testing.assert_array_equal(columns["t.npy"], tokens)
    assert read < x.nbytes + 0.8 * tokens.nbytes
    source = packed(arrays, tmp_path / "q", "--quantize", "x.npy=4", "--codec", "pco")
    columns, small = epoch(source)
    np.testing.assert_array_equal(columns["t.npy"], tokens)
    assert small < 0.3 * read
    assert columns["x.npy"].dtype == np.float32
    assert abs(columns["x.npy"] - x).max() < 0.2
    assert abs(columns["x.npy"] - x).mean() < 0.05
    halves, _ = epoch(
        source, fields={"x.npy": tg.Array("bfloat16", (8, 64)), "t.npy": tg.Array("uint16", (128,)), "cls": tg.Int()}
    )
    np.testing.assert_array_equal(halves["x.npy"], columns["x.npy"].astype(ml_dtypes.bfloat16))
    # In any order, within any budget, and on several workers they are the same.
    again, _ = epoch(source, workers=3, memory=tg.Budget("4MiB"))
    np.testing.assert_array_equal(again["x.npy"], columns["x.npy"])
    bounded = packed((tmp_path / "q", x, tokens), tmp_path / "again")
    np.testing.assert_array_equal(epoch(bounded)[0]["x.npy"], columns["x.npy"])


def test_fields_can_be_named_and_have_codecs_of_their_own(arrays, tmp_path):
    codecs = ["--codec", "x.npy=abs:1e-2", "--codec", "auto"]
    assert _tidegate.cli(["tidegate", "pack", str(arrays[0]), str(tmp_path / "o"), *codecs]) == 0
    for name, wanted in (("x.npy", arrays[1]), ("t.npy", arrays[2])):
        (batch,) = tg.Loader(tmp_path / "o", batch_size=200, memory=tg.Budget("16MiB"), fields=[name])
        assert list(batch) == [name]
        np.testing.assert_allclose(batch[name], wanted, atol=1e-2 if name == "x.npy" else 0)


def test_the_stock_reader_sees_bytes_that_say_what_they_are(arrays, tmp_path):
    packed(arrays, tmp_path / "q", "--quantize", "x.npy=8")
    index = json.loads((tmp_path / "q" / "index.json").read_text())
    shard = index["shards"][0]
    assert dict(zip(shard["column_names"], shard["column_encodings"], strict=True))["x.npy"] == "bytes"
    assert index["tidegate"]["compact"]["x.npy"] == {"dtype": "float32", "shape": [8, 64], "codec": "quantized"}
    data = (tmp_path / "q" / shard["raw_data"]["basename"]).read_bytes()
    at = data.index(b"TGQ1")
    length = 12 + 2 * 4 + 4 * 8 + 512
    array = Quantized.from_bytes(data[at : at + length])
    assert array.shape == (8, 64)
    assert array.fidelity(arrays[1][0])["sqnr_db"] > 35


def test_wishes_that_cannot_be_fulfilled_say_why(arrays, tmp_path, capfd):
    for arguments, words in (
        (["--quantize", "x.npy"], "give a field and its bits"),
        (["--quantize", "y=4"], "no field"),
        (["--quantize", "t.npy=4"], "only floats"),
        (["--codec", "lzma"], "known are lz4"),
        (["--codec", "abs:1e-3"], "float32 or float64"),
        (["--codec", "auto", "--format", "tar"], "--format mds"),
        (["--codec", "y=zstd"], "no field"),
        (["--codec", "zstd", "--codec", "lz4"], "as in x=lz4"),
    ):
        assert _tidegate.cli(["tidegate", "pack", str(arrays[0]), str(tmp_path / "no"), *arguments]) == 1
        assert words in capfd.readouterr().err


def test_analysis_says_what_can_be_reached(arrays, tmp_path, capfd):
    arguments = ["tidegate", "compress", "analyse", str(arrays[0]), "--plot", str(tmp_path), "--bound", "abs:0.01"]
    assert _tidegate.cli(arguments) == 0
    text = capfd.readouterr().out
    assert "entropy" in text
    assert "shuffle+zstd" in text
    assert "abs:0.01" in text
    assert "R(D), histogram" in text
    assert (tmp_path / "x.npy.svg").read_text().startswith("<svg")
    assert _tidegate.cli([*arguments, "--json", "--field", "x.npy"]) == 0
    (found,) = json.loads(capfd.readouterr().out)
    assert found["field"] == "x.npy"
    assert found["dtype"] == "float32"
    assert found["samples"] == 200
    (bound,) = [near for near in found["lossy"] if near["name"] == "abs:0.01"]
    assert bound["largest_error"] <= 0.01
    assert bound["bits"] < 8
    assert all(codec["ratio"] > 0.9 and codec["unpack_gb_s"] > 0 for codec in found["lossless"])
    assert _tidegate.cli(["tidegate", "compress", "analyse", str(arrays[0]), "--field", "y"]) == 1
    assert "the fields are" in capfd.readouterr().err


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "float16", "bfloat16", "float32", "float64"])
def test_arrays_of_all_types_come_back(dtype):
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    x = np.random.default_rng(0).integers(0, 100, (7, 11)).cumsum(axis=1).astype(kind)
    for codec in compress.codecs(dtype):
        back = compress.unpack(compress.pack(x, codec))
        assert back.dtype == x.dtype
        np.testing.assert_array_equal(back, x)
    if x.dtype.itemsize > 1 and dtype != "bfloat16":
        np.testing.assert_array_equal(compress.unpack(compress.pack(x.astype(x.dtype.newbyteorder(">")))), x)
    with pytest.raises(tg.DataError):
        compress.unpack(compress.pack(x, "zstd")[:-3])


def test_bytes_that_claim_more_than_memory_has_are_refused():
    packed = bytearray(compress.pack(np.zeros((1, 1), "uint32"), "zstd"))
    assert packed[8:16] == np.ones(2, "<u4").tobytes()
    for sides in ((2**31, 2**11), (2**32 - 1, 2**32 - 1)):
        packed[8:16] = np.array(sides, "<u4").tobytes()
        with pytest.raises(tg.DataError, match=r"memory"):
            compress.unpack(bytes(packed))


def test_bounds_hold_for_whatever_floats_there_are():
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.normal(size=5000) * 10.0 ** rng.integers(-40, 38, 5000), [np.nan, np.inf, -np.inf, 1e-320, -0.0]]
    )
    for dtype in ("float32", "float64"):
        values = x.astype(dtype)
        for error in (1e-3, 1e3):
            back = compress.unpack(compress.pack(values, f"abs:{error}"))
            finite = np.isfinite(values)
            assert np.abs(back[finite].astype("float64") - values[finite]).max() <= error
            np.testing.assert_array_equal(back[~finite], values[~finite])
    rounded = compress.unpack(compress.pack(x.astype("float32"), "bitround:8+shuffle+zstd"))
    singles = x.astype("float32")
    normal = np.isfinite(singles) & (np.abs(singles) > 1e-37)
    assert np.abs(rounded[normal] / singles[normal].astype("float64") - 1).max() <= 2.0**-9
    with pytest.raises(tg.ConfigError, match="above 0"):
        compress.pack(x, "abs:0")
