"""Fields that some samples lack: defaults, validity, joined fields, unions; and odd arrays."""

import io
import json
import math
import pickle
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_found import link, picture, tar

import tidegate as tg
from tidegate import _tidegate


def all_of(source, **options):
    """Return the batch of an epoch in one batch, without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = tg.Loader(source, batch_size=100, memory=tg.Budget("16MiB"), **options)
        return next(iter(loader))


def half(tmp_path):
    """Make a tar in which every other sample has a caption and a class."""
    members = []
    for i in range(6):
        members.append((f"{i}.jpg", picture()))
        if i % 2:
            members += [(f"{i}.txt", f"caption {i}".encode()), (f"{i}.cls", b"7")]
    return tg.open(tar(tmp_path / "half.tar", *members))


def test_a_source_says_what_samples_lack(tmp_path):
    source = half(tmp_path)
    assert source.missing == {"txt": 3, "cls": 3}
    assert "jpg: image, txt: text (3 missing), cls: int (3 missing)" in repr(source)
    assert tg.open(source._inner.name).missing == source.missing, "the index keeps it"
    assert tg.synthetic(3, 8).missing == {}


def test_a_missing_field_is_an_error_with_the_fix(tmp_path):
    with pytest.raises(tg.SampleError, match='"txt": the sample lacks this field: say .* optional=True or default='):
        all_of(half(tmp_path))


def test_fields_that_are_not_named_and_not_everywhere_are_left_out_with_a_word(tmp_path):
    source = half(tmp_path)
    with pytest.warns(tg.DataWarning, match="does not name 'txt', which 3 of 6 samples lack; 'cls', which 3 of 6"):
        loader = tg.Loader(source, batch_size=6, memory=tg.Budget("16MiB"), fields={"jpg": tg.Image(8)})
    assert set(next(iter(loader))) == {"jpg"}
    assert "txt" not in repr(loader)
    assert set(all_of(source, fields={"jpg": tg.Image(8)}, columns=["jpg"])) == {"jpg"}
    # A field that every sample has is inferred, as before.
    lines = tmp_path / "all.jsonl"
    lines.write_text('{"a": 1, "b": "x"}\n{"a": 2, "b": "y"}\n')
    assert set(all_of(lines, fields={"a": tg.Float()})) == {"a", "b"}


def test_defaults_and_validity(tmp_path):
    fields = {
        "jpg": tg.Image(8),
        "txt": tg.Text(default="none of it"),
        "cls": tg.Int(default=-1, optional=True),
    }
    batch = all_of(half(tmp_path), fields=fields)
    assert list(batch["txt"]) == ["none of it", "caption 1", "none of it", "caption 3", "none of it", "caption 5"]
    assert batch["cls"].tolist() == [-1, 7, -1, 7, -1, 7]
    assert batch["cls.valid"].dtype == bool
    assert batch["cls.valid"].tolist() == [False, True] * 3


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_every_kind_of_field_has_a_default(tmp_path, output):
    members = []
    for i in range(4):
        members.append((f"{i}.json", b"{}"))
        if i % 2:
            array = tmp_path / "x.npy"
            np.save(array, np.full((2, 3), 5, "float32"))
            members += [(f"{i}.png", picture("PNG")), (f"{i}.npy", array.read_bytes()), (f"{i}.bin", b"ab")]
            members += [(f"{i}.seg.png", gray(3)), (f"{i}.wide.png", picture("PNG"))]
    source = tg.open(tar(tmp_path / "a.tar", *members))
    fields = {
        "png": tg.Image(16, dtype="float32", default="zeros"),
        "wide.png": tg.Image(optional=True),
        "seg.png": tg.Mask("png", default=255),
        "npy": tg.Array("float32", (2, 3), default=math.nan),
        "bin": tg.Bytes(default=b"--", optional=True),
        "json": tg.Json(),
    }
    batch = all_of(source, fields=fields, output=output)
    assert [bool(row.any()) for row in batch["png"]] == [False, True] * 2
    assert [row.shape for row in batch["wide.png"]] == [(0, 0, 3), (16, 16, 3)] * 2
    assert batch["wide.png.valid"].tolist() == [False, True] * 2
    assert batch["seg.png"][0].tolist() == np.full((16, 16), 255).tolist()
    assert batch["seg.png"][1].tolist() == np.full((16, 16), 3).tolist()
    np.testing.assert_array_equal(batch["npy"][0], np.full((2, 3), math.nan))
    np.testing.assert_array_equal(batch["npy"][1], np.full((2, 3), 5))
    assert list(batch["bin"]) == [b"--", b"ab"] * 2


def gray(value):
    buffer = io.BytesIO()
    Image.new("L", (16, 16), value).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (lambda: tg.Text(default=3), "default=3: expected a str"),
        (lambda: tg.Int(default="x"), "default='x'"),
        (lambda: tg.Int(default=2**63), "default="),
        (lambda: tg.Float(default="nan"), "default='nan': expected a number"),
        (lambda: tg.Bytes(default="x"), "expected bytes"),
        (lambda: tg.Json(default="{"), "JSON text"),
        (lambda: tg.Image(default="zeros"), "needs a size"),
        (lambda: tg.Image(8, default=0), "default=0"),
        (lambda: tg.Mask("jpg", default=256), "default=256"),
        (lambda: tg.Array("int8", default=0), "needs a shape"),
        (lambda: tg.Array("int8", (2,), default=300), "a number that int8 can hold"),
        (lambda: tg.Array("uint8", (2,), default=-1), "a number that uint8 can hold"),
        (lambda: tg.Int(optional="yes"), "optional='yes'"),
        (lambda: tg.Int(default=1, optional="yes"), "optional='yes'"),
        (lambda: tg.Text(default="\ud800"), "text that UTF-8 can hold"),
        (lambda: tg.Float(default=10**400), "a number that float64 can hold"),
        (lambda: tg.Array("bfloat16", (2,), default=0.3), "a number that bfloat16 can hold"),
        (lambda: tg.Array("bfloat16", (2,), default=1e39), "a number that bfloat16 can hold"),
    ],
)
def test_defaults_are_checked_where_they_are_given(spec, words):
    with pytest.raises(tg.ConfigError, match=words):
        spec()


def test_defaults_that_fit_are_taken():
    assert tg.Array("bfloat16", (2,), default=math.nan).spec()["default"] == [192, 127]
    assert tg.Array("bool", (2,), default=True).spec()["default"] == [1]
    assert tg.Array("uint8", (2,), default=255).spec()["default"] == [255]


def test_a_validity_column_that_is_there_already_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1, "a.valid": 2}\n')
    with pytest.raises(tg.ConfigError, match='two columns "a.valid"'):
        all_of(path, fields={"a": tg.Int(optional=True)})


def test_missing_values_are_cached_and_resumed_like_others(tmp_path):
    fields = {"cls": tg.Int(default=-1, optional=True)}
    loader = tg.Loader(
        half(tmp_path), batch_size=4, memory=tg.Budget("16MiB"), columns=["cls"], fields=fields, cache="decoded"
    )
    epochs = [[(batch["cls"].tolist(), batch["cls.valid"].tolist()) for batch in loader] for _ in range(3)]
    assert epochs[0] == epochs[1] == epochs[2]
    assert [value for values, _ in epochs[0] for value in values] == [-1, 7] * 3


def test_endings_of_one_field_are_joined(tmp_path):
    members = [("0.jpg", picture()), ("1.png", picture("PNG")), ("2.jpeg", picture()), ("3.jpg", picture())]
    source = tg.open(tar(tmp_path / "a.tar", *members))
    name = "jpg;png;jpeg;webp"
    batch = all_of(source, fields={name: tg.Image(8)})
    assert batch[name].shape == (4, 3, 8, 8)
    assert abs(batch[name][0].astype(int) - batch[name][1]).max() < 8
    assert all_of(source, columns=[name])[name][2].shape == (16, 16, 3)
    with pytest.raises(tg.SampleError, match='field "jpg;png"'):
        all_of(source, fields={"jpg;png": tg.Image(8)}, columns=["jpg;png"])
    with pytest.raises(tg.ConfigError, match="no field 'gif;bmp'"):
        all_of(source, columns=["gif;bmp"])
    mixed = tg.open(tar(tmp_path / "b.tar", ("0.jpg", picture()), ("0.txt", b"x")))
    with pytest.raises(tg.ConfigError, match='joins "jpg", which holds image, and "txt", which holds text'):
        all_of(mixed, fields={"jpg;txt": tg.Image(8)})


def test_a_profile_counts_what_is_missing(tmp_path):
    profile = tg.profile(half(tmp_path), memory=tg.Budget("64MiB"), save=False)
    fields = profile.summary["fields"]
    assert {name: field["missing"] for name, field in fields.items()} == {"jpg": 0, "txt": 3, "cls": 3}


def test_joined_fields_are_profiled_as_one(tmp_path):
    path = tar(tmp_path / "a.tar", ("0.jpg", picture()), ("1.png", picture("PNG")), ("1.txt", b"x"))
    fields = {"jpg;png": tg.Image(8)}
    profile = tg.profile(path, memory=tg.Budget("64MiB"), fields=fields, save=False)
    found = {name: field["missing"] for name, field in profile.summary["fields"].items()}
    assert found == {"jpg;png": 0, "txt": 1}


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)


def test_tables_are_joined_by_the_names_of_columns(tmp_path):
    parquet(tmp_path / "a.parquet", text=pa.array(["x", "y"]), n=pa.array([1, 2], pa.int32()), only=pa.array([7, 8]))
    parquet(tmp_path / "b.parquet", n=pa.array([0.5, 3.0]), text=pa.array(["z", None], pa.large_string()))
    parquet(tmp_path / "c.parquet", n=pa.array([None], pa.null()), text=pa.array(["w"]).dictionary_encode())
    with pytest.warns(tg.DataWarning, match='column "only" is in 1 of 3 files, and missing in the others'):
        source = tg.open(tmp_path)
    assert source.missing == {"text": 1, "n": 1, "only": 3}
    fields = {"text": tg.Text(default="-"), "n": tg.Float(default=-1), "only": tg.Int(optional=True)}
    for again in (source, pickle.loads(pickle.dumps(source))):
        batch = all_of(again, fields=fields)
        assert list(batch["text"]) == ["x", "y", "z", "-", "w"]
        assert batch["n"].tolist() == [1, 2, 0.5, 3, -1]
        assert batch["only"].tolist() == [7, 8, 0, 0, 0]
        assert batch["only.valid"].tolist() == [True, True, False, False, False]
    assert all_of(source, columns=["n"], fields={"n": tg.Float(default=0)})["n"].tolist() == [1, 2, 0.5, 3, 0]
    assert source[3] == {"n": 3.0}


@pytest.mark.parametrize(
    ("one", "other"), [(pa.array([1]), pa.array(["x"])), (pa.array([2**63], pa.uint64()), pa.array([-1]))]
)
def test_types_that_have_nothing_in_common_are_refused_with_both(tmp_path, one, other):
    parquet(tmp_path / "a.parquet", x=one)
    parquet(tmp_path / "b.parquet", x=other)
    with pytest.raises(
        tg.DataError, match=r'b.parquet: its column "x" holds .*, where files before have .*, such as a.parquet: '
    ):
        tg.open(tmp_path)


def test_lists_of_lists_of_one_shape_are_arrays(tmp_path):
    inner = pa.list_(pa.list_(pa.int16(), 3), 2)
    rows = [[[1, 2, 3], [4, 5, 6]], None, [[7, 8, 9], [10, 11, 12]]]
    parquet(tmp_path / "a.parquet", x=pa.array(rows, inner), n=pa.array([[[1, None, 3], [4, 5, 6]], *rows[1:]], inner))
    source = tg.open(tmp_path / "a.parquet")
    assert source.schema == {"x": "ndarray", "n": "ndarray"}
    assert source.missing == {"x": 1, "n": 1}
    batch = all_of(source, columns=["x"], fields={"x": tg.Array("int16", (2, 3), default=0)})
    assert batch["x"].tolist() == [rows[0], [[0] * 3] * 2, rows[2]]
    with pytest.raises(tg.SampleError, match=r'field "n": a list of integers has missing values'):
        all_of(source, columns=["n"])


def test_the_hint_has_the_spec_of_the_field(tmp_path):
    members = [("0.jpg", picture()), ("1.png", picture("PNG")), ("0.cls", b"1"), ("0.txt", b"x"), ("1.txt", b"y")]
    path = tar(tmp_path / "a.tar", *sorted(members))
    for fields, hint in [
        ({"txt": tg.Text()}, r"'jpg;png': tg.Image\(224\)"),
        ({"txt": tg.Text(), "jpg;png": tg.Image(8)}, r"'cls': tg.Int\(default=-1\)"),
    ]:
        with pytest.warns(tg.DataWarning, match=hint):
            tg.Loader(path, batch_size=2, memory=tg.Budget("64MiB"), fields=fields)
    with pytest.raises(tg.SampleError, match=r'"x" is no integer: tg.Text\(\) takes it as text'):
        all_of(path, columns=["txt"], fields={"txt": tg.Int()})


def test_an_epoch_without_a_single_sample_is_an_error(tmp_path):
    path = tar(tmp_path / "a.tar", *[(f"{i}.jpg", b"no image") for i in range(3)])
    loader = tg.Loader(path, batch_size=2, memory=tg.Budget("64MiB"), on_error="skip")
    with pytest.raises(tg.DataError, match="3 of 3 samples failed|samples failed"):
        list(loader)


def test_lists_that_a_dictionary_packs_are_opened(tmp_path):
    parquet(tmp_path / "a.parquet", x=pa.array([[1] * 512] * 20_000, pa.list_(pa.int64())))
    assert len(tg.open(tmp_path / "a.parquet")) == 20_000


def test_files_may_differ_in_what_may_be_null_within_a_list(tmp_path):
    for name, nullable in (("a", True), ("b", False)):
        of = pa.list_(pa.field("item", pa.float32(), nullable=nullable), 2)
        parquet(tmp_path / f"{name}.parquet", x=pa.array([[1, 2]], of))
    assert all_of(tmp_path)["x"].tolist() == [[1, 2], [1, 2]]


def test_cells_and_members_of_lines_have_defaults(tmp_path):
    (tmp_path / "a.csv").write_text("n,t\n1,x\n,\n")
    (tmp_path / "b.jsonl").write_text('{"n": 1, "t": "x"}\n{"t": null}\n')
    fields = {"n": tg.Int(default=-1), "t": tg.Text(optional=True)}
    for name in ("a.csv", "b.jsonl"):
        batch = all_of(tmp_path / name, fields=fields)
        assert batch["n"].tolist() == [1, -1]
        assert list(batch["t"]) == ["x", ""]
    assert batch["t.valid"].tolist() == [True, False]


def test_lists_of_different_widths_become_wider(tmp_path):
    parquet(tmp_path / "a.parquet", x=pa.array([[1, 2]], pa.list_(pa.int16())))
    parquet(tmp_path / "b.parquet", x=pa.array([[3], [2**40]], pa.large_list(pa.int64())))
    assert [row.tolist() for row in all_of(tmp_path)["x"]] == [[1, 2], [3], [2**40]]


def test_a_null_in_a_list_concerns_its_sample(tmp_path):
    floats = pa.array([[1.0, None], [2.0]], pa.list_(pa.float32()))
    integers = pa.array([[1, None], [2]], pa.list_(pa.int64()))
    parquet(tmp_path / "a.parquet", floats=floats, integers=integers, plain=pa.array([1, 2]))
    source = tg.open(tmp_path / "a.parquet")
    assert all_of(source, columns=["plain"])["plain"].tolist() == [1, 2]
    rows = list(all_of(source, columns=["floats"])["floats"])
    np.testing.assert_array_equal(rows[0], [1, math.nan])
    assert rows[1].tolist() == [2]
    with pytest.raises(tg.SampleError, match='sample 0 .*"integers": a list of integers has missing values'):
        all_of(source, columns=["integers"])
    loader = tg.Loader(
        source, batch_size=2, memory=tg.Budget("16MiB"), columns=["integers"], on_error="skip", max_failure_rate=0.5
    )
    assert next(iter(loader)).ids.tolist() == [1]


def test_all_values_say_whether_a_column_holds_images(tmp_path):
    gif = picture("GIF")
    parquet(tmp_path / "a.parquet", image=pa.array([gif] + [picture()] * 9), label=pa.array(range(10)))
    with pytest.warns(
        tg.DataWarning,
        match='"image" is an image in 9 samples and no JPEG.* in 1, such as a.parquet:0: those',
    ):
        source = tg.open(tmp_path / "a.parquet")
    assert source.schema["image"] == "image"
    loader = tg.Loader(source, batch_size=10, memory=tg.Budget("16MiB"), fields={"image": tg.Image(8)}, on_error="skip")
    assert next(iter(loader)).ids.tolist() == list(range(1, 10))
    # Where most are not, they are bytes, all of them.
    parquet(tmp_path / "b.parquet", image=pa.array([picture(), b"1", b"2"]))
    assert list(all_of(tmp_path / "b.parquet")["image"])[1:] == [b"1", b"2"]


def test_check_lists_all_that_is_wrong(tmp_path, capfd):
    members = [("0.jpg", picture()), ("1.jpg", b"no image"), ("2.jpg", picture()), ("2.txt", b"\xff"), ("3.jpg", b"")]
    path = str(tar(tmp_path / "a.tar", *members, link("4.jpg", "0.jpg")))
    assert _tidegate.cli(["tidegate", "check", path, "--json"]) == 1
    found = json.loads(capfd.readouterr().out)
    assert found["samples"] == 4
    assert [(f["place"][:8], f["what"][:12]) for f in found["failures"]] == [
        ("sample 1", 'field "jpg":'),
        ("sample 2", 'field "txt":'),
        ("sample 3", 'field "jpg":'),
    ]
    assert found["missing"] == {"txt": 3}
    assert found["left_out"] == ["1 links, such as 4.jpg of a.tar"]
    assert _tidegate.cli(["tidegate", "check", path]) == 1
    assert "a.tar: 3 of 4 samples fail" in capfd.readouterr().out
    good = str(tar(tmp_path / "good.tar", ("0.jpg", picture())))
    assert _tidegate.cli(["tidegate", "check", good]) == 0
    assert capfd.readouterr().out.strip().endswith("good.tar: 0 of 1 samples fail")
    assert _tidegate.cli(["tidegate", "check", str(tmp_path / "none.tar")]) == 2
    # More than are named in a report.
    many = str(tar(tmp_path / "many.tar", *[(f"{i}.jpg", b"x") for i in range(50)]))
    assert _tidegate.cli(["tidegate", "check", many, "--json"]) == 1
    assert len(json.loads(capfd.readouterr().out)["failures"]) == 50


@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">i2", "<c8", "|b1", ">u8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (0, 3)])
def test_arrays_come_in_every_order_of_axes_and_bytes(tmp_path, dtype, order, shape):
    array = np.asarray(np.arange(np.prod(shape)).reshape(shape), dtype, order=order)
    buffer = io.BytesIO()
    np.save(buffer, array)
    path = tar(tmp_path / "a.tar", ("0.npy", buffer.getvalue()))
    if dtype == "<c8":
        with pytest.raises(tg.SampleError, match="dtype <c8 cannot be read"):
            all_of(path, fields={"npy": tg.Array("float32")})
        return
    native = array.dtype.newbyteorder("=")
    for wanted in (shape, None):
        (ours,) = all_of(path, fields={"npy": tg.Array(native, wanted)})["npy"]
        assert ours.dtype == native
        np.testing.assert_array_equal(ours, array)


def test_a_brain_float_is_named_by_two_bytes(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([0x3FC0, 0xC000, 0x4050], "<u2").view("V2"))
    path = tar(tmp_path / "a.tar", ("0.npy", buffer.getvalue()))
    (ours,) = all_of(path, fields={"npy": tg.Array("bfloat16")})["npy"]
    assert ours.astype(np.float32).tolist() == [1.5, -2.0, 3.25]


def test_records_are_refused_with_the_fix(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3, [("a", "<f4"), ("b", "<i2")]))
    with pytest.raises(tg.SampleError, match="structured dtype.*each field as an array of its own"):
        all_of(tar(tmp_path / "a.tar", ("0.npy", buffer.getvalue())), fields={"npy": tg.Array("float32")})


def test_folders_of_hive_give_a_column(tmp_path):
    for name in ("k=1/s=a%2Fb", "k=2/s=__HIVE_DEFAULT_PARTITION__", "k=10/s=c"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        parquet(folder / "p.parquet", x=pa.array([1, 2]))
    (tmp_path / "data" / "_SUCCESS").write_text("")
    source = tg.open(tmp_path / "data")
    assert source.schema == {"x": "int", "k": "int", "s": "text"}
    assert source.missing == {"s": 2}
    rows = [(sample["k"], sample.get("s")) for sample in source]
    assert sorted(rows, key=str) == sorted([(1, "a/b")] * 2 + [(2, None)] * 2 + [(10, "c")] * 2, key=str)
    assert {source.key(i) for i in range(6)} >= {"k=1/s=a/b/p.parquet:0", "k=10/s=c/p.parquet:1"}
    # A part, and other names, are other data.
    assert tg.open(tmp_path / "data/k=10").schema == {"x": "int", "s": "text"}
    assert tg.open(tmp_path / "data").fingerprint == source.fingerprint
    (tmp_path / "data/k=10").rename(tmp_path / "data/k=7")
    renamed = tg.open(tmp_path / "data")
    assert renamed.fingerprint != source.fingerprint
    assert {sample["k"] for sample in renamed} == {1, 2, 7}


def test_a_field_is_delivered_once(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x1", "b": "y1"}\n{"a": "x2"}\n')
    with pytest.raises(tg.ConfigError, match='field "a" is in "a;b" and in "a": name it once'):
        all_of(path, fields={"a;b": tg.Text(), "a": tg.Text(optional=True)})
    with pytest.raises(tg.ConfigError, match='"a;b;a" names a field twice'):
        all_of(path, fields={"a;b;a": tg.Text()})
    # Where a sample has both, the first that is named counts.
    assert list(all_of(path, columns=["a;b"])["a;b"]) == ["x1", "x2"]
    assert list(all_of(path, columns=["b;a"])["b;a"]) == ["y1", "x2"]


def test_what_is_wrong_in_one_member_of_a_line_leaves_the_others_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1, "t": "\\ud800", "deep": ' + "[" * 300 + "]" * 300 + '}\n{"a": 2}\n')
    source = tg.open(path)
    assert source.missing == {"t": 1, "deep": 1}
    assert all_of(source, columns=["a"])["a"].tolist() == [1, 2]
    with pytest.raises(tg.SampleError, match='field "t": half of a pair'):
        all_of(source, columns=["t"], fields={"t": tg.Text(default="")})


def test_integers_beyond_int64_among_others_can_be_had_as_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"n": {n}}}\n' for n in [*range(19), 10**23]))
    with pytest.warns(tg.DataWarning, match='"n" is int in 19 samples and other in 1'):
        source = tg.open(path)
    assert list(all_of(source, fields={"n": tg.Text()})["n"])[-1] == str(10**23)
    with pytest.raises(tg.SampleError, match="beyond int64: take it as tg.Text"):
        all_of(source)


def test_thousands_of_members_are_found_in_any_order(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({f"k{(i * 7) % 5000}": i, "z": 1}) + "\n" for i in range(10_000)))
    source = tg.open(path)
    assert len(source.schema) == 5001
    assert source.missing["k7"] == 9998
    assert "z" not in source.missing


def test_wide_gray_is_no_reason_for_a_scan_to_fail(tmp_path, capfd):
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 64).astype("uint16").reshape(8, 8)).save(buffer, "PNG")
    path = str(tar(tmp_path / "a.tar", ("0.png", buffer.getvalue()), ("1.png", buffer.getvalue())))
    assert _tidegate.cli(["tidegate", "check", path]) == 0
    assert tg.profile(path, memory=tg.Budget("64MiB"), save=False).summary["failed"] == 0
    for by in ("image", "pixels"):
        assert tg.dedup(path, by=by, memory=tg.Budget("64MiB"))["clusters"] == 1
    capfd.readouterr()
