"""Parquet, Arrow and Feather files: the rows of pyarrow, or a refusal that names the cause.

Flow: arrays -> one file or several -> pyarrow's readers and `tg.open`. Nulls are missing values.
Memory: a few rows a dataset.
"""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from compare import either, ours, refused, same, warned
from made import encoded, parquet, picture

import tidegate as tg

D = decimal.Decimal
DAY = datetime.datetime(2024, 2, 29, 12, 30, 15)


def stored_numbers(table):
    """Return a table with times as the integers that are stored, which Tidegate delivers."""
    for place, field in enumerate(table.schema):
        if pa.types.is_temporal(field.type):
            width = pa.int32() if field.type.bit_width == 32 else pa.int64()
            table = table.set_column(place, field.name, table[field.name].cast(width).cast(pa.int64()))
    return table


def theirs(path):
    return stored_numbers(pq.read_table(path)).to_pylist()


# {dataset: columns}, each written as Parquet.
SAME = {
    "numbers": {
        "u8": pa.array([0, 255, None], pa.uint8()),
        "i64": pa.array([-(2**63), 2**63 - 1, 0]),
        "f32": pa.array([1 / 3, None, -0.0], pa.float32()),
        "f64": pa.array([float("nan"), 1e-320, float("-inf")]),
        "flag": pa.array([True, False, None]),
    },
    "float16": {"x": pa.array(np.array([0.1, np.nan, 65504], np.float16))},
    "uint64_below_its_half": {"x": pa.array([0, 2**63 - 1], pa.uint64())},
    "texts": {
        "plain": pa.array(["", "é\n\0", None]),
        "large": pa.array(["a", None, "b" * 5000], pa.large_string()),
        "view": pa.array(["a", "longer than twelve bytes", None], pa.string_view()),
        "word": pa.array(["x", None, "x"]).dictionary_encode(),
    },
    "bytes": {
        "plain": pa.array([b"", b"\xff", None]),
        "large": pa.array([b"a", None, b"b"], pa.large_binary()),
        "view": pa.array([b"a", b"longer than twelve bytes", None], pa.binary_view()),
        "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
    },
    "dictionary_of_numbers": {"x": pa.array([7, None, 7, -1]).dictionary_encode()},
    "times": {
        "s": pa.array([DAY, None], pa.timestamp("s")),
        "us": pa.array([DAY, None], pa.timestamp("us")),
        "zone": pa.array([DAY, DAY], pa.timestamp("ns", tz="Europe/Paris")),
        "day": pa.array([DAY.date(), None]),
        "of_day": pa.array([DAY.time(), None], pa.time64("us")),
        "span": pa.array([datetime.timedelta(seconds=3), None]),
    },
    "decimals_of_money": {"x": pa.array([D("1.10"), D("-0.05"), None, D("123456789.99")], pa.decimal128(12, 2))},
    "lists_of_numbers": {
        "i": pa.array([[1, 2], [], None], pa.list_(pa.int32())),
        "f": pa.array([[0.5], [float("nan"), 2], []], pa.large_list(pa.float32())),
        "pair": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int16(), 2)),
        "u": pa.array([[2**64 - 1], [], [1]], pa.list_(pa.uint64())),
    },
    "lists_of_others": {
        "text": pa.array([["a", None], [], None]),
        "flag": pa.array([[True], [False, True], []]),
        "list": pa.array([[[1], []], [], [[2, 3]]]),
    },
    "structs": {
        "one": pa.array([{"a": 1, "b": "x"}, {"a": None, "b": "y"}, None]),
        "deep": pa.array([{"a": {"b": [{"c": 1.5}]}}] * 3),
        "list": pa.array([[{"a": 1}], [], [{"a": 2}, {"a": 3}]]),
    },
    "names_of_columns": {
        "a.b": pa.array([1]),
        "a": pa.array([{"b": 2}]),
        "A": pa.array([3]),
        "é ü": pa.array([4]),
        "": pa.array([5]),
    },
    "images": {"image": pa.array([encoded(picture(i), "PNG") for i in range(3)])},
}


@pytest.mark.parametrize("name", SAME)
def test_the_rows_are_pyarrows(tmp_path, name):
    path = parquet(tmp_path / "a.parquet", SAME[name])
    rows = theirs(path)
    if name == "images":
        rows = [{"image": picture(i)} for i in range(3)]
    same(ours(path), rows)


# What no int64 and no float64 holds: {dataset: column}.
WIDER = {
    "uint64_above_its_half": pa.array([1, 2**63, 2**64 - 1], pa.uint64()),
    "decimals_of_20_digits": pa.array([D("12345678901234567890"), D("12345678901234567891")], pa.decimal128(38, 0)),
}


@pytest.mark.parametrize("name", WIDER)
def test_numbers_are_not_changed(tmp_path, name):
    path = parquet(tmp_path / "a.parquet", {"x": WIDER[name]})
    either(path, theirs(path), '"x"')


