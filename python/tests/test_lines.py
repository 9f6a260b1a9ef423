"""JSON Lines, CSV and TSV as Python's own modules write them, and token files."""

import csv
import json

import numpy as np
import pytest

import tidegate as tg

TEXTS = ["plain", 'say "hi"', "a,b\tc", "line\nbreak", "é ü 漢字 🙂", "back\\slash", "", " blank ", "tab\t\r"]


def rows(count=200):
    rng = np.random.default_rng(0)
    return [
        {
            "id": i,
            "text": TEXTS[i % len(TEXTS)],
            "score": round(rng.normal(), 6),
            "tags": rng.integers(0, 100, i % 4).tolist() if i else [1],
            "more": {"a": [i, {"b": None}]},
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("ascii", [True, False])
def test_objects_are_samples(tmp_path, ascii):
    data = rows()
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in data))
    source = tg.open(tmp_path / "a.jsonl")
    assert source.schema == {"id": "int", "text": "text", "score": "float", "tags": "numbers", "more": "json"}
    assert source[1]["text"] == 'say "hi"'
    seen = []
    for memory, workers in (("8MiB", 1), ("64MiB", 3)):
        loader = tg.Loader(source, batch_size=16, memory=tg.Budget(memory), shuffle=True, seed=1, workers=workers)
        found = []
        for batch in loader:
            for i, id in enumerate(batch["id"]):
                row = data[id]
                assert batch["text"][i] == row["text"]
                assert batch["score"][i] == row["score"]
                assert batch["tags"][i].tolist() == row["tags"]
                assert json.loads(batch["more"][i]) == row["more"]
                found.append(id)
        assert sorted(found) == list(range(200))
        seen.append(found)
    assert seen[0] == seen[1]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
