"""What happens while or after data change, and when the user interrupts."""

import io
import os
import shutil
import signal
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_found import picture, tar

import tidegate as tg

OPTIONS = {"batch_size": 4, "fields": ["image"]}


def large():
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), "uint8")
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "data" / name / f"{i}.jpg").write_bytes(picture())
    return tmp_path / "data"


def epoch(source, **options):
    loader = tg.Loader(source, memory=tg.Budget("16MiB"), **{**OPTIONS, **options})
    ids = [id for batch in loader for id in batch.ids.tolist()]
    return ids, loader.report()


def test_a_file_that_was_mended_is_read_again_without_force(tmp_path):
    data = folder(tmp_path)
    torn = data / "a" / "1.jpg"
    torn.write_bytes(large()[:-2000])
    with pytest.raises(tg.SampleError, match="truncated JPEG"):
        epoch(data)
    torn.write_bytes(large())
    # The folder is as old as before, so the index holds until the sample fails.
    with pytest.raises(tg.SampleError, match=r"1.jpg has changed since .* \(it has .* open the dataset again"):
        epoch(data)
    assert epoch(data)[0] == list(range(6))


def test_a_mended_file_is_not_filled_with_gray(tmp_path):
    data = folder(tmp_path)
    torn = data / "a" / "1.jpg"
    torn.write_bytes(large()[:-2000])
    fields = {"image": tg.Image(64, load_truncated=True)}
    assert epoch(data, fields=fields)[1]["stages"]["filled"] == 1
    torn.write_bytes(large())
    with pytest.raises(tg.SampleError, match="has changed since it was indexed"):
        epoch(data, fields=fields)
    assert epoch(data, fields=fields)[1]["stages"]["filled"] == 0


def test_a_sample_that_is_only_damaged_is_not_called_changed(tmp_path):
    data = folder(tmp_path)
    (data / "b" / "2.jpg").write_bytes(b"\xff\xd8" + bytes(100))
    tg.open(data)
    # As after a copy that does not keep times.
    os.utime(data / "b" / "2.jpg")
    with pytest.raises(tg.SampleError) as caught:
        epoch(data)
    assert "changed" not in str(caught.value)


def test_a_shard_that_is_written_in_mid_epoch_is_said(tmp_path):
    members = [(f"{i}.jpg", picture()) for i in range(2000)]
    path = tar(tmp_path / "a.tar", *members)
    loader = tg.Loader(path, batch_size=1, memory=tg.Budget("16MiB"), workers=1, on_error="skip", max_failure_rate=1.0)
    batches = iter(loader)
    next(batches)
    tar(path, *[(f"other{i}.txt", b"x" * 3000) for i in range(900)])
    list(batches)
    assert "has changed since it was indexed" in loader.report()["failures"][-1]
    assert tg.open(path).schema == {"txt": "text"}


def test_an_interrupt_does_not_wait_for_the_rest_of_a_batch():
    calls = []

    def slow(sample, rng):
        calls.append(threading.get_ident())
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return sample

    loader = tg.Loader(
        tg.synthetic(1000, 8), batch_size=500, memory=tg.Budget("16MiB"), transform=slow, workers=2, columns=["id"]
    )
    # A shell starts what is in the background without this handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(iter(loader))
    finally:
        signal.signal(signal.SIGINT, before)
    # Without looking, the batches of both workers would be made to their ends: 1000 calls.
    assert 0 < len(calls) < 500
    # The loader can be used again.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader.seek(0, 0)
    loader.close()


def test_an_unpacked_shard_that_was_changed_is_unpacked_again(tmp_path):
    shutil.copytree(Path(__file__).parent / "golden" / "mds-zstd", tmp_path / "mds")
    right = list(map(str, tg.open(tmp_path / "mds")))
    for shard in (tmp_path / "mds" / ".tidegate").glob("unpacked-*/*.mds"):
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    assert list(map(str, tg.open(tmp_path / "mds"))) == right
    # After a copy without times the hashes tell, in place, and nothing need be written.
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "mds", copy, copy_function=shutil.copyfile)
    kept = sorted((copy / ".tidegate").glob("unpacked-*/*.mds"))
    inodes = [shard.stat().st_ino for shard in kept]
    assert list(map(str, tg.open(copy))) == right
    assert [shard.stat().st_ino for shard in kept] == inodes
    # What was not changed is not unpacked again.
    shards = sorted((tmp_path / "mds" / ".tidegate").glob("unpacked-*/*.mds"))
    before = [shard.stat().st_mtime_ns for shard in shards]
    tg.open(tmp_path / "mds")
    assert [shard.stat().st_mtime_ns for shard in shards] == before != []


def test_an_index_with_flipped_bits_is_made_again(tmp_path):
    for name in ("a/0.jpg", "b/0.jpg", "b/1.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(picture())
    tar(tmp_path / "shards.tar", *[(f"{i}.cls", b"%d" % i) for i in range(9)])
    rng = np.random.default_rng(3)
    for data in (tmp_path / "photos", tmp_path / "shards.tar"):
        right = list(tg.open(data))
        for name in ("meta.json", "entries", "keys"):
            for _ in range(40):
                for path in (tmp_path / ".tidegate").rglob(name):
                    content = bytearray(path.read_bytes())
                    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
                    path.write_bytes(content)
                found = list(tg.open(data))
                assert found == right
