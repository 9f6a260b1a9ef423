"""`pack`: what shards keep, and runs that are killed at any point."""

import filecmp
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import zarr3
from test_found import picture, tar

import tidegate as tg
from tidegate.sparse import CSR


def folder(path, classes=("cat", "dog"), each=3):
    for name in classes:
        (path / name).mkdir(parents=True)
        for i in range(each):
            (path / name / f"photo {i}.jpg").write_bytes(picture(color=(i, 50 * len(name), 7)))
    return path


def quiet(url):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return tg.open(url)


@pytest.mark.parametrize("format", ["mds", "tar"])
def test_shards_keep_samples_and_classes(tmp_path, format):
    source = tg.open(folder(tmp_path / "data"))
    packed = tg.pack(source, tmp_path / "out", format=format)
    assert len(packed) == 6
    assert packed.stats["classes"] == ["cat", "dog"]
    image, label = ("jpg", "cls") if format == "tar" else ("image", "label")
    assert [sample[image] for sample in packed] == [sample["image"] for sample in source]
    assert [sample[label] for sample in packed] == [0, 0, 0, 1, 1, 1]
    assert quiet(tmp_path / "out").stats["classes"] == ["cat", "dog"]


def test_archives_keep_the_names_of_samples(tmp_path):
    packed = tg.pack(folder(tmp_path / "data"), tmp_path / "out", format="tar")
    assert packed.key(0) == "cat/photo 0"
    with tarfile.open(tmp_path / "out" / "shard-00000.tar") as archive:
        assert archive.getnames()[:3] == ["__classes__", "cat/photo 0.jpg", "cat/photo 0.cls"]
    again = tg.pack(packed, tmp_path / "again", format="tar")
    assert [again.key(i) for i in range(6)] == [packed.key(i) for i in range(6)]
    assert again.stats["classes"] == ["cat", "dog"]
    # Two samples that differ in the extension alone would become one.
    (tmp_path / "data" / "cat" / "photo 0.png").write_bytes(picture("PNG"))
    numbered = tg.pack(tmp_path / "data", tmp_path / "numbered", format="tar")
    assert (len(numbered), numbered.key(0)) == (7, "000000000")


def test_mds_keeps_the_names_of_samples_in_a_column(tmp_path):
    source = tg.open(folder(tmp_path / "data"))
    packed = tg.pack(source, tmp_path / "out", names="file")
    assert [sample["file"] for sample in packed][:2] == ["cat/photo 0.jpg", "cat/photo 1.jpg"]
    part = tg.pack(source.select([5, 0]), tmp_path / "part", names="file")
    assert [sample["file"] for sample in part] == ["dog/photo 2.jpg", "cat/photo 0.jpg"]
    archive = tg.pack(source.select([5, 0]), tmp_path / "tar", format="tar")
    assert [archive.key(i) for i in range(2)] == ["dog/photo 2", "cat/photo 0"]
    keyed = tg.pack(archive, tmp_path / "keyed", names="key")
    assert [sample["key"] for sample in keyed] == ["dog/photo 2", "cat/photo 0"]
    for refused, words in [
        (lambda out: tg.pack(source, out, names="label"), "has a field of this name"),
        (lambda out: tg.pack(source, out, format="tar", names="file"), "archives keep the names"),
        (lambda out: tg.pack(packed, out, names="key"), "have no names"),
        (lambda out: tg.pack(source, out, names=True), "names=True"),
    ]:
        with pytest.raises(tg.ConfigError, match=words):
            refused(tmp_path / "refused")
        assert not (tmp_path / "refused").exists()


def test_a_part_of_a_source_is_packed(tmp_path):
    source = tg.synthetic(100, 16)
    packed = tg.pack(source.select([5, 3, 99]), tmp_path / "out", max_samples=2)
    assert [sample["id"] for sample in packed] == [5, 3, 99]
    assert len(list((tmp_path / "out").glob("*.mds"))) == 2


def test_arrays_are_compressed_by_field(tmp_path):
    members = []
    for i in range(8):
        np.save(tmp_path / "x.npy", np.full((4, 100), i, "float32"))
        members.append((f"{i}.npy", (tmp_path / "x.npy").read_bytes()))
    source = tar(tmp_path / "a.tar", *members)
    for name, options in {
        "codec": {"codec": {"npy": "zstd"}},
        "all": {"codec": "auto"},
        "few": {"quantize": {"npy": 8}},
    }.items():
        packed = tg.pack(source, tmp_path / name, **options)
        batch = next(iter(tg.Loader(packed, batch_size=8, memory=tg.Budget("16MiB"))))
        np.testing.assert_allclose(batch["npy"][:, 0, 0], range(8), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "zip"}, "format='zip'"),
        ({"max_size": "many"}, "many"),
        ({"max_samples": 0}, "max_samples=0"),
        ({"quantize": {"x": 9}}, "quantize"),
        ({"quantize": 8}, "quantize=8"),
        ({"codec": {"nope": "zstd"}}, 'no field "nope"'),
        ({"codec": 7}, "codec=7"),
    ],
)
def test_options_are_checked(tmp_path, options, words):
    with pytest.raises(tg.ConfigError, match=words):
        tg.pack(tg.synthetic(3, 8), tmp_path / "out", **options)


