"""Zarr arrays of version 2 and 3: the elements of zarr-python, or a refusal that names the cause.

Flow: an array -> `zarr.create_array` -> `zarr.open_array` and `tg.volume`, whole and in patches.
Memory: a few kilobytes an array.
"""

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

import tidegate as tg

SHAPE = (9, 8, 10)
PLAIN = {"shape": SHAPE, "chunks": (5, 4, 8), "dtype": "uint16", "fill_value": 7}


def elements(dtype):
    values = np.random.default_rng(3).integers(0, 60_000, SHAPE)
    return (values % 2 if dtype == "bool" else values).astype(dtype)


def written(path, part=slice(None), **options):
    array = zarr.create_array(path, **(PLAIN | options))
    array[part] = elements(array.dtype)[part]
    return path


def same_elements(path):
    """Compare all elements by one patch, and by batches of small patches, with zarr's."""
    theirs = zarr.open_array(path, mode="r")[:]
    whole = tg.volume(path, patch=theirs.shape)[0]["data"]
    assert whole.dtype == theirs.dtype.newbyteorder("=")
    np.testing.assert_array_equal(whole, theirs)
    tiles = tg.volume(path, patch=(4, 3, 5), stride=(4, 3, 5))
    for batch in tg.Loader(tiles, batch_size=4, memory=tg.Budget("16MiB")):
        for id, tile in zip(batch.ids, batch["data"], strict=True):
            z, y, x = tiles.origin(int(id))
            np.testing.assert_array_equal(tile, theirs[z : z + 4, y : y + 3, x : x + 5])


TYPES = ["bool", "uint8", "int8", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", TYPES)
def test_elements_of_every_type(tmp_path, version, dtype):
    same_elements(written(tmp_path / "a", dtype=dtype, zarr_format=version, fill_value=1))


# {array: options of `create_array`}.
SECOND = {
    "zstd": {"compressors": numcodecs.Zstd(3)},
    "zlib": {"compressors": numcodecs.Zlib()},
    "gzip": {"compressors": numcodecs.GZip()},
    "bz2": {"compressors": numcodecs.BZ2()},
    "blosc_lz4": {"compressors": numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE)},
    "blosc_lz4hc_bits": {"compressors": numcodecs.Blosc("lz4hc", 5, numcodecs.Blosc.BITSHUFFLE)},
    "blosc_zlib": {"compressors": numcodecs.Blosc("zlib")},
    "blosc_blosclz": {"compressors": numcodecs.Blosc("blosclz", 9)},
    "not_compressed": {"compressors": None},
    "shuffled": {"filters": numcodecs.Shuffle(2), "compressors": numcodecs.Zlib()},
    "fletcher32": {"filters": numcodecs.Fletcher32()},
    "adler32": {"compressors": numcodecs.Adler32()},
    "fortran_order": {"order": "F"},
    "big_endian": {"dtype": ">u2"},
    "slashes": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
}
THIRD = {
    "zstd": {"compressors": ZstdCodec(level=3, checksum=True)},
    "gzip": {"compressors": GzipCodec()},
    "blosc": {"compressors": BloscCodec(cname="zstd", shuffle="bitshuffle")},
    "crc32c": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "not_compressed": {"compressors": None},
    "big_endian": {"serializer": BytesCodec(endian="big")},
    "transposed": {"filters": TransposeCodec(order=(2, 0, 1))},
    "sharded": {"chunks": (4, 4, 4), "shards": (8, 8, 8)},
    "sharded_and_transposed": {"chunks": (4, 4, 4), "shards": (8, 8, 8), "filters": TransposeCodec(order=(2, 0, 1))},
    "index_before_the_shard": {"chunks": (4, 4, 4), "shards": {"shape": (8, 8, 8), "index_location": "start"}},
    "dots_in_keys": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    "named_axes": {"dimension_names": ["z", "y", "x"]},
}


@pytest.mark.parametrize("name", SECOND)
def test_version_2(tmp_path, name):
    same_elements(written(tmp_path / "a", zarr_format=2, **SECOND[name]))


@pytest.mark.parametrize("name", THIRD)
def test_version_3(tmp_path, name):
    same_elements(written(tmp_path / "a", **THIRD[name]))


# {array: options}, of which only one corner is stored.
MISSING = {
    "version_2": {"zarr_format": 2},
    "version_2_without_a_fill_value": {"zarr_format": 2, "fill_value": None},
    "version_3": {},
    "nan": {"dtype": "float32", "fill_value": float("nan")},
    "shards": {"chunks": (4, 4, 4), "shards": (8, 8, 8)},
}


@pytest.mark.parametrize("name", MISSING)
def test_chunks_that_are_not_stored(tmp_path, name):
    same_elements(written(tmp_path / "a", part=(slice(4),) * 3, **MISSING[name]))


# {array: (options, words)}.
REFUSED = {
    "lz4": ({"zarr_format": 2, "compressors": numcodecs.LZ4()}, "codec lz4 is not supported; known codecs are"),
    "lzma": ({"zarr_format": 2, "compressors": numcodecs.LZMA()}, "codec lzma is not supported"),
    "delta": ({"zarr_format": 2, "filters": numcodecs.Delta("u2")}, "codec delta is not supported"),
    "astype": ({"zarr_format": 2, "filters": numcodecs.AsType("u4", "u2")}, "codec astype is not supported"),
    "complex": ({"dtype": "complex64", "fill_value": 0}, 'unknown dtype "complex64"'),
    "dates": ({"dtype": "M8[s]", "zarr_format": 2, "fill_value": 0}, r"data type <M8\[s\] is not supported"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_cause_is_named(tmp_path, name):
    options, words = REFUSED[name]
    written(tmp_path / "a", **options)
    with pytest.raises(tg.DataError, match=words):
        tg.volume(tmp_path / "a", patch=SHAPE)


def test_a_group_asks_for_the_array(tmp_path):
    group = zarr.open_group(tmp_path / "g", mode="w")
    group.create_array("a", shape=SHAPE, dtype="uint8")
    with pytest.raises(tg.DataError, match="name the array in it"):
        tg.volume(tmp_path / "g", patch=SHAPE)
    assert (tg.volume(tmp_path / "g", array="a", patch=SHAPE)[0]["data"] == group["a"][:]).all()


def test_a_damaged_chunk_fails_by_its_name(tmp_path):
    path = written(tmp_path / "a", compressors=GzipCodec())
    (path / "c/0/0/0").write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(tg.DataError, match="c/0/0/0"):
        tg.volume(path, patch=SHAPE)[0]
