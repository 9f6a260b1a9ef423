"""Folders of MosaicML Streaming: the samples of `streaming`'s own readers, or a refusal by name.

Flow: rows -> `MDSWriter` -> `LocalDataset` (`StreamingDataset` where shards are compressed) and
`tg.open`.
Memory: a few kilobytes a dataset.
"""

import decimal
import io

import numpy as np
import pytest
from compare import either, ours, refused, same
from made import encoded, picture
from PIL import Image
from streaming import LocalDataset, MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

import tidegate as tg


def written(folder, columns, rows, **options):
    with MDSWriter(out=str(folder), columns=columns, **options) as writer:
        for row in rows:
            writer.write(row)
    return folder


def theirs(folder):
    data = LocalDataset(str(folder))
    return [data[i] for i in range(len(data))]


def jpeg(seed):
    return Image.open(io.BytesIO(encoded(picture(seed))))


# {dataset: (encodings, a row by its number)}.
SAME = {
    "str": ({"x": "str"}, lambda i: {"x": "é" * i}),
    "bytes": ({"x": "bytes"}, lambda i: {"x": bytes(range(i))}),
    "int": ({"x": "int"}, lambda i: {"x": (-1) ** i * (2**63 - 1 - i)}),
    "numbers_of_every_width": (
        {
            name: name
            for name in (
                "uint8",
                "int8",
                "uint16",
                "int16",
                "uint32",
                "int32",
                "int64",
                "float32",
                "float64",
                "float16",
            )
        },
        lambda i: {
            **{
                name: np.dtype(name).type(100 + i)
                for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64")
            },
            **{name: np.dtype(name).type(i / 3) for name in ("float32", "float64", "float16")},
        },
    ),
    "uint64": ({"x": "uint64"}, lambda i: {"x": np.uint64(2**63 - 1 - i)}),
    "numbers_as_text": ({"i": "str_int", "f": "str_float"}, lambda i: {"i": -i, "f": i / 3}),
    "json": ({"x": "json"}, lambda i: {"x": {"k": [i, None, 1.5, {"é": True}], "empty": []}}),
    "jpeg": ({"x": "jpeg", "label": "int"}, lambda i: {"x": jpeg(i), "label": i}),
    "png": ({"x": "png"}, lambda i: {"x": picture(i, "L" if i % 2 else "RGB")}),
    "pil": ({"x": "pil"}, lambda i: {"x": picture(i)}),
    "arrays_of_one_shape": ({"x": "ndarray:float32:2,3"}, lambda i: {"x": np.full((2, 3), i / 3, np.float32)}),
    "arrays_of_one_type": ({"x": "ndarray:int16"}, lambda i: {"x": np.arange(2 * i, dtype=np.int16).reshape(2, i)}),
    "columns_in_another_order": ({"z": "int", "a": "str", "M": "int"}, lambda i: {"z": i, "a": str(i), "M": -i}),
}


@pytest.mark.parametrize("name", SAME)
def test_the_samples_are_those_of_streaming(tmp_path, name):
    columns, row = SAME[name]
    written(tmp_path / "a", columns, map(row, range(1, 12)), size_limit=1500)
    same(ours(tmp_path / "a"), theirs(tmp_path / "a"))


@pytest.mark.parametrize("dtype", ["uint8", "int64", "uint64", "float16", "float64"])
def test_arrays_that_name_their_type_in_each_sample(tmp_path, dtype):
    rows = [{"x": np.arange(2 * i).reshape(i, 2).astype(dtype)} for i in range(1, 5)]
    written(tmp_path / "a", {"x": "ndarray"}, rows)
    same(ours(tmp_path / "a", {"x": tg.Array(dtype)}), theirs(tmp_path / "a"))


def test_decimals_come_as_their_text(tmp_path):
    rows = [{"x": decimal.Decimal(x)} for x in ("1.10", "-12345678901234567890.5")]
    written(tmp_path / "a", {"x": "str_decimal"}, rows)
    same(ours(tmp_path / "a"), [{"x": str(row["x"])} for row in theirs(tmp_path / "a")])


@pytest.mark.parametrize("compression", ["zstd", "zstd:19", "gz", "bz2", "br", "snappy"])
def test_compressed_shards(tmp_path, compression):
    columns, row = {"x": "str", "b": "bytes"}, lambda i: {"x": f"text {i} " * 20, "b": bytes(i)}
    options = {"compression": compression, "hashes": ["sha1", "xxh64"], "size_limit": 1000}
    written(tmp_path / "a", columns, map(row, range(20)), **options)
    written(tmp_path / "plain", columns, map(row, range(20)))
    clean_stale_shared_memory()
    streamed = StreamingDataset(remote=str(tmp_path / "a"), local=str(tmp_path / "local"), batch_size=1, shuffle=False)
    same(theirs(tmp_path / "plain"), [streamed[i] for i in range(len(streamed))])
    same(ours(tmp_path / "a"), theirs(tmp_path / "plain"))


def test_a_damaged_shard_is_refused(tmp_path):
    columns, row = SAME["str"]
    written(tmp_path / "a", columns, map(row, range(20)), compression="zstd", hashes=["sha1"])
    (shard,) = (tmp_path / "a").glob("*.zstd")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    refused(tmp_path / "a", "sha1")


def test_pickles_are_refused_by_the_name_of_the_column(tmp_path):
    written(tmp_path / "a", {"x": "pkl", "i": "int"}, [{"x": {1: 2}, "i": 3}])
    refused(tmp_path / "a", 'column "x" is pickled, and unpickling runs code')


@pytest.mark.parametrize("encoding", ["uint64", "str_int"])
def test_integers_beyond_64_bits_fail_by_name(tmp_path, encoding):
    values = {"uint64": np.uint64(2**63), "str_int": 2**63}
    written(tmp_path / "a", {"x": encoding}, [{"x": values[encoding]}])
    refused(tmp_path / "a", f'field "x" is no {encoding} that fits 64 bits')


# {encoding: value}: several images in one field.
SEVERAL = {
    "jpeg_array": [encoded(picture(1)), encoded(picture(2))],
    "list[jpeg]": [jpeg(1), jpeg(2)],
    "list[png]": [picture(1)],
    "list[pil]": [picture(1), picture(2)],
}


@pytest.mark.parametrize("encoding", SEVERAL)
def test_several_images_in_one_field(tmp_path, encoding):
    written(tmp_path / "a", {"x": encoding}, [{"x": SEVERAL[encoding]}])
    either(tmp_path / "a", theirs(tmp_path / "a"), '"x"')