def test_packing_can_be_interrupted_and_goes_on(tmp_path):
    source, seen = tg.synthetic(2000, 100), []

    def stop(done, of):
        seen.append((done, of))
        if done >= 1000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tg.pack(source, tmp_path / "out", max_samples=300, progress=stop)
    assert seen[-1][1] == 2000
    packed = tg.pack(source, tmp_path / "out", max_samples=300)
    assert [sample["id"] for sample in packed] == list(range(2000))


RUN = "import sys, tidegate as tg; tg.pack(tg.open(sys.argv[1]), sys.argv[2], format=sys.argv[3], max_samples=40)"


@pytest.mark.parametrize("format", ["mds", "tar"])
def test_a_run_that_is_killed_at_any_point_goes_on(tmp_path, format):
    rng = random.Random(format)
    members = [(f"{i}.bin", rng.randbytes(20_000)) for i in range(1200)]
    source = str(tar(tmp_path / "a.tar", *members))
    tg.pack(source, tmp_path / "whole", format=format, max_samples=40)
    command = [sys.executable, "-c", RUN, source, str(tmp_path / "out"), format]
    # How many shards were there when each run was killed: the runs end within shards, not before
    # or after all of them.
    for target in range(1, 30, 4):
        run = subprocess.Popen(command)
        while run.poll() is None and sum("shard" in f.name for f in files(tmp_path / "out")) < target:
            time.sleep(0.001)
        time.sleep(rng.random() / 200)
        run.send_signal(signal.SIGKILL)
        run.wait()
    subprocess.run(command, check=True)
    names = sorted(path.name for path in files(tmp_path / "whole") if path.is_file())
    assert sorted(path.name for path in files(tmp_path / "out") if path.is_file()) == names
    for name in names:
        assert filecmp.cmp(tmp_path / "whole" / name, tmp_path / "out" / name, shallow=False), name


def files(path):
    return [path / name for name in os.listdir(path)] if path.exists() else []


def test_samples_without_a_field_are_never_lost(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1, "b": "x"}\n{"a": null}\n{"a": 2}\n')
    with pytest.raises(tg.SampleError, match="sample 1 .*lacks every field"):
        tg.pack(path, tmp_path / "tar", format="tar")
    packed = tg.pack(tg.open(path).select([0, 2]), tmp_path / "two", format="tar")
    assert [sorted(sample) for sample in packed] == [["a", "b"], ["a"]]
    with pytest.raises(tg.SampleError, match='lacks field "b", and MDS has no missing values: pack it as tar'):
        tg.pack(tg.open(path).select([0, 2]), tmp_path / "mds")


@pytest.mark.parametrize("format", ["mds", "tar"])
def test_sparse_rows_and_lists_stay_what_they_are(tmp_path, format):
    (tmp_path / "a.libsvm").write_text("1 1:0.5 3:2 # note\n0.5 2:1\n-1 \n")
    source = tg.open(tmp_path / "a.libsvm")
    rows = tg.pack(source, tmp_path / "rows", format=format)
    ending = ".npy" if format == "tar" else ""
    names = {"indices": f"indices{ending}", "values": f"values{ending}"}
    # What .npy files hold has to be said.
    said = {names["indices"]: tg.Array("uint32"), names["values"]: tg.Array("float32"), "label": tg.Float()}
    said = said if ending else None
    (batch,) = tg.Loader(rows, batch_size=3, memory="48MiB", fields=said)
    (sparse,) = tg.Loader(source, batch_size=3, memory="48MiB")
    theirs = CSR.from_batch(batch, source.columns, **names).to_scipy().toarray()
    assert theirs.tolist() == CSR.from_batch(sparse, source.columns).to_scipy().toarray().tolist()
    assert theirs.tolist() == [[0.5, 0, 2], [0, 1, 0], [0, 0, 0]]
    assert batch["label"].tolist() == [1, 0.5, -1]

    lists = pa.table({"x": pa.array([[0.5, 1.0], [2.0], []], pa.list_(pa.float32()))})
    pq.write_table(lists, tmp_path / "lists.parquet")
    packed = tg.pack(tmp_path / "lists.parquet", tmp_path / "lists", format=format)
    said = {f"x{ending}": tg.Array("float32")} if ending else None
    (batch,) = tg.Loader(packed, batch_size=3, memory="48MiB", fields=said)
    assert [row.tolist() for row in batch[f"x{ending}"]] == [[0.5, 1.0], [2.0], []]


@pytest.mark.parametrize("format", ["mds", "tar"])
def test_patches_of_a_volume_keep_dtype_and_shape(tmp_path, format):
    array = zarr3().create_array(tmp_path / "v", shape=(8, 8), chunks=(4, 4), dtype="uint16")
    array[:] = np.arange(64).reshape(8, 8)
    volume = tg.volume(tmp_path / "v", patch=(4, 4), stride=4)
    patches = tg.pack(volume, tmp_path / "patches", format=format)
    said = {"data.npy": tg.Array("uint16", (4, 4))} if format == "tar" else None
    (batch,) = tg.Loader(patches, batch_size=4, memory="48MiB", fields=said)
    column = np.asarray(list(batch["data.npy" if format == "tar" else "data"]))
    assert (column.dtype, column.shape) == (np.uint16, (4, 4, 4))
    np.testing.assert_array_equal(column, [volume[i]["data"] for i in range(4)])
