"""What another user of the machine writes is not read, and nothing of anybody's is overwritten.

The tests become two other users in child processes, which only root can.
"""

import json
import os
import shutil
import socket
import stat
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
from test_found import picture, tar

import tidegate as tg

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two other users")
VICTIM, ATTACKER = 61001, 61002


@pytest.fixture
def place():
    """A folder that all users reach; `tmp_path` is root's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_user(user, call):
    """Return what a call returns, as JSON, in a child process of a user."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            os.write(writing, json.dumps(call()).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(said)


def give(path, user):
    for found in [path, *path.rglob("*")]:
        os.chown(found, user, user)


def labels(path, cache):
    def call():
        os.environ["XDG_CACHE_HOME"] = str(cache)
        warnings.simplefilter("ignore", tg.DataWarning)
        source = tg.open(path)
        return [source[i]["label"] for i in range(len(source))]

    return call


def warnings_of(path, cache):
    def call():
        os.environ["XDG_CACHE_HOME"] = str(cache)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tg.open(path)
        return [str(warning.message) for warning in caught]

    return call


def photos(folder):
    for name in ("a/0.jpg", "b/0.jpg", "b/1.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture())
    return folder


def test_an_index_of_another_user_is_not_read(place):
    data, cache = photos(place / "shared" / "photos"), place / "cache"
    cache.mkdir()
    give(place, VICTIM)
    (place / "shared").chmod(0o1777)
    right = as_user(VICTIM, labels(data, cache))
    assert right == [0, 1, 1]
    index = place / "shared" / ".tidegate"
    assert index.is_dir()
    assert not list(cache.iterdir())
    # The same index, but another user's: it could say anything.
    give(index, ATTACKER)
    assert as_user(VICTIM, labels(data, cache)) == right
    assert list((cache / "tidegate").iterdir())
    for _ in range(2):
        said = as_user(VICTIM, warnings_of(data, cache))
        assert len(said) == 1
        assert f"the index in {index}" in said[0]
        assert str(cache) in said[0]
    # Root, and who owns the folder of the data, are trusted.
    shutil.rmtree(cache / "tidegate")
    give(index, 0)
    assert as_user(VICTIM, labels(data, cache)) == right
    assert not (cache / "tidegate").exists()


def test_an_index_that_all_can_write_is_not_read(place):
    data, cache = photos(place / "photos"), place / "cache"
    cache.mkdir()
    give(place, VICTIM)
    as_user(VICTIM, labels(data, cache))
    (meta,) = (place / ".tidegate").rglob("meta.json")
    files = [file for file in (place / ".tidegate").rglob("*") if file.is_file()]
    for file in files:
        file.chmod(0o666)
    changed = meta.stat().st_ino
    assert as_user(VICTIM, labels(data, cache)) == [0, 1, 1]
    # It was made again, whatever the umask is.
    (meta,) = (place / ".tidegate").rglob("meta.json")
    assert meta.stat().st_ino != changed
    for file in files:
        assert not file.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    # And is read from then on.
    made = meta.stat().st_ino
    assert as_user(VICTIM, labels(data, cache)) == [0, 1, 1]
    assert meta.stat().st_ino == made


def test_a_link_in_the_place_of_the_index_is_not_followed(place):
    data, cache = photos(place / "shared" / "photos"), place / "cache"
    cache.mkdir()
    (place / "home").mkdir()
    give(place, VICTIM)
    (place / "shared").chmod(0o1777)
    as_user(ATTACKER, lambda: os.symlink(place / "home", place / "shared" / ".tidegate"))
    assert as_user(VICTIM, labels(data, cache)) == [0, 1, 1]
    assert not list((place / "home").iterdir())


def test_a_disk_cache_of_another_user_is_refused(place):
    (place / "data").mkdir()
    tar(place / "data" / "a.tar", *[(f"{i}.cls", b"1") for i in range(20)])
    (place / "open").mkdir()
    (place / "theirs").mkdir()
    give(place, VICTIM)
    give(place / "theirs", ATTACKER)
    (place / "theirs").chmod(0o777)
    os.chown(place / "open", 0, 0)
    (place / "open").chmod(0o1777)

    def epoch(folder):
        def call():
            os.environ["XDG_CACHE_HOME"] = str(place)
            disk = tg.DiskCache(folder, "16MiB")
            try:
                loader = tg.Loader(place / "data" / "a.tar", batch_size=10, memory=tg.Budget("64MiB"), disk=disk)
                return sum(batch.rows for batch in loader)
            except tg.ConfigError as error:
                return str(error)

        return call

    assert "name a folder of your own" in as_user(VICTIM, epoch(place / "theirs"))
    # Nothing in it can be another user's: the cache is in a folder of the victim's own.
    as_user(ATTACKER, lambda: os.symlink(place / "data" / "a.tar", place / "open" / "lock"))
    before = (place / "data" / "a.tar").read_bytes()
    assert as_user(VICTIM, epoch(place / "open")) == 20
    assert sorted(path.name for path in (place / "open").iterdir()) == ["lock", f"tidegate-{VICTIM}"]
    assert (place / "data" / "a.tar").read_bytes() == before
    give(place / "open", ATTACKER)
    os.chown(place / "open", 0, 0)
    assert "the disk cache cannot be kept in" in as_user(VICTIM, epoch(place / "open"))
    assert as_user(VICTIM, epoch(place / "open" / "own")) == 20


def test_a_budget_of_a_node_is_not_shared_with_another_user(place):
    """The other user has a memory file of the name that root's budget would have."""

    def planted():
        made = os.memfd_create("tidegate-0-job")
        os.ftruncate(made, 1 << 20)
        waiting = os.memfd_create("tidegate-0-job-joining")
        os.ftruncate(waiting, 4096)
        with socket.socket(socket.AF_UNIX) as taken:
            taken.bind("\0tidegate-0-job-joining")
            os.write(ready, b"x")
            os.read(end, 1)
        return True

    (wait, ready), (end, stop) = os.pipe(), os.pipe()
    other = threading.Thread(target=lambda: as_user(ATTACKER, planted))
    other.start()
    os.read(wait, 1)
    began = time.monotonic()
    budget = tg.Budget("32MiB", scope="node", processes=2, name="job")
    took = time.monotonic() - began
    os.write(stop, b"x")
    other.join()
    assert list(budget.node["processes"]) == [os.getpid()]
    loader = tg.Loader(tg.synthetic(1000, 100), batch_size=10, memory=budget, rank=0, world_size=1)
    assert sum(batch.rows for batch in loader) == 1000
    # The old way waited 30 seconds for the socket.
    assert took < 10


def test_unpacked_shards_of_another_user_are_not_read(place):
    golden = Path(__file__).parent / "golden" / "mds-zstd"
    copies = [shutil.copytree(golden, place / name / "mds") for name in ("one", "two")]
    cache = place / "cache"
    cache.mkdir()
    give(place, VICTIM)

    def first(folder):
        def call():
            os.environ["XDG_CACHE_HOME"] = str(cache)
            os.environ["TMPDIR"] = str(cache)
            source = tg.open(folder)
            return {name: str(np.asarray(value)) for name, value in source[0].items() if name != "image"}

        return call

    right = as_user(VICTIM, first(copies[0]))
    (unpacked,) = (copies[0] / ".tidegate").glob("unpacked-*")
    planted = copies[1] / ".tidegate" / unpacked.name
    planted.mkdir(parents=True)
    for shard in unpacked.iterdir():
        (planted / shard.name).write_bytes(bytes(shard.stat().st_size))
    give(copies[1] / ".tidegate", ATTACKER)
    assert as_user(VICTIM, first(copies[1])) == right
