"""Datasets of other programs' writers, compared with what their own readers return.

`golden/make.py` wrote both.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tidegate as tg

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def golden(tmp_path):
    """A copy, so that indexes do not land in the tree."""
    shutil.copytree(GOLDEN, tmp_path / "golden")
    return tmp_path / "golden"


ARRAYS = {"array": ("int16", None), "array_f32": ("float32", None), "array_fixed": ("float32", (2, 3))}


@pytest.mark.parametrize("name", ["mds", "mds-zstd"])
def test_mds_equals_the_stock_reader(golden, name):
    rows = json.loads((golden / "mds.json").read_text())
    fields = {field: tg.Array(*spec) for field, spec in ARRAYS.items()}
    loader = tg.Loader(golden / name, batch_size=3, memory=tg.Budget("64MiB"), fields=fields)
    seen = 0
    for batch in loader:
        for i in range(batch.rows):
            row = rows[seen]
            seen += 1
            for field, value in row.items():
                ours = batch[field][i]
                if field == "bytes":
                    assert list(ours) == value
                elif field == "json":
                    assert json.loads(ours) == value
                elif field in ARRAYS:
                    assert ours.tolist() == value
                elif field in ("pil", "png", "jpeg"):
                    assert np.array_equal(ours, value), field
                else:
                    assert ours == value, field
    assert seen == 8


def test_webdataset_equals_the_stock_reader(golden):
    rows = json.loads((golden / "wds.json").read_text())
    fields = {"npy": tg.Array("float32", (2, 2)), "jpg": tg.Image(8)}
    source = tg.open(golden / "wds")
    loader = tg.Loader(source, batch_size=8, memory=tg.Budget("64MiB"), fields=fields)
    batch = next(iter(loader))
    for i, row in enumerate(rows):
        assert source.key(i) == row["key"]
        assert (batch["cls"][i], batch["txt"][i]) == (row["cls"], row["txt"])
        assert json.loads(batch["json"][i]) == row["json"]
        assert batch["npy"][i].tolist() == row["npy"]


@pytest.mark.parametrize("name", ["gnu", "pax", "ustar"])
def test_tar_formats(golden, name):
    source = tg.open(golden / f"{name}.tar")
    assert [source[i]["txt"] for i in range(3)] == ["t0", "t1", "t2"]
    assert len(source.key(2)) >= 21


def test_pickles_missing_shards_and_wrong_hashes_are_refused(golden):
    index = golden / "mds" / "index.json"
    whole = json.loads(index.read_text())
    for change, words in [
        (lambda s: s["column_encodings"].__setitem__(0, "pkl"), "unpickling runs code"),
        (lambda s: s["raw_data"].__setitem__("basename", "gone.mds"), "gone.mds"),
        (lambda s: s["raw_data"].__setitem__("bytes", 7), "truncated or was replaced"),
        (lambda s: s["raw_data"].__setitem__("basename", "../x.mds"), "outside the dataset"),
        (lambda s: s["raw_data"].__setitem__("hashes", {"sha1": "0" * 40}), "sha1"),
    ]:
        changed = json.loads(json.dumps(whole))
        for shard in changed["shards"] if "pkl" in words or "unpickling" in words else changed["shards"][:1]:
            change(shard)
        index.write_text(json.dumps(changed))
        with pytest.raises(tg.DataError, match=words):
            tg.open(golden / "mds")


HF_FIELDS = {"box": tg.Array("float32", (4,)), "tokens": tg.Array("int32"), "caption": tg.Text()}


@pytest.mark.parametrize("path", ["hf", "hf/data", "hf/data/train-*", "hf-disk"])
def test_hugging_face_tables_equal_the_stock_reader(golden, path):
    rows = json.loads((golden / "hf.json").read_text())
    source = tg.open(golden / path)
    assert (len(source), source.stats["classes"], source.key(7)[-7:]) == (12, ["cat", "dog"], "007.png")
    assert source.schema["image"] == "image"
    loader = tg.Loader(source, batch_size=5, memory=tg.Budget("64MiB"), fields=HF_FIELDS, on_error="skip")
    seen = []
    for batch in loader:
        for i in range(batch.rows):
            row = rows[len(seen) + (len(seen) >= 5)]
            seen.append(row)
            for field in ("image", "box", "tokens"):
                assert batch[field][i].tolist() == row[field], field
            assert (batch["label"][i], batch["caption"][i]) == (row["label"], row["caption"])
            assert json.loads(batch["objects"][i]) == row["objects"]
    assert len(seen) == 11, "the row without a caption is skipped"
    assert "lacks this field" in loader.report()["failures"][0]


@pytest.mark.parametrize("path", sorted(p.name for p in (GOLDEN / "tables").iterdir()))
def test_every_codec_and_type_of_tables(golden, path):
    rows = json.loads((golden / "tables.json").read_text())
    source = tg.open(golden / "tables" / path)
    assert len(source) == 40
    for i, row in enumerate(rows):
        ours = source[i]
        assert ours["when"] == i
        for field, value in row.items():
            got = ours.get(field)
            got = list(got) if isinstance(got, bytes) else got
            assert got == (int(value) if isinstance(value, bool) else value), (i, field)


def test_lists_over_several_pages_and_long_statistics(golden):
    [batch] = tg.Loader(golden / "lists.parquet", batch_size=40, memory=tg.Budget("64MiB"))
    for i in range(40):
        assert batch["list"][i].tolist() == list(range(i))
        assert batch["long"][i] == bytes([65 + i % 20]) * 5000


@pytest.mark.parametrize("path", ["tables/snappy.parquet", "tables/zstd.arrow"])
def test_groups_under_every_shuffle(golden, path):
    def ids(shuffle, **options):
        loader = tg.Loader(
            tg.open(golden / path), batch_size=7, memory=tg.Budget("64MiB"), fields=["u8"], shuffle=shuffle, **options
        )
        return [int(x) for batch in loader for x in batch["u8"]]

    assert ids(False) == list(range(40))
    for shuffle in (True, tg.Window(8), tg.Window(20, canonical_nodes=2)):
        order = ids(shuffle, workers=3)
        assert sorted(order) == list(range(40))
        assert order != list(range(40))
        assert order == ids(shuffle, workers=1)


def test_tables_that_differ_or_are_damaged(golden):
    shutil.copy(golden / "tables/snappy.parquet", golden / "hf/data/train-00002-of-00003.parquet")
    with pytest.raises(tg.DataError, match="train-00002.*columns are u8.*those of the files before image"):
        tg.open(golden / "hf", allow_missing=True)
    shutil.copy(golden / "tables/snappy.parquet", golden / "hf/data/test-00000-of-00001.parquet")
    with pytest.raises(tg.DataError, match="splits test, train: choose one"):
        tg.open(golden / "hf", allow_missing=True)
    for name in ("zstd.parquet", "lz4.arrow", "stream.arrow"):
        path = golden / "tables" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(tg.DataError, match=name):
            tg.open(path)


def test_ranks_with_places_of_their_own_decode_each_group_about_once(golden, tmp_path):
    for i in range(8):
        shutil.copy(golden / "tables/snappy.parquet", tmp_path / f"{i}.parquet")

    def ranks(nodes, world=2):
        seen, read = [], []
        for rank in range(world):
            options = {
                "rank": rank,
                "world_size": world,
                "shuffle": tg.Window(80, canonical_nodes=nodes),
                "extras": ("ids",),
            }
            source, memory = tg.open(tmp_path), tg.Budget("64MiB")
            loader = tg.Loader(source, global_batch_size=16, memory=memory, fields=["u8"], workers=1, **options)
            seen.append([batch["ids"].tolist() for batch in loader])
            read.append(loader.report()["stages"]["amplification_percent"])
        assert sorted(id for rank in seen for ids in rank for id in ids) == list(range(320))
        return [sorted(a + b) for a, b in zip(seen[0], seen[-1], strict=True)], read

    together, read = ranks(1)
    assert all(percent > 150 for percent in read)
    apart, read = ranks(2)
    assert all(percent < 130 for percent in read)
    whole, _ = ranks(2, world=1)
    assert [sorted(set(ids)) for ids in whole] == apart
