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
    (batch,) = tg.Loader(tmp_path / "a.jsonl", batch_size=1004, memory=tg.Budget("8MiB"), on_error="skip")
    assert batch["a"].tolist() == [*range(1000), 5]
    for id, line, words in (
        (1000, 1001, "no object of JSON"),
        (1001, 1003, "which is int"),
        (1002, 1004, "lacks this field"),
    ):
        with pytest.raises(tg.SampleError, match=words) as caught:
            list(tg.Loader(tg.open(tmp_path / "a.jsonl").select([id]), batch_size=1, memory=tg.Budget("8MiB")))
        assert f"line {line}" in str(caught.value)
        assert "a.jsonl" in str(caught.value)
    with pytest.raises(tg.SampleError, match="line 1003"):
        _ = tg.open(tmp_path / "a.jsonl")[1001]
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
    assert _tidegate.cli(["tidegate", "pack", str(tmp_path / "a.libsvm"), str(tmp_path / "no")]) == 1


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
