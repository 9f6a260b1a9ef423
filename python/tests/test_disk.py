"""The disk cache: it saves requests to the store, and a bad disk costs only time."""

import os
import shutil
import subprocess
import time

import numpy as np
import pytest

import tidegate as tg


def options(cache, limit="64MiB", **more):
    disk = tg.DiskCache(cache, limit, leave_free=0)
    return {"batch_size": 8, "memory": tg.Budget("16MiB"), "disk": disk, "workers": 1, "extras": ("ids",), **more}


def rows(loader):
    return {int(id): bytes(row) for batch in loader for id, row in zip(batch["ids"], batch["image"], strict=True)}


@pytest.fixture
def fields():
    return {"image": tg.Image(32, crop="random", flip=True)}


def test_a_second_run_reads_nothing_but_the_disk(folder, tmp_path, fields):
    url = str(folder)
    plain = tg.Loader(url, batch_size=8, memory=tg.Budget("16MiB"), fields=fields, extras=("ids",), seed=1)
    expected = rows(plain)
    first = tg.Loader(url, fields=fields, seed=1, **options(tmp_path))
    assert rows(first) == expected
    assert first.report()["stages"]["disk_hits"] == 0
    again = tg.Loader(url, fields=fields, seed=1, **options(tmp_path, workers=3))
    assert rows(again) == expected
    stages = again.report()["stages"]
    assert (stages["disk_hits"], stages["reads"]) == (40, 0)
    assert "40 samples of 40 from the disk cache" in str(again.report())
    assert stages["disk_held_bytes"] <= stages["disk_limit_bytes"] == 64 << 20


def test_damage_is_read_from_the_source_and_told(folder, tmp_path, fields):
    url = str(folder)
    expected = rows(tg.Loader(url, fields=fields, seed=1, **options(tmp_path)))
    for segment in tmp_path.glob("*/0*"):
        data = np.fromfile(segment, np.uint8)
        data[2000::4096] ^= 1
        data.tofile(segment)
    loader = tg.Loader(url, fields=fields, seed=1, **options(tmp_path))
    assert rows(loader) == expected
    report = loader.report()
    assert any("damaged records" in note for note in report["cache_notes"])
    assert report["stages"]["reads"] > 0
    healed = tg.Loader(url, fields=fields, seed=1, **options(tmp_path))
    assert rows(healed) == expected
    assert healed.report()["stages"]["reads"] == 0


def test_a_folder_that_cannot_be_used_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(tg.ConfigError, match=r"file: .*name another folder"):
        tg.Loader(str(folder), **options(tmp_path / "file"))
    with pytest.raises(tg.ConfigError, match=r"its limit of 0\.0 MiB is reached"):
        tg.Loader(str(folder), **options(tmp_path / "small", limit=100))
    disk = tg.DiskCache(tmp_path / "full", "1MiB", leave_free=1 << 60)
    with pytest.raises(tg.ConfigError, match=r"must stay so"):
        tg.Loader(str(folder), **options(tmp_path) | {"disk": disk})


def test_what_cannot_be_meant_is_refused(folder, tmp_path):
    with pytest.raises(tg.ConfigError, match="is inside the data"):
        tg.Loader(folder, **options(folder / "cache"))
    assert not (folder / "cache").exists()
    for place in ["", "s3://bucket/cache"]:
        with pytest.raises(tg.ConfigError, match="no folder on a local disk"):
            tg.DiskCache(place, "1GiB")
    for limit in [0.5, None, True]:
        with pytest.raises(tg.ConfigError, match="is no size"):
            tg.DiskCache(tmp_path, limit)
    with pytest.raises(tg.ConfigError, match="give a cache, as in"):
        tg.Loader(folder, batch_size=8, memory=tg.Budget("16MiB"), disk=str(tmp_path))


def test_data_that_change_in_place_are_other_data(folder, tmp_path, fields):
    data, cache = tmp_path / "data", tmp_path / "cache"
    shutil.copytree(folder, data)
    rows(tg.Loader(data, fields=fields, seed=1, **options(cache)))
    first = sorted(data.glob("*/*.jpg"))[0]
    # The same length, at another time: the last bytes before the end marker are of another image.
    picture = bytearray(first.read_bytes())
    picture[-40:-20] = bytes(20)
    time.sleep(0.01)
    first.write_bytes(picture)
    plain = tg.Loader(data, batch_size=8, memory=tg.Budget("16MiB"), fields=fields, extras=("ids",), seed=1)
    after = tg.Loader(data, fields=fields, seed=1, **options(cache))
    assert rows(after) == rows(plain)
    stages = after.report()["stages"]
    assert (stages["disk_hits"], stages["reads"] > 0) == (0, True), "nothing of what was kept before"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2.4 MiB."""
    image, place = tmp_path / "image", tmp_path / "small"
    place.mkdir()
    image.write_bytes(bytes(4 << 20))
    for command in (["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, place]):
        try:
            made = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            pytest.skip(f"no file system can be made here: {error}")
        if made.returncode:
            pytest.skip(f"no file system can be made here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_fills_ends_the_filling(folder, small_disk, fields):
    url = str(folder)
    expected = rows(tg.Loader(url, batch_size=8, memory=tg.Budget("16MiB"), fields=fields, extras=("ids",), seed=1))
    # The limit is far beyond what the disk has, and another file fills the disk.
    with open(small_disk / "other", "wb") as file:
        room = os.statvfs(small_disk)
        file.write(bytes(room.f_bavail * room.f_frsize - (600 << 10)))
    loader = tg.Loader(url, fields=fields, seed=1, **options(small_disk, limit="1GiB"))
    for _ in range(2):
        assert rows(loader) == expected
        loader.set_epoch(0)
    assert loader.report()["stages"]["disk_held_bytes"] == 0
    os.remove(small_disk / "other")
    for hits in [0, 40]:
        loader = tg.Loader(url, fields=fields, seed=1, **options(small_disk, limit="1GiB"))
        assert rows(loader) == expected
        assert loader.report()["stages"]["disk_hits"] == hits


def test_a_folder_that_is_lost_or_read_only_costs_nothing_but_time(folder, small_disk, fields):
    url = str(folder)
    loader = tg.Loader(url, fields=fields, seed=1, **options(small_disk, limit="1400KiB"))
    expected = rows(loader)
    loader = tg.Loader(url, fields=fields, seed=1, **options(small_disk, limit="1400KiB"))
    subprocess.run(["umount", "-l", small_disk], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", small_disk], check=True)
    loader.set_epoch(0)
    assert rows(loader) == expected
    assert loader.report()["stages"]["disk_hits"] == 0
    with pytest.raises(tg.ConfigError, match="Read-only file system"):
        tg.Loader(url, **options(small_disk))