def test_records_are_samples(tmp_path, name, delimiter):
    data = rows()
    with open(tmp_path / name, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", "text", "score"])
        writer.writerows([row["id"], row["text"] or "-", row["score"]] for row in data)
    source = tg.open(tmp_path / name)
    assert source.schema == {"id": "int", "text": "text", "score": "float"}
    loader = tg.Loader(source, batch_size=16, memory=tg.Budget("16MiB"), shuffle=True)
    for batch in loader:
        for i, id in enumerate(batch["id"]):
            assert batch["text"][i] == (data[id]["text"] or "-")
            assert batch["score"][i] == data[id]["score"]


def test_bad_lines_follow_the_policy_by_their_number(tmp_path):
    good = "".join(f'{{"a": {i}}}\n' for i in range(1000))
    (tmp_path / "a.jsonl").write_text(good + '{"a": 2\n\n{"a": "x"}\n{"b": 1}\n{"a": 5}\n')
    with pytest.warns(tg.DataWarning, match='"a" is int in 1001 samples and other in 1.*sample 1001: those fail'):
        source = tg.open(tmp_path / "a.jsonl")
    (batch,) = tg.Loader(source, batch_size=1004, memory=tg.Budget("8MiB"), on_error="skip", columns=["a"])
    assert batch["a"].tolist() == [*range(1000), 5]
    for id, line, words in (
        (1000, 1001, "no object of JSON"),
        (1001, 1003, "which is int"),
        (1002, 1004, "lacks this field"),
    ):
        with pytest.raises(tg.SampleError, match=words) as caught:
            list(tg.Loader(source.select([id]), batch_size=1, memory=tg.Budget("8MiB")))
        assert f"line {line}" in str(caught.value)
        assert "a.jsonl" in str(caught.value)
    with pytest.raises(tg.SampleError, match="line 1003"):
        _ = source[1001]
    (tmp_path / "l.jsonl").write_text('{"l": [1, 2], "i": 1}\n')
    (batch,) = tg.Loader(tmp_path / "l.jsonl", batch_size=1, memory=tg.Budget("8MiB"), fields=["l"])
    assert batch["l"].values.tolist() == [1, 2]
    (tmp_path / "a.csv").write_text('a,b\n1,"x\ny"\n2\n3,z\n')
    with pytest.raises(tg.SampleError, match="1 cells under 2 names") as caught:
        list(tg.Loader(tmp_path / "a.csv", batch_size=3, memory=tg.Budget("8MiB")))
    assert "line 4" in str(caught.value)
    (tmp_path / "b.csv").write_text("a,c\n1,2\n")
    with pytest.raises(tg.DataError, match="open them apart"):
        tg.open(f"{tmp_path}/*.csv")


def test_text_can_be_packed(tmp_path):
    from tidegate import _tidegate

    data = rows(50)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    for form in ("mds", "tar"):
        assert (
            _tidegate.cli(["tidegate", "pack", str(tmp_path / "a.jsonl"), str(tmp_path / form), "--format", form]) == 0
        )
    again = tg.open(tmp_path / "mds")
    assert [again[i]["text"] for i in range(50)] == [row["text"] for row in data]
    (tmp_path / "a.libsvm").write_text("1 1:1\n")
    assert _tidegate.cli(["tidegate", "pack", str(tmp_path / "a.libsvm"), str(tmp_path / "sparse")]) == 0
    assert tg.open(tmp_path / "sparse").schema == {"label": "float", "indices": "ndarray", "values": "ndarray"}


def test_tokens_come_in_sequences(tmp_path):
    stream = np.random.default_rng(0).integers(0, 50_000, 10_007).astype("uint16")
    stream.tofile(tmp_path / "train.bin")
    source = tg.tokens(tmp_path / "train.bin", 100, dtype="uint16")
    assert len(source) == 100
    for batch in tg.Loader(source, batch_size=8, memory=tg.Budget("16MiB"), shuffle=True, seed=0):
        for id, row in zip(batch.ids, batch["tokens"], strict=True):
            np.testing.assert_array_equal(row, stream[100 * id : 100 * id + 101])
    header = np.zeros(256, "int32")
    header[:3] = 20_240_520, 1, len(stream)
    with open(tmp_path / "llmc.bin", "wb") as file:
        file.write(header.tobytes() + stream.tobytes())
    np.testing.assert_array_equal(
        next(iter(tg.Loader(tg.tokens(tmp_path / "llmc.bin", 50), batch_size=2, memory=tg.Budget("8MiB"))))["tokens"][
            1
        ],
        stream[50:101],
    )
    with pytest.raises(tg.DataError, match="give dtype"):
        tg.tokens(tmp_path / "train.bin", 100)
    with pytest.raises(tg.ConfigError, match="byte order"):
        tg.tokens(tmp_path / "train.bin", 100, dtype=">u2")
    (tmp_path / "odd.bin").write_bytes(b"abc")
    with pytest.raises(tg.DataError, match="no whole number"):
        tg.tokens(tmp_path / "odd.bin", 1, dtype="uint16")


def test_a_text_file_beside_pictures_or_shards_is_no_dataset(folder, shards, tmp_path):
    import shutil

    for data, name in ((folder, "images"), (shards, "shards")):
        shutil.copytree(data, tmp_path / name, ignore=shutil.ignore_patterns(".tidegate"))
        (tmp_path / name / "metadata.csv").write_text("a,b\n1,2\n")
        assert tg.open(tmp_path / name).schema == tg.open(data).schema


def test_quoted_json_can_be_read_as_json(tmp_path):
    inner = json.dumps({"a": "x"})
    (tmp_path / "a.jsonl").write_text(json.dumps({"doc": inner, "n": "7"}) + "\n")
    fields = {"doc": tg.Json(), "n": tg.Int()}
    (batch,) = tg.Loader(tmp_path / "a.jsonl", batch_size=1, memory=tg.Budget("8MiB"), fields=fields)
    assert bytes(batch["doc"].values).decode() == inner
    assert batch["n"].tolist() == [7]


def test_all_lines_decide_the_types(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [{"score": 1, "note": None} for _ in range(1500)]
    lines[1200]["score"] = 0.5
    lines[1300]["late"] = "here"
    lines[1400]["note"] = "text"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = tg.open(path)
    assert source.schema == {"score": "float", "note": "text", "late": "text"}
    assert source.missing == {"note": 1499, "late": 1499}
    assert (source[1200]["score"], source[1300]["late"], source[1400]["note"]) == (0.5, "here", "text")


def test_what_json_dumps_writes_by_default_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    data = [{"x": float("nan"), "l": [1.5, float("inf")]}, {"x": -float("inf"), "l": [None, 2]}, {"x": 1.0, "l": []}]
    nested = [{"more": {"deep": [float("nan")]}}, {"more": {}}, {"more": 1}]
    path.write_text("".join(json.dumps(a | b) + "\n" for a, b in zip(data, nested, strict=True)))
    with pytest.warns(tg.DataWarning, match='"more" is json in 2 samples and other in 1.*all come as JSON text'):
        source = tg.open(path)
    (batch,) = tg.Loader(source, batch_size=3, memory=tg.Budget("16MiB"))
    np.testing.assert_array_equal(batch["x"], [np.nan, -np.inf, 1])
    for row, expected in zip(batch["l"], [[1.5, np.inf], [np.nan, 2], []], strict=True):
        np.testing.assert_array_equal(row, expected)
    assert list(batch["more"]) == ['{"deep": [NaN]}', "{}", "1"]


def test_half_of_a_pair_of_escapes_concerns_its_sample(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"t": text}) + "\n" for text in ("good", "\ud83d", "\U0001f642")))
    loader = tg.Loader(path, batch_size=3, memory=tg.Budget("16MiB"), on_error="skip", columns=["t"])
    assert list(next(iter(loader))["t"]) == ["good", "\U0001f642"]
    assert "half of a pair" in loader.report()["failures"][0]


