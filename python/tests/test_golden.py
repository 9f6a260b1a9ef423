"""Data sets written by the peers' own writers, against what the peers' own readers give (golden/make.py wrote both)."""

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
                    far = np.abs(np.asarray(ours, int) - np.asarray(value))
                    assert far.max() <= (24 if field == "jpeg" else 0), field
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
