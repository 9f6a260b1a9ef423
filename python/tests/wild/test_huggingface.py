"""What `datasets` writes: its own rows, or a refusal that names the cause.

Flow: a `datasets.Dataset` -> `save_to_disk`, Parquet, JSON Lines, CSV, a folder of images ->
`datasets` again and `tg.open`. None is a missing value.
Memory: a few rows a dataset.
"""

import datetime

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from compare import either, ours, refused, same
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from made import picture, stored

import tidegate as tg

PICTURES = [picture(i) for i in range(4)]
DAY = datetime.datetime(2024, 2, 29, 12, 30, 15)

# {dataset: (rows by column, features)}.
SAME = {
    "class_labels": (
        {"label": [0, 1, 1, 0], "text": list("abcd")},
        {"label": ClassLabel(names=["cat", "dog"]), "text": Value("string")},
    ),
    "nulls": (
        {
            "label": [0, None, 1, None],
            "text": ["a", None, "", "d"],
            "score": [0.5, None, float("nan"), 1.0],
            "flag": [True, None, False, None],
        },
        {
            "label": ClassLabel(names=["cat", "dog"]),
            "text": Value("string"),
            "score": Value("float32"),
            "flag": Value("bool"),
        },
    ),
    "images": ({"image": PICTURES, "label": [0, 1, 2, 3]}, {"image": Image(), "label": Value("int8")}),
    "images_of_which_one_is_missing": ({"image": [*PICTURES[:3], None]}, {"image": Image()}),
    "lists": (
        {"tokens": [[1, 2], [], None, [3]], "box": [[0.5, 1, 2, 3]] * 4, "words": [["a"], [], ["b", None], ["c"]]},
        {"tokens": List(Value("int32")), "box": List(Value("float32"), length=4), "words": List(Value("string"))},
    ),
    "large_strings": (
        {"text": ["a", None, "é" * 3000, ""], "raw": [b"\xff", b"", None, b"x"]},
        {"text": Value("large_string"), "raw": Value("large_binary")},
    ),
    "nested": (
        {
            "turns": [[{"role": "user", "n": 1}], [], [{"role": "x", "n": None}] * 2, [{"role": None, "n": 2}]],
            "meta": [{"a": {"b": [1.5]}}] * 4,
        },
        {"turns": List({"role": Value("string"), "n": Value("int64")}), "meta": {"a": {"b": List(Value("float64"))}}},
    ),
    "matrices": (
        {"x": [(np.arange(6).reshape(2, 3) + i).tolist() for i in range(4)]},
        {"x": Array2D((2, 3), "float32")},
    ),
}
LISTS_OF_IMAGES = ({"images": [PICTURES[:2], [], PICTURES[3:], PICTURES[:1]]}, {"images": List(Image())})


def made(columns, features):
    return Dataset.from_dict(columns, features=Features(features))


@pytest.mark.parametrize("name", SAME)
def test_a_saved_dataset(tmp_path, name):
    made(*SAME[name]).save_to_disk(tmp_path / "saved", num_shards=2)
    same(ours(tmp_path / "saved"), list(datasets.load_from_disk(tmp_path / "saved")))


def loaded(kind, path):
    options = {"data_files": str(path), "split": "train", "cache_dir": str(path.parent / "cache")}
    return list(datasets.load_dataset(kind, **options))


@pytest.mark.parametrize("name", SAME)
def test_parquet(tmp_path, name):
    made(*SAME[name]).to_parquet(tmp_path / "a.parquet", batch_size=3)
    same(ours(tmp_path / "a.parquet"), loaded("parquet", tmp_path / "a.parquet"))


def test_lists_of_images(tmp_path):
    data = made(*LISTS_OF_IMAGES)
    data.save_to_disk(tmp_path / "saved")
    either(tmp_path / "saved", list(data), '"images"')


@pytest.mark.parametrize("name", ["class_labels", "nulls", "lists", "nested"])
def test_json_lines(tmp_path, name):
    made(*SAME[name]).to_json(tmp_path / "a.jsonl")
    same(ours(tmp_path / "a.jsonl"), loaded("json", tmp_path / "a.jsonl"))


def test_csv(tmp_path):
    columns = {"n": [1, 2, 3], "text": ["a", None, 'b,"\n"'], "score": [0.5, None, 1.0]}
    Dataset.from_dict(columns).to_csv(tmp_path / "a.csv")
    same(ours(tmp_path / "a.csv"), loaded("csv", tmp_path / "a.csv"))


def test_times_come_as_they_are_stored(tmp_path):
    data = Dataset.from_dict({"t": [DAY] * 2}, features=Features({"t": Value("timestamp[s]")}))
    data.save_to_disk(tmp_path / "saved")
    rows = datasets.load_from_disk(tmp_path / "saved").with_format("arrow")[:]["t"].cast("int64").to_pylist()
    same(ours(tmp_path / "saved"), [{"t": row} for row in rows])


@pytest.mark.parametrize("change", ["select", "filter", "shuffle", "rename_column"])
def test_what_was_changed_before_it_was_saved(tmp_path, change):
    data = Dataset.from_dict({"x": list(range(20)), "y": [f"t{i % 7}" for i in range(20)]})
    arguments = {
        "select": [[5, 3, 5]],
        "filter": [lambda row: row["x"] % 3 == 0],
        "shuffle": [1],
        "rename_column": ["x", "z"],
    }
    getattr(data, change)(*arguments[change]).save_to_disk(tmp_path / "saved")
    same(ours(tmp_path / "saved"), list(datasets.load_from_disk(tmp_path / "saved")))


def test_a_dictionary_of_datasets(tmp_path):
    data = made(*SAME["images"])
    DatasetDict({"train": data.select([0, 1, 2]), "test": data.select([3])}).save_to_disk(tmp_path / "saved")
    refused(tmp_path / "saved", "the splits train, test|the splits test, train")
    for split, rows in datasets.load_from_disk(tmp_path / "saved").items():
        same(ours(tmp_path / "saved" / split), list(rows))


def test_a_folder_of_images(tmp_path):
    for i, name in enumerate(("cat/a.png", "cat/b.png", "dog/c.png", "dog/B.png")):
        stored(tmp_path / "data" / name, picture(i))
    options = {"data_dir": str(tmp_path / "data"), "split": "train", "cache_dir": str(tmp_path / "cache")}
    rows = list(datasets.load_dataset("imagefolder", drop_labels=False, **options))
    same(sorted(ours(tmp_path / "data"), key=content), sorted(rows, key=content))


def content(row):
    """What orders rows where the readers order files in their own ways."""
    return row["label"], np.asarray(row["image"]).tobytes()


def test_images_that_are_stored_by_path_only_are_said(tmp_path):
    column = pa.array(
        [{"bytes": None, "path": "cat/0.jpg"}] * 2, pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    pq.write_table(pa.table({"image": column, "label": [0, 1]}), tmp_path / "a.parquet")
    with pytest.warns(tg.DataWarning, match='column "image" has paths without bytes, such as "cat/0.jpg"'):
        source = tg.open(tmp_path / "a.parquet")
    assert source.missing == {"image": 2}
