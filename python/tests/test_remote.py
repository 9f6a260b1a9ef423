"""Object stores: moto's S3 server behind a proxy that delays and breaks replies."""

import hashlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import boto3
import numpy as np
import pytest

import tidegate as tg

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import faulty

GOLDEN = Path(__file__).parent / "golden"


class Server:
    """moto's S3 server and a client that asks it directly."""

    def __init__(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        program = Path(sys.executable).with_name("moto_server")
        self.process = subprocess.Popen(
            [program, "-p", str(self.port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                break
            except OSError:
                time.sleep(0.1)
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
        self.client.create_bucket(Bucket="data")

    def put(self, key, data):
        self.client.put_object(Bucket="data", Key=key, Body=data, ACL="public-read")

    def upload(self, folder, prefix):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())


@pytest.fixture(scope="session")
def server():
    server = Server()
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture
def store(server, monkeypatch, tmp_path):
    """Makes a proxy the endpoint of S3, with faults as asked for."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = []

    def through(**faults):
        proxy = faulty.Proxy(("127.0.0.1", server.port), **faults)
        made.append(proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        return proxy

    yield through
    for proxy in made:
        proxy.shutdown()
        proxy.server_close()


def content(i, size=20_000):
    return hashlib.sha256(str(i).encode()).digest() * (size // 32)


def tar(ids, size=20_000):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for i in ids:
            info = tarfile.TarInfo(f"{i:06}.bin")
            info.size = len(content(i, size))
            archive.addfile(info, io.BytesIO(content(i, size)))
    return out.getvalue()


@pytest.fixture(scope="session")
def shards(server):
    for shard in range(12):
        server.put(f"train/shard-{shard}.tar", tar(range(shard * 10, shard * 10 + 10)))
    return "s3://data/train/shard-*.tar"


def epoch(source, **options):
    loader = tg.Loader(source, batch_size=16, memory=tg.Budget("64MiB"), **options)
    return [(int(i), bytes(row)) for batch in loader for i, row in zip(batch.ids, batch["bin"], strict=True)]


@pytest.mark.parametrize("name", ["mds", "wds", "hf", "tables"])
def test_every_format_is_the_same_in_a_store(server, store, tmp_path, name):
    import shutil

    store()
    local = tmp_path / name
    shutil.copytree(GOLDEN / name, local)
    server.upload(GOLDEN / name, f"golden/{name}")
    names = [""]
    if name == "tables":
        names = sorted(p.name for p in local.iterdir() if p.suffix in (".parquet", ".arrow"))[:4]
    for file in names:
        here, there = tg.open(local / file), tg.open(f"s3://data/golden/{name}/{file}")
        assert (here.schema, len(here)) == (there.schema, len(there))
        assert [here.key(i) for i in range(len(here))] == [there.key(i) for i in range(len(there))]
        for i in range(len(here)):
            a, b = here[i], there[i]
            assert list(a) == list(b)
            assert all(np.array_equal(a[field], b[field]) for field in a), (file, i)
        # As training reads them: rows that lack a field are left out.
        options = {"batch_size": 3, "fields": scalars(here.schema), "shuffle": True, "on_error": "skip"}
        loaders = [tg.Loader(s, memory=tg.Budget("64MiB"), max_failure_rate=1.0, **options) for s in (here, there)]
        assert loaders[0].state_dict() == loaders[1].state_dict()
        for a, b in zip(*loaders, strict=True):
            assert a.ids.tolist() == b.ids.tolist()
            assert all(np.array_equal(a[field], b[field]) for field in a)


def scalars(schema):
    return [field for field, kind in schema.items() if kind in ("int", "float")]


def test_faults_cost_time_and_nothing_else(shards, store):
    proxy = store(rate=0.4, seed=3)
    source = tg.open(shards)
    for shuffle in [False, True, tg.Window(30)]:
        rows = epoch(source, shuffle=shuffle, seed=1)
        assert sorted(rows) == [(i, content(i)) for i in range(120)]
    assert all(proxy.counts[fault] > 0 for fault in faulty.FAULTS), proxy.counts


@pytest.mark.slow
def test_ten_thousand_faults_lose_and_double_nothing(shards, store, tmp_path):
    proxy = store(rate=0.6, seed=5)
    source, epochs = tg.open(shards), 0
    while sum(proxy.counts[fault] for fault in faulty.FAULTS) < 10_000:
        # A cache now and then, in the memory or on disk, that is lost in between.
        disk = tg.DiskCache(tmp_path / str(epochs // 9), "64MiB", leave_free=0) if epochs % 3 == 2 else None
        rows = epoch(source, shuffle=[False, True, tg.Window(30)][epochs % 3], seed=epochs, disk=disk)
        assert sorted(rows) == [(i, content(i)) for i in range(120)]
        epochs += 1
    print({fault: proxy.counts[fault] for fault in faulty.FAULTS}, "in", epochs, "epochs")


def test_an_index_is_kept_and_reads_are_joined(shards, store):
    proxy = store()
    source = tg.open("s3://data/train")
    indexing = proxy.counts["GET"]
    assert indexing <= 1 + 2 * 12, "a list, and a shard at once"
    assert len(tg.open("s3://data/train/")) == len(source) == 120
    assert proxy.counts["GET"] == indexing + 1, "the list alone"
    loader = tg.Loader(source, batch_size=20, memory=tg.Budget("64MiB"))
    for _ in range(2):
        assert sum(batch.rows for batch in loader) == 120
    assert proxy.counts["GET"] == indexing + 1 + 12, "a request a shard, and none in the second epoch"
    assert "reads of objects over the network" in str(loader.report())
    assert [r["cls"] if "cls" in r else len(r["bin"]) for r in [source[5]]] == [len(content(5))]


def test_plain_http_reads_what_is_named(shards, server, store):
    store(rate=0.2)
    base = os.environ["AWS_ENDPOINT_URL"]
    rows = epoch(f"{base}/data/train/shard-{{0..11}}.tar")
    assert rows == [(i, content(i)) for i in range(120)]
    server.upload(GOLDEN / "mds", "golden/mds")
    assert len(tg.open(f"{base}/data/golden/mds")) == 8
    with pytest.raises(tg.Error, match="cannot be searched"):
        tg.open(f"{base}/data/train/*.tar")


def test_compressed_shards_are_streamed(server, store):
    import gzip

    store(rate=0.2)
    server.put("packed/a.tar.gz", gzip.compress(tar(range(40))))
    assert epoch("s3://data/packed/a.tar.gz") == [(i, content(i)) for i in range(40)]


def test_text_and_tokens_are_the_same_in_a_store(server, store, tmp_path):
    store(rate=0.2, seed=7)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.jsonl").write_text("".join(f'{{"id": {i}, "name": "row \\u00e9 {i}"}}\n' for i in range(40)))
    (tmp_path / "text/README.md").write_text("not a sample")
    (tmp_path / "rows").write_text("".join(f"{i % 2} {i + 1}:0.5 99:{i}\n" for i in range(40)))
    np.arange(2000, dtype="uint16").tofile(tmp_path / "train.bin")
    server.upload(tmp_path, "plain")

    def batches(source):
        loader = tg.Loader(source, batch_size=7, memory=tg.Budget("64MiB"), shuffle=True, seed=2)
        return [{name: np.asarray(batch[name]).tolist() for name in batch} for batch in loader]

    for name in ["text", "text/a.jsonl"]:
        here, there = tg.open(tmp_path / name), tg.open(f"s3://data/plain/{name}")
        assert here.schema == there.schema == {"id": "int", "name": "text"}
        assert [here[i] for i in range(40)] == [there[i] for i in range(40)]
    base = os.environ["AWS_ENDPOINT_URL"]
    for there in ["s3://data/plain/rows", f"{base}/data/plain/rows"]:
        rows = [tg.open(f"libsvm:{url}") for url in (tmp_path / "rows", there)]
        assert batches(rows[0]) == batches(rows[1])
    for there in ["s3://data/plain/t*.bin", f"{base}/data/plain/train.bin"]:
        here, there = (tg.tokens(url, 64, dtype="uint16") for url in (tmp_path / "train.bin", there))
        assert len(here) == 31
        assert batches(here) == batches(there)
    with pytest.raises(tg.Error, match="no such file"):
        tg.tokens("s3://data/plain/none*.bin", 64, dtype="uint16")


def test_a_text_file_beside_others_is_no_dataset(server, store):
    store()
    table = next((GOLDEN / "hf/data").glob("train-*.parquet")).read_bytes()
    for key in ["table/metrics.csv", "classes/labels.csv", "flat/data/notes.csv"]:
        server.put(f"beside/{key}", b"a,b\n1,2\n")
    server.put("beside/table/data/train.parquet", table)
    server.put("beside/classes/cat/1.jpg", b"image")
    server.put("beside/flat/1.jpg", b"image")
    assert tg.open("s3://data/beside/table").schema == tg.open("s3://data/beside/table/data").schema
    for name in ["classes", "flat"]:
        with pytest.raises(tg.Error, match="tidegate pack"):
            tg.open(f"s3://data/beside/{name}")


def test_what_changes_or_goes_is_told(server, store):
    store()
    for name in ["changed", "gone"]:
        server.put(f"moving/{name}.tar", tar(range(10)))
    changed, gone = (tg.open(f"s3://data/moving/{name}.tar") for name in ["changed", "gone"])
    server.put("moving/changed.tar", tar(range(5, 15)))
    server.client.delete_object(Bucket="data", Key="moving/gone.tar")
    with pytest.raises(tg.Error, match="another one than when it was indexed"):
        epoch(changed)
    with pytest.raises(tg.Error, match="no such object"):
        epoch(gone)
    assert epoch("s3://data/moving/changed.tar") == [(i, content(i + 5)) for i in range(10)]


def test_lasting_errors_come_at_once_and_say_what_to_do(shards, store, monkeypatch):
    store()
    for url, words in [
        ("s3://nowhere/train/*.tar", "no such bucket"),
        ("s3://data/train/none-*.tar", "no object matches"),
        ("s3://data/none", "check the bucket and the prefix"),
        ("ftp://data/x.tar", "not known"),
    ]:
        with pytest.raises(tg.Error, match=words):
            tg.open(url)
    denied = store(rate=1.0, faults=["403"])
    began = time.monotonic()
    with pytest.raises(tg.Error, match="permission denied"):
        tg.open(shards)
    elsewhere = store(rate=1.0, faults=["301"])
    with pytest.raises(tg.Error, match="AWS_REGION"):
        tg.open(shards)
    assert time.monotonic() - began < 10
    assert denied.counts["GET"] == elsewhere.counts["GET"] == 1


def test_a_store_that_comes_back_is_waited_for(shards, store):
    proxy = store()
    source = tg.open(shards)
    loader = tg.Loader(source, batch_size=16, memory=tg.Budget("64MiB"))
    batches = iter(loader)
    first = next(batches)
    proxy.rate, proxy.faults = 1.0, ["503", "drop"]
    proxy.heal_after = proxy.counts["GET"] + 6
    rows = [*first.ids.tolist(), *(int(i) for batch in batches for i in batch.ids)]
    assert rows == list(range(120))


def test_an_epoch_can_be_ended_in_an_outage(shards, store):
    proxy = store()
    loader = tg.Loader(shards, batch_size=16, memory=tg.Budget("64MiB"), shuffle=True)
    batches = iter(loader)
    next(batches)
    proxy.rate, proxy.faults = 1.0, ["503"]
    began = time.monotonic()
    loader.close()
    assert time.monotonic() - began < 30, "less than the deadline of a read"


def test_a_forked_child_lets_go_of_a_source(shards, store):
    store()
    source = tg.open(shards)
    child = os.fork()
    if child == 0:
        del source
        os._exit(0)
    for _ in range(300):
        if os.waitpid(child, os.WNOHANG)[0]:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        pytest.fail("the child waits for threads of its parent")
    assert len(source) == 120


def test_what_the_environment_has_for_others_is_not_ours(shards, store, monkeypatch):
    store()
    for name in ["TOKEN", "REGION", "ENDPOINT", "TIMEOUT", "BUCKET"]:
        monkeypatch.setenv(name, "not for us")
    assert len(tg.open(shards)) == 120
