"""Patches changed on their way: geometry that fields share, values, types."""

import numpy as np
import pytest
from conftest import zarr3

import tidegate as tg
from tidegate import samplers

zarr = zarr3()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image of two channels and its labels; every voxel has a value of its own."""
    folder = tmp_path_factory.mktemp("patch")
    voxels = np.arange(24 * 24 * 24, dtype="uint16").reshape(24, 24, 24)
    for name, data in (("raw", np.stack([voxels, voxels + 20_000])), ("labels", voxels)):
        array = zarr.create_array(str(folder / name), shape=data.shape, chunks=(8,) * data.ndim, dtype=data.dtype)
        array[:] = data
    return folder


def batches(folder, fields, arrays=("raw", "labels"), **options):
    volume = tg.volume(str(folder), array={name: name for name in arrays}, patch=(12, 12, 12))
    loader = tg.Loader(
        volume, batch_size=4, memory=tg.Budget("32MiB"), sampler=samplers.patches(volume, 32), fields=fields, **options
    )
    return volume, list(loader)


def test_labels_follow_their_image(folder):
    fields = {"raw": tg.Patch(dtype="float32", crop=(8, 8, 8), flip=True, rotate=(0, 1, 2)), "labels": tg.Mask("raw")}
    volume, all = batches(folder, fields)
    turned = 0
    for batch in all:
        assert batch["raw"].shape == (4, 2, 8, 8, 8)
        assert batch["raw"].dtype == np.float32
        for raw, labels, id in zip(batch["raw"], batch["labels"], batch.ids, strict=True):
            assert (raw[0] == labels).all()
            assert (raw[1] == labels + 20_000.0).all()
            middle = volume[int(id)]["labels"][2:10, 2:10, 2:10]
            assert (np.sort(labels, axis=None) == np.sort(middle, axis=None)).all()
            turned += not np.array_equal(labels, middle)
    assert turned > 25


def test_an_image_and_its_labels_are_deformed_alike(folder):
    fields = {"raw": tg.Patch(dtype="float32", crop=(8, 8, 8), elastic=(6, (1, 2, 2))), "labels": tg.Mask("raw")}
    volume, all = batches(folder, fields)
    for batch in all:
        for raw, labels, id in zip(batch["raw"], batch["labels"], batch.ids, strict=True):
            stored = volume[int(id)]["labels"]
            assert np.isin(labels, stored).all()
            assert len(np.unique(labels)) > 200
            # Between eight voxels at most half a voxel away along each axis: 24 x 24 + 24 + 1
            # numbers each.
            apart = np.abs(raw[0] - labels)
            inside = (labels > stored[1, 1, 1]) & (labels < stored[-2, -2, -2])
            assert np.percentile(apart[inside], 95) <= (576 + 24 + 1) / 2 + 1
            assert np.allclose(raw[1] - raw[0], 20_000, atol=0.01)


def test_values_are_changed_as_numpy_would(folder):
    plain = batches(folder, {"raw": tg.Patch(dtype="float32")}, arrays=("raw",))[1]
    spec = tg.Patch(
        dtype="float32",
        mean=(100, 20_100),
        std=50,
        intensity=(2, 2),
        contrast=(0.5, 0.5),
        gamma=(2, 2),
        p={"contrast": 0},
    )
    changed = batches(folder, {"raw": spec}, arrays=("raw",))[1]
    mean = np.array([100, 20_100], "float32")[:, None, None, None]
    for before, after in zip(plain, changed, strict=True):
        for x, y in zip(before["raw"], after["raw"], strict=True):
            x = (x - mean) / np.float32(50) * np.float32(2)
            low, high = (f(x, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
            expected = ((x - low) / (high - low)) ** 2 * (high - low) + low
            assert np.allclose(y, expected, rtol=1e-4, atol=5e-3)


@pytest.mark.parametrize("dtype", [None, "uint8", "float16"])
def test_types_are_rounded_and_cut_off(folder, dtype):
    fields = {"labels": tg.Patch(dtype=dtype, intensity=(0.5, 0.5))}
    wanted = np.dtype(dtype or "uint16")
    for batch in batches(folder, fields, arrays=("labels",))[1]:
        assert batch["labels"].dtype == wanted
        for labels, id in zip(batch["labels"], batch.ids, strict=True):
            whole = zarr.open_array(str(folder / "labels"))[:]
            z, y, x = np.unravel_index(id, (13, 13, 13))
            half = np.float32(0.5) * whole[z : z + 12, y : y + 12, x : x + 12].astype("float32")
            limits = np.iinfo(wanted) if wanted.kind == "u" else None
            expected = np.clip(np.rint(half), limits.min, limits.max) if limits else half
            assert (labels == expected.astype(wanted)).all()


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"raw": tg.Patch(crop=(13, 12, 12))}, "cannot be in the middle"),
        ({"raw": tg.Patch(crop=(8, 8))}, "crop needs a length"),
        ({"raw": tg.Patch(flip=(3,))}, "flip: axis 3"),
        ({"raw": tg.Patch(dtype="float32", mean=(1, 2, 3))}, "mean has 3 numbers"),
        ({"raw": tg.Patch(mean=1)}, "float dtype"),
        ({"raw": tg.Patch(gamma=(0, 1))}, "above 0"),
        ({"raw": tg.Patch(noise=(2, 1))}, "ascending"),
        ({"raw": tg.Patch(elastic=(0.1, 1))}, "wider spacing"),
        ({"raw": tg.Patch(dtype="float99")}, "float99"),
        ({"labels": tg.Mask("raw")}, "no tg.Patch of its own"),
        ({"labels": tg.Patch(of="raw"), "raw": tg.Patch(of="labels")}, "no tg.Patch of its own"),
        ({"labels": tg.Patch(of="raw", flip=True), "raw": tg.Patch()}, "give crop, flip, rotate and elastic there"),
    ],
)
def test_what_cannot_be_made_is_named(folder, fields, word):
    with pytest.raises(tg.ConfigError, match=word):
        batches(folder, fields)


def test_specs_are_checked_where_they_are_written():
    for options, word in [
        ({"flip": (-1,)}, "at least 0"),
        ({"noise": 3}, "two values"),
        ({"p": {"flip": 0.5}}, "known are elastic"),
    ]:
        with pytest.raises(tg.ConfigError, match=word):
            tg.Patch(**options)
    with pytest.raises(tg.ConfigError, match="which cannot be read as a patch of a volume"):
        tg.Loader(tg.synthetic(4, 2), batch_size=1, memory=tg.Budget("16MiB"), fields={"id": tg.Patch()})


@pytest.mark.parametrize("levels", [1, 2])
def test_wavelet_levels_are_what_is_coarse(folder, levels):
    fields = {"raw": tg.Patch(dtype="float32", wavelet=("haar", levels))}
    plain = batches(folder, {"raw": tg.Patch(dtype="float32")}, arrays=("raw",))[1]
    coarse = batches(folder, fields, arrays=("raw",))[1]
    side, width = 12 >> levels, 1 << levels
    for before, after in zip(plain, coarse, strict=True):
        blocks = before["raw"].reshape(4, 2, side, width, side, width, side, width)
        assert after["raw"].shape == (4, 2, side, side, side)
        assert np.allclose(after["raw"], blocks.mean((3, 5, 7)), atol=0.01)


def test_a_ramp_is_a_ramp_at_every_level(folder):
    for batch in batches(folder, {"raw": tg.Patch(wavelet=("cdf53", 1))}, arrays=("raw",))[1]:
        assert batch["raw"].dtype == np.uint16
        inner = batch["raw"][..., :-1, :-1, :-1].astype(int)
        assert (np.diff(inner, axis=-1) == 2).all()
        assert (np.diff(inner, axis=-3) == 2 * 576).all()
    with pytest.raises(tg.ConfigError, match="labels have none"):
        batches(folder, {"raw": tg.Patch(wavelet=("haar", 1)), "labels": tg.Mask("raw")})
    with pytest.raises(tg.ConfigError, match="levels between 1 and 16"):
        batches(folder, {"raw": tg.Patch(wavelet=("haar", 0))})


def test_boxes_are_small_where_an_array_varies(tmp_path):
    data = np.zeros((50, 64, 64), "float32")
    data[20:24, 30:40, 8:20] = np.random.default_rng(0).normal(size=(4, 10, 12))
    array = zarr.create_array(str(tmp_path / "x"), shape=data.shape, chunks=(16, 16, 16), dtype="float32")
    array[:] = data
    volume = tg.volume(str(tmp_path / "x"), patch=(8, 8, 8))
    boxes = volume.refine("data", tolerance=0.05, block=4, memory=tg.Budget("16MiB"))
    covered = np.zeros(data.shape, int)
    for i in range(len(boxes)):
        level, voxels, low, high = boxes[i]
        at = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        covered[at] += 1
        assert voxels == data[at].size
        assert all(b - a <= 4 << level for a, b in zip(low, high, strict=True))
        assert level == 0 or data[at].std() <= 0.05
    assert (covered == 1).all()
    assert set(boxes.classes) >= {0, 3}
    rough = [boxes[i] for i in range(len(boxes)) if data[tuple(map(slice, boxes[i][2], boxes[i][3]))].std() > 0.05]
    assert rough
    assert {box[0] for box in rough} == {0}
    # Classes that come equally often go to where something is.
    loader = tg.Loader(
        volume, batch_size=8, memory=tg.Budget("16MiB"), sampler=samplers.patches(volume, 400, boxes=boxes), seed=0
    )
    varied = np.mean([patch.std() > 0.05 for batch in loader for patch in batch["data"]])
    even = np.mean(
        [volume[int(i)]["data"].std() > 0.05 for i in np.random.default_rng(0).integers(0, len(volume), 400)]
    )
    assert varied > 4 * even
    with pytest.raises(tg.ConfigError, match="tolerance=-1: expected"):
        volume.refine("data", tolerance=-1)


def test_a_pyramid_goes_from_coarse_to_fine(tmp_path):
    root = zarr.open_group(str(tmp_path / "image"), mode="w", zarr_format=2)
    datasets = []
    for level in range(4):
        side = 64 >> level
        made = root.create_array(str(level), shape=(side,) * 3, chunks=(16,) * 3, dtype="uint8")
        made[:] = level
        scale = {"type": "scale", "scale": [float(1 << level)] * 3}
        datasets.append({"path": str(level), "coordinateTransformations": [scale]})
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    root.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    levels = tg.pyramid(str(tmp_path / "image"), patch=(16, 16, 16))
    assert [int(volume[0]["data"].flat[0]) for volume in levels] == [2, 1, 0]
    assert [len(volume) for volume in levels] == [1, 17**3, 49**3]
    with pytest.raises(tg.ConfigError, match="fewer"):
        tg.pyramid(str(tmp_path / "image"), patch=(65, 16, 16))
    with pytest.raises(tg.DataError, match=r"no OME-NGFF image"):
        tg.pyramid(str(tmp_path / "image" / "0"), patch=(16, 16, 16))