WIDE = pa.table(
    {
        "i": pa.array([None if i % 7 == 0 else i - 50 for i in range(100)]),
        "word": pa.array([f"w{i % 5}" for i in range(100)]).dictionary_encode(),
        "list": pa.array([list(range(i % 4)) for i in range(100)]),
        "text": pa.array([f"text {i}" * (i % 3) for i in range(100)]),
    }
)


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_codecs_and_row_groups(tmp_path, codec, version):
    options = {"compression": codec, "data_page_version": version, "row_group_size": 30, "data_page_size": 100}
    path = parquet(tmp_path / "a.parquet", WIDE, **options)
    assert pq.ParquetFile(path).num_row_groups == 4
    same(ours(path), theirs(path))


@pytest.mark.parametrize("encoding", ["DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT", "PLAIN"])
def test_encodings_of_numbers(tmp_path, encoding):
    table = {"x": pa.array(np.random.default_rng(1).integers(-(2**62), 2**62, 200))}
    path = parquet(tmp_path / "a.parquet", table, use_dictionary=False, column_encoding={"x": encoding})
    same(ours(path), theirs(path))


@pytest.mark.parametrize("encoding", ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
def test_encodings_of_texts(tmp_path, encoding):
    path = parquet(
        tmp_path / "a.parquet", WIDE.select(["text"]), use_dictionary=False, column_encoding={"text": encoding}
    )
    same(ours(path), theirs(path))


def written(path, table, stream=False):
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=30)
    return path


@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
def test_arrow(tmp_path, stream):
    more = pa.table(
        {
            "view": pa.array(["a", "longer than twelve bytes"] * 50, pa.string_view()),
            "runs": pa.RunEndEncodedArray.from_arrays(pa.array([60, 100], pa.int32()), pa.array([5, 6])),
        }
    )
    table = WIDE.append_column("view", more["view"]).append_column("runs", more["runs"])
    same(ours(written(tmp_path / "a.arrow", table, stream)), table.to_pylist())


@pytest.mark.parametrize("codec", ["uncompressed", "lz4", "zstd"])
def test_feather(tmp_path, codec):
    path = tmp_path / "a.feather"
    pa.feather.write_feather(WIDE, path, compression=codec, chunksize=30)
    same(ours(path), pa.feather.read_table(path).to_pylist())


# What Tidegate has no type for: {dataset: column}.
ODD = {
    "list_views": pa.array([[1, 2], [], [3]], pa.list_view(pa.int32())),
    "unions": pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])]),
    "intervals": pa.array([pa.MonthDayNano([1, 2, 3])]),
    "lists_of_bytes": pa.array([[b"\x00\xff"], []]),
    "a_dictionary_of_uint64": pa.array([1, 2**63], pa.uint64()).dictionary_encode(),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_types_are_not_changed(tmp_path, name):
    table = pa.table({"x": ODD[name]})
    either(written(tmp_path / "a.arrow", table), table.to_pylist(), '"x"')


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    refused(written(tmp_path / "a.arrow", table), '"x"')


def test_times_of_96_bits(tmp_path):
    table = {"x": pa.array([DAY, None], pa.timestamp("ns"))}
    path = parquet(tmp_path / "a.parquet", table, use_deprecated_int96_timestamps=True)
    same(ours(path), theirs(path))


def test_a_dictionary_that_changes_between_batches_is_refused(tmp_path):
    batches = [pa.record_batch([pa.array(words).dictionary_encode()], ["x"]) for words in (["a", "b"], ["c", "a"])]
    path = tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    assert pa.ipc.open_stream(path.read_bytes()).read_all()["x"].to_pylist() == ["a", "b", "c", "a"]
    refused(path, "a dictionary that changes between record batches")


def test_tensors_keep_their_shape(tmp_path):
    tensors = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    path = parquet(tmp_path / "a.parquet", {"x": pa.FixedShapeTensorArray.from_numpy_ndarray(tensors)})
    read = pq.read_table(path)["x"].combine_chunks().to_numpy_ndarray()
    batch = next(iter(tg.Loader(path, batch_size=2, memory="32MiB")))
    np.testing.assert_array_equal(batch["x"], read)


def union(folder, *tables):
    for number, columns in enumerate(tables):
        parquet(folder / f"{number}.parquet", columns)
    files = sorted(folder.glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files], promote_options="permissive").to_pylist()


