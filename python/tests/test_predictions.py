"""Predictions of overlapping patches, blended into one array."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import zarr3

import tidegate as tg

zarr = zarr3()

SHAPE, PATCH, STRIDE = (40, 37, 44), (16, 16, 16), (8, 8, 8)


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictions") / "x.zarr"
    array = zarr.create_array(str(folder), shape=SHAPE, chunks=(16, 16, 16), dtype="uint16")
    array[:] = np.random.default_rng(0).integers(0, 1000, SHAPE)
    return tg.volume(str(folder), patch=PATCH, stride=STRIDE)


def model(patch):
    """Something that depends on where in its patch a voxel is, as models do; two channels."""
    ramp = np.linspace(0, 1, 16, dtype="float32")
    x = patch.astype("float32")
    return np.stack([x * (1 + ramp), 500 - x * ramp[:, None, None]])


def weights(blend, patch=16):
    away = np.abs(np.arange(patch) - (patch - 1) / 2)
    one = {
        "gaussian": np.exp(-0.5 * (away / (patch / 8)) ** 2),
        "linear": 1 - away / (patch / 2 + 0.5),
        "uniform": away**0,
    }
    return one[blend][:, None, None] * one[blend][:, None] * one[blend]


def expected(volume, blend):
    total, sums = np.zeros((2, *SHAPE)), np.zeros(SHAPE)
    w = weights(blend)
    for id in range(len(volume)):
        at = tuple(slice(low, low + 16) for low in volume.origin(id))
        total[(slice(None), *at)] += w * model(volume[id]["data"])
        sums[at] += w
    assert (sums > 0).all(), "all is covered"
    return total / sums


def run(volume, out, stop_after=None):
    wanted = out.wanted()
    if len(wanted) == 0:
        return
    loader = tg.Loader(volume, batch_size=5, memory=tg.Budget("32MiB"), sampler=wanted, drop_last=False)
    for number, batch in enumerate(loader):
        if number == stop_after:
            return
        out.add(batch.ids, np.stack([model(patch) for patch in batch["data"]]))


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("blend", ["gaussian", "linear", "uniform"])
def test_overlapping_patches_are_blended_as_numpy_would(volume, tmp_path, blend):
    with volume.predictions(tmp_path / "out", channels=2, blend=blend) as out:
        assert len(out.wanted()) == len(volume)
        run(volume, out)
        assert out.remaining_chunks == 0
    found = zarr.open_array(str(tmp_path / "out"))
    assert found.shape == (2, *SHAPE)
    assert found.dtype == np.float32
    assert np.allclose(found[:], expected(volume, blend), rtol=2e-5, atol=2e-3)


def test_little_memory_a_kill_and_ranks_leave_the_same_bits(volume, tmp_path):
    with volume.predictions(tmp_path / "whole", channels=2, chunks=(8, 16, 16)) as out:
        run(volume, out)
    whole = files(tmp_path / "whole")
    # A chunk's sums take 16 KiB; with what is fixed there is room for a few.
    with volume.predictions(tmp_path / "small", channels=2, chunks=(8, 16, 16), memory=tg.Budget("4200KiB")) as out:
        run(volume, out, stop_after=8)
        left, lacking, here = out._stitch.state()
        assert 0 < here < lacking <= left, repr(out)
        run(volume, out)
    assert files(tmp_path / "small") == whole
    # Killed twice: what has no file is made again.
    wanted = len(volume)
    for stop_after in (7, 6, None):
        with volume.predictions(tmp_path / "killed", channels=2, chunks=(8, 16, 16)) as out:
            assert len(out.wanted()) <= wanted
            wanted = len(out.wanted())
            run(volume, out, stop_after)
    assert wanted < len(volume)
    assert files(tmp_path / "killed") == whole
    for rank in range(3):
        with volume.predictions(tmp_path / "ranks", channels=2, chunks=(8, 16, 16), rank=rank, world_size=3) as out:
            assert len(out.wanted()) < len(volume)
            run(volume, out)
            assert out.remaining_chunks == 0
    assert files(tmp_path / "ranks") == whole


def test_the_largest_channel_is_written(volume, tmp_path):
    with volume.predictions(tmp_path / "labels", channels=2, argmax=True) as out:
        run(volume, out)
    found = zarr.open_array(str(tmp_path / "labels"))
    assert found.dtype == np.uint8
    whole = expected(volume, "gaussian")
    sure = np.abs(whole[0] - whole[1]) > 0.1
    assert (found[:] == whole.argmax(0))[sure].all()
    assert 0.2 < found[:].mean() < 0.8


def test_patches_in_any_order_and_twice_count_once(volume, tmp_path):
    with volume.predictions(tmp_path / "out", channels=2, dtype="float16") as out:
        for id in [*np.random.default_rng(1).permutation(len(volume)), 3, 4]:
            out.add([id], model(volume[int(id)]["data"])[None])
            out.add([id], np.full((1, 2, *PATCH), np.nan))
        assert out.remaining_chunks == 0
    found = zarr.open_array(str(tmp_path / "out"))
    assert np.allclose(found[:], expected(volume, "gaussian"), rtol=2e-3, atol=0.5)


def test_what_cannot_be_written_is_named(volume, tmp_path):
    with volume.predictions(tmp_path / "out", channels=2) as out:
        with pytest.raises(tg.ConfigError, match=r"expected \(1, 2, 16, 16, 16\)"):
            out.add([0], np.zeros((1, 1, *PATCH)))
        with pytest.raises(tg.ConfigError, match=f"of {len(volume)}"):
            out.add([len(volume)], np.zeros((1, 2, *PATCH)))
    with pytest.raises(tg.ConfigError, match="closed"):
        out.wanted()
    with pytest.raises(tg.ConfigError, match="something else is there"):
        volume.predictions(tmp_path / "out", channels=3)
    # What a process that was killed at the very beginning leaves is no hindrance.
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "zarr.json.123").write_text("{")
    volume.predictions(tmp_path / "begun", channels=2).close()
    with pytest.raises(tg.ConfigError, match="cannot number 300 channels"):
        volume.predictions(tmp_path / "other", channels=300, argmax=True, dtype="uint8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("keep me")
    with pytest.raises(tg.ConfigError, match="something else is there"):
        volume.predictions(tmp_path / "full", channels=2)
    with pytest.raises(tg.ConfigError, match="below world_size"):
        volume.predictions(tmp_path / "other", rank=2, world_size=2)
    with pytest.raises(tg.ConfigError, match="can be blended"):
        volume.predictions(tmp_path / "other", channels=1 << 40)
    with pytest.raises(tg.ConfigError, match="chunks needs"):
        volume.predictions(tmp_path / "other", chunks=(8, 8))
    with pytest.raises(tg.BudgetError):
        volume.predictions(tmp_path / "other", channels=2, memory=tg.Budget("4MiB"))
    out = volume.predictions(tmp_path / "other", channels=64, argmax=True, memory=tg.Budget("4800KiB"))
    with out, pytest.raises(tg.ConfigError, match="sums of one chunk take"):
        out.add([0], np.zeros((1, 64, *PATCH)))
    assert os.listdir(tmp_path / "full") == ["letter.txt"]
