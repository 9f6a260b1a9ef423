"""Lists of shards that other programs keep beside them: img2dataset, Energon, wids."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tidegate as tg


def shard(path, ids):
    with tarfile.open(path, "w") as archive:
        for i in ids:
            for ending, data in (("txt", b"t%d" % i), ("json", b'{"id": %d}' % i)):
                info = tarfile.TarInfo(f"{i:05}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def ids(source):
    return [int(sample["txt"][1:]) for sample in source]


def test_a_folder_of_img2dataset(tmp_path):
    for i in range(3):
        shard(tmp_path / f"{i:05}.tar", range(2 * i, 2 * i + 2))
        pq.write_table(pa.table({"key": [f"{2 * i:05}", f"{2 * i + 1:05}"]}), tmp_path / f"{i:05}.parquet")
        (tmp_path / f"{i:05}_stats.json").write_text('{"count": 2}')
    source = tg.open(tmp_path)
    assert ids(source) == list(range(6))
    assert source.left_out == ["3 tables that describe an archive of the same name, such as 00000.parquet"]
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(tg.DataError, match="several kinds"):
        tg.open(tmp_path, force=True)


def energon(folder, text):
    (folder / "parts").mkdir(parents=True)
    for i in range(4):
        shard(folder / f"parts/shard_{i}.tar", [i])
    (folder / ".nv-meta").mkdir()
    (folder / ".nv-meta/split.yaml").write_text(text)
    return folder


SPLITS = """\
exclude:
- parts/shard_1.tar
split_parts:
  train: ["parts/shard_{0..2}.tar"]
  val:
  - parts/shard_3.tar
  test: []
"""


def test_the_splits_of_energon(tmp_path):
    folder = energon(tmp_path / "e", SPLITS)
    with pytest.raises(tg.DataError, match='splits train, val: choose one with split="train"'):
        tg.open(folder)
    assert ids(tg.open(folder, split="train")) == [0, 2]
    assert ids(tg.open(folder, split="val")) == [3]
    assert ids(tg.open(folder, split="all")) == [0, 2, 3]
    with pytest.raises(tg.DataError, match='no split "test"; there are: train, val'):
        tg.open(folder, split="test")
    (folder / "parts/shard_2.tar").unlink()
    with pytest.raises(tg.DataError, match=r"lists .*shard_2\.tar, which is missing.*allow_missing"):
        tg.open(folder, split="train")
    assert ids(tg.open(folder, split="train", allow_missing=True)) == [0]


REFUSED = {
    "single_samples": ("exclude: [parts/shard_1.tar/7]\nsplit_parts: {train: [parts/shard_0.tar]}", "single sample"),
    "no_splits": ("exclude: []", "split_parts is missing"),
    "no_yaml": ("split_parts: [", "no YAML"),
    "no_list": ("split_parts: {train: 3}", "no list of shards"),
    "references": ("a: &a [x]\nb: *a", "references"),
    "too_deep": ("- " * 100_000 + "a", "too deeply"),
    "too_many": ("split_parts: {train: ['{0..999999}{0..999}.tar']}", "no list of shards"),
    "outside": ("split_parts: {train: [../x.tar]}", "outside of the dataset"),
    "elsewhere": ("split_parts: {train: [/x.tar]}", "outside of the dataset"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_list_of_energon_that_cannot_be_read(tmp_path, name):
    text, words = REFUSED[name]
    with pytest.raises(tg.DataError, match=rf"split\.yaml.*{words}"):
        tg.open(energon(tmp_path / "e", text))


@pytest.mark.parametrize("name", ["index.json", "train.json"])
def test_an_index_of_wids(tmp_path, name):
    (tmp_path / "shards").mkdir()
    for i in range(3):
        shard(tmp_path / f"shards/{i}.tar", [2 * i, 2 * i + 1])
    listed = [{"url": f"shards/{i}.tar", "nsamples": 2} for i in (2, 0)]
    index = tmp_path / name
    index.write_text(json.dumps({"wids_version": 1, "name": "x", "shardlist": listed}))
    assert ids(tg.open(index)) == [4, 5, 0, 1], "in the order of the list"
    if name == "index.json":
        assert ids(tg.open(tmp_path)) == [4, 5, 0, 1]
    listed[0]["nsamples"] = 3
    index.write_text(json.dumps({"shardlist": listed}))
    with pytest.raises(tg.DataError, match="lists 5 samples, and the shards have 4"):
        tg.open(index)
    for url, words in [
        ("shards/9.tar", "which is missing"),
        ("s3://b/9.tar", "in a store"),
        ("../9.tar", "outside of the dataset"),
    ]:
        index.write_text(json.dumps({"shardlist": [{"url": url, "nsamples": 3}]}))
        with pytest.raises(tg.DataError, match=words):
            tg.open(index)
    index.write_text('{"shardlist": [{"url": 3}]}')
    with pytest.raises(tg.DataError, match="url and nsamples"):
        tg.open(index)


def test_the_splits_of_an_index_of_wids(tmp_path):
    for i, name in enumerate(("train-0", "val-0")):
        shard(tmp_path / f"{name}.tar", range(i + 1))
    listed = [{"url": f"{name}.tar", "nsamples": i + 1} for i, name in enumerate(("train-0", "val-0"))]
    (tmp_path / "index.json").write_text(json.dumps({"shardlist": listed}))
    assert [len(tg.open(tmp_path, split=split)) for split in (None, "all", "train", "val")] == [3, 3, 1, 2]
    with pytest.raises(tg.DataError, match='no split "test"'):
        tg.open(tmp_path, split="test")