# {dataset: the columns of each file}.
UNIONS = {
    "columns_in_another_order": (
        {"a": pa.array([1]), "b": pa.array(["x"])},
        {"b": pa.array(["y"]), "a": pa.array([2])},
    ),
    "wider_integers": ({"a": pa.array([1], pa.int8())}, {"a": pa.array([2**40])}),
    "integers_and_floats": ({"a": pa.array([1])}, {"a": pa.array([0.5])}),
    "string_and_large_string": ({"a": pa.array(["x"])}, {"a": pa.array(["y"], pa.large_string())}),
    "only_nulls": ({"a": pa.nulls(2), "b": pa.array([1, 2])}, {"a": pa.array(["x"]), "b": pa.array([3])}),
}


@pytest.mark.parametrize("name", UNIONS)
def test_files_are_joined_as_pyarrow_does(tmp_path, name):
    rows = union(tmp_path, *UNIONS[name])
    same(ours(tmp_path), rows)


def test_a_column_that_some_files_lack_is_missing_with_a_warning(tmp_path):
    rows = union(tmp_path, {"a": pa.array([1]), "b": pa.array([2])}, {"a": pa.array([3])})
    same(ours(warned(tmp_path, 'column "b" is in 1 of 2 files')), rows)


REFUSED_UNIONS = {
    "numbers_and_texts": (pa.array([1]), pa.array(["x"])),
    "int64_and_uint64": (pa.array([1]), pa.array([2**63], pa.uint64())),
    "milliseconds_and_microseconds": (pa.array([1], pa.timestamp("ms")), pa.array([1], pa.timestamp("us"))),
    "times_and_numbers": (pa.array([1], pa.timestamp("ms")), pa.array([1])),
}


@pytest.mark.parametrize("name", REFUSED_UNIONS)
def test_types_that_cannot_be_joined_are_refused(tmp_path, name):
    for number, column in enumerate(REFUSED_UNIONS[name]):
        parquet(tmp_path / f"{number}.parquet", {"x": column})
    refused(tmp_path, r'1\.parquet: its column "x" holds .*, where files before have .*, such as 0.parquet')


def test_integers_that_no_float_can_hold_are_not_rounded(tmp_path):
    for number, column in enumerate((pa.array([2**53 + 1]), pa.array([0.5]))):
        parquet(tmp_path / f"{number}.parquet", {"x": column})
    tables = [pq.read_table(file) for file in sorted(tmp_path.glob("*.parquet"))]
    with pytest.raises(pa.ArrowInvalid, match="9007199254740993"):
        pa.concat_tables(tables, promote_options="permissive")
    either(tmp_path, [{"x": 2**53 + 1}, {"x": 0.5}], '"x"')


def hive(folder):
    """Write a folder a label, and return the rows that pyarrow reads, which have the label."""
    for label in ("cat", "dog"):
        parquet(folder / f"label={label}/part-0.parquet", {"x": pa.array([len(label)])})
    return pq.read_table(folder).to_pylist()


def test_a_hive_folder(tmp_path):
    either(tmp_path, hive(tmp_path), "Parquet|label=")


def test_a_pattern_of_hive_files_keeps_their_column(tmp_path):
    rows = hive(tmp_path)
    assert rows == [{"x": 3, "label": "cat"}, {"x": 3, "label": "dog"}]
    either(f"{tmp_path}/*/*.parquet", rows, "label")


def test_no_rows_are_refused(tmp_path):
    refused(parquet(tmp_path / "a.parquet", {"x": pa.array([], pa.int64())}), "hold no rows")


def test_a_file_cut_short_is_refused(tmp_path):
    path = parquet(tmp_path / "a.parquet", WIDE)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(pa.ArrowInvalid):
        pq.read_table(path)
    refused(path, "Corrupt footer: the file is damaged")


def test_times_say_what_they_count(tmp_path):
    path = parquet(tmp_path / "a.parquet", SAME["times"])
    source = tg.open(path)
    assert source.units == {
        "s": "datetime64[ms]",
        "us": "datetime64[us]",
        "zone": "datetime64[ns]",
        "day": "datetime64[D]",
        "of_day": "timedelta64[us]",
        "span": "timedelta64[us]",
    }
    assert "zone: int, datetime64[ns]" in repr(source)
    assert source.select([0]).units == source.units
    (batch,) = tg.Loader(source.select([0]), batch_size=1, memory="48MiB")
    assert batch["us"].view(source.units["us"])[0] == np.datetime64(DAY)
    assert batch["day"].view(source.units["day"])[0] == np.datetime64(DAY.date())


def test_tensors_with_permuted_axes_are_said(tmp_path):
    kind = pa.fixed_shape_tensor(pa.int16(), (2, 3), permutation=[1, 0])
    values = pa.FixedSizeListArray.from_arrays(pa.array(range(12), pa.int16()), 6)
    table = pa.table({"x": pa.ExtensionArray.from_storage(kind, values)})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.warns(tg.DataWarning, match='column "x" holds tensors whose axes are permuted'):
        source = tg.open(tmp_path / "a.parquet")
    (batch,) = tg.Loader(source, batch_size=2, memory="48MiB")
    assert batch["x"].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