def test_a_table_as_pandas_writes_it(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(',a,b\n0,1.5,x\n1,,"say ""hi""\nthere"\n')
    source = tg.open(path)
    assert source.schema == {"Unnamed: 0": "int", "a": "float", "b": "text"}
    assert source[0] == {"Unnamed: 0": 0, "a": 1.5, "b": "x"}
    assert source.missing == {"a": 1}


def test_numbers_come_as_text_with_their_zeros(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("zip,x\n00123,1.50\n4,2\n")
    (batch,) = tg.Loader(path, batch_size=2, memory=tg.Budget("16MiB"), fields={"zip": tg.Text(), "x": tg.Text()})
    assert (list(batch["zip"]), list(batch["x"])) == (["00123", "4"], ["1.50", "2"])
    (batch,) = tg.Loader(path, batch_size=2, memory=tg.Budget("16MiB"))
    assert (batch["zip"].tolist(), batch["x"].tolist()) == ([123, 4], [1.5, 2])
    other = tmp_path / "b.csv"
    other.write_text("n\n1\n2\nN/A\n")
    with pytest.warns(tg.DataWarning, match='column "n" is a number in 2 samples and other in 1.*sample 2: all come'):
        assert tg.open(other)[0] == {"n": "1"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_wide_text_is_named(tmp_path, name, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / name).write_text(f'{mark}{{"a": 1}}\n', encoding=encoding)
    with pytest.raises(tg.DataError, match="text in UTF-16: save it as UTF-8"):
        tg.open(tmp_path / name)


def test_numbers_of_tables_are_packed_as_numbers(tmp_path):
    from tidegate import _tidegate

    (tmp_path / "a.csv").write_text("n,x\n7,0.25\n8,-3\n")
    assert _tidegate.cli(["tidegate", "pack", str(tmp_path / "a.csv"), str(tmp_path / "out")]) == 0
    assert list(tg.open(tmp_path / "out")) == [{"n": 7, "x": 0.25}, {"n": 8, "x": -3.0}]
