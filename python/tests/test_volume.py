"""Volumes: arrays of other programs, patches and their alignment, class balance, errors."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import zarr3

import tidegate as tg
from tidegate import samplers

GOLDEN = Path(__file__).parent / "golden"
SHAPE = (9, 8, 10)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """The arrays that golden/make_volumes.py wrote with zarr-python, TensorStore and ome-zarr."""
    folder = tmp_path_factory.mktemp("volumes")
    with zipfile.ZipFile(GOLDEN / "volumes.zip") as archive:
        archive.extractall(folder)
    return folder


def elements(dtype="uint16"):
    return (np.arange(np.prod(SHAPE)) * 7919 % 65521).reshape(SHAPE).astype(dtype)


def whole(path, **options):
    """All of an array, by one patch."""
    volume = tg.volume(path, patch=SHAPE, **options)
    assert len(volume) == 1
    (batch,) = tg.Loader(volume, batch_size=1, memory=tg.Budget("16MiB"))
    one = volume[0]["data"]
    np.testing.assert_array_equal(batch["data"][0], one)
    assert batch["data"].dtype == one.dtype
    return one


def names(prefix):
    with zipfile.ZipFile(GOLDEN / "volumes.zip") as archive:
        found = {name.split("/")[0] for name in archive.namelist()}
    return sorted(name for name in found if name.startswith(prefix))


CODECS = names("zarr2-") + names("zarr3-") + names("ts2-") + names("ts3-")


@pytest.mark.parametrize("name", [name for name in CODECS if "missing" not in name and "bitround" not in name])
def test_arrays_of_other_programs_are_read_equal(golden, name):
    kind = name.split("-", 1)[1]
    dtype = kind if kind in ("int8", "bool", "float16", "float64", "uint64") else "uint16"
    read = whole(golden / name)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, elements(dtype))


def test_rounded_bits_are_read_as_they_are(golden):
    read = whole(golden / "zarr3-bitround")
    assert (read != elements("float32")).any()
    np.testing.assert_allclose(read, elements("float32"), rtol=2.0**-8)


@pytest.mark.parametrize("name", ["zarr3-missing", "zarr3-missing-shards"])
def test_chunks_that_are_not_stored_have_the_fill_value(golden, name):
    expected = np.full(SHAPE, 7, "uint16")
    expected[:4, :4, :4] = elements()[:4, :4, :4]
    np.testing.assert_array_equal(whole(golden / name), expected)


@pytest.mark.parametrize("name", ["ngff-0.4", "ngff-0.5"])
def test_two_resolutions_are_aligned_to_the_voxel(golden, name):
    z, y, x = np.ogrid[:16, :24, :24]
    fine = (1000 + 40 * z + 7 * y + x).astype("uint16")
    volume = tg.volume(golden / name, array={"fine": "", "coarse": ""}, patch=(4, 8, 6), scale={"coarse": 1})
    assert volume[0]["coarse"].shape == (4, 4, 3)
    # Every second voxel along y and x, which are twice as coarse.
    assert len(volume) == 13 * 9 * 10
    for id in range(0, len(volume), 7):
        z, y, x = volume.origin(id)
        assert y % 2 == x % 2 == 0
        assert volume.nearest((z, y, x)) == id
        patch = volume[id]
        np.testing.assert_array_equal(patch["fine"], fine[z : z + 4, y : y + 8, x : x + 6])
        np.testing.assert_array_equal(patch["coarse"], patch["fine"][:, ::2, ::2])
    by_length = tg.volume(golden / name, patch=(4, 4, 4), scale=(30, 8, 8))
    np.testing.assert_array_equal(by_length[0]["data"], fine[:4, :8:2, :8:2])
    # Around the same centre, of the same number of voxels: more of the volume.
    wide = tg.volume(
        golden / name, array={"fine": "", "wide": ""}, patch={"fine": (4, 8, 8), "wide": (4, 8, 8)}, scale={"wide": 1}
    )
    z, y, x = wide.origin(0)
    assert (z, y, x) == (0, 4, 4)
    np.testing.assert_array_equal(wide[0]["wide"], fine[:4, :16:2, :16:2])


def test_chunks_that_are_not_stored_are_counted_or_fail_their_patches(tmp_path):
    array = zarr3().create_array(tmp_path / "a", shape=(8, 8), chunks=(4, 4), dtype="uint8", fill_value=9)
    array[:4] = 1
    volume = tg.volume(tmp_path / "a", patch=(4, 4), stride=4)
    options = {"batch_size": 1, "memory": tg.Budget("16MiB")}
    loader = tg.Loader(volume, **options)
    assert [int(batch["data"].mean()) for batch in loader] == [1, 1, 9, 9]
    assert loader.report()["stages"]["absent_chunks"] == 2
    assert "2 of them are not stored" in str(loader.report())
    whole = tg.volume(tmp_path / "a", patch=(4, 4), stride=4, missing="error")
    assert whole.fingerprint != volume.fingerprint, "a cache of the other has fill values"
    assert whole[1]["data"].mean() == 1
    with pytest.raises(tg.DataError, match='c/1/0: this chunk is not stored.*missing="fill"'):
        whole[2]
    with pytest.raises(tg.DataError, match="c/1/0: this chunk is not stored"):
        list(tg.Loader(whole, **options))
    skipping = tg.Loader(whole, on_error="skip", max_failure_rate=1.0, **options)
    assert [id for batch in skipping for id in batch.ids.tolist()] == [0, 1]
    for name, words in (("missing", "fill.*error"), ("pad", "constant.*edge.*reflect")):
        with pytest.raises(tg.ConfigError, match=f"{name}=.*{words}"):
            tg.volume(tmp_path / "a", patch=(4, 4), **{name: "eror"})


def test_borders_are_padded_as_numpy_does(golden):
    for pad, mode in (
        ("edge", {"mode": "edge"}),
        ("reflect", {"mode": "reflect"}),
        ("constant", {"constant_values": 7}),
    ):
        volume = tg.volume(golden / "zarr3-shards", patch=(6, 5, 4), pad=pad)
        assert len(volume) == 8 * 8 * 9
        padded = np.pad(elements(), 8, **mode)
        loader = tg.Loader(volume, batch_size=16, memory=tg.Budget("16MiB"), extras=("ids",), shuffle=True, seed=1)
        for batch in loader:
            for id, patch in zip(batch.ids, batch["data"], strict=True):
                z, y, x = (at + 8 for at in volume.origin(int(id)))
                np.testing.assert_array_equal(patch, padded[z : z + 6, y : y + 5, x : x + 4])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """An OME-NGFF image with two classes of balls; the voxels of its labels are twice as long."""
    rng = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("labelled")
    root = zarr3().open_group(folder, mode="w")
    raw = rng.integers(0, 255, (96, 80, 96)).astype("uint8")
    labels = np.zeros((48, 40, 48), "uint16")
    grid = np.indices(labels.shape)
    for label, count, radius in ((1, 12, 6), (2, 3, 3)):
        for _ in range(count):
            centre = rng.integers(4, 36, 3)
            labels[((grid - centre[:, None, None, None]) ** 2).sum(0) < radius**2] = label
    for name, array, scale in (("raw", raw, 1.0), ("labels", labels, 2.0)):
        group = root.create_group(name)
        axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
        steps = [{"type": "scale", "scale": [scale] * 3}, {"type": "translation", "translation": [(scale - 1) / 2] * 3}]
        dataset = {"path": "s0", "coordinateTransformations": steps}
        group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [dataset]}]}
        group.create_array("s0", shape=array.shape, chunks=(16, 16, 16), dtype=array.dtype)[:] = array
    return folder, raw, labels


def opened(folder, **options):
    arrays = {"raw": "raw", "labels": "labels"}
    return tg.volume(folder, array=arrays, **({"patch": (16, 16, 16)} | options))


def test_classes_come_equally_often_and_patches_hold_them(labelled):
    folder, raw, labels = labelled
    volume = opened(folder)
    assert volume[0]["labels"].shape == (8, 8, 8)
    boxes = volume.boxes("labels")
    voxels = {int(label): int(n) for label, n in zip(*np.unique(labels, return_counts=True), strict=True) if label}
    assert boxes.classes == voxels
    again = volume.boxes("labels")
    assert [again[i] for i in range(len(again))] == [boxes[i] for i in range(len(boxes))]
    assert list((folder / "labels" / "s0" / ".tidegate").rglob("boxes")), "kept beside the labels"
    for classes, least in ((None, {1: 0.5, 2: 0.5}), ([2], {2: 1.0}), ({1: 3.0, 2: 1.0}, {1: 0.75, 2: 0.25})):
        sampler = samplers.patches(volume, 800, boxes=boxes, classes=classes)
        loader = tg.Loader(volume, batch_size=8, memory=tg.Budget("32MiB"), sampler=sampler, extras=("ids",))
        has = {1: 0, 2: 0}
        for batch in loader:
            for id, patch, mask in zip(batch.ids, batch["raw"], batch["labels"], strict=True):
                z, y, x = volume.origin(int(id))
                np.testing.assert_array_equal(patch, raw[z : z + 16, y : y + 16, x : x + 16])
                z, y, x = z // 2, y // 2, x // 2
                np.testing.assert_array_equal(mask, labels[z : z + 8, y : y + 8, x : x + 8])
                for label in has:
                    has[label] += bool((mask == label).any())
        for label, share in least.items():
            assert has[label] / 800 > share - 0.06, (classes, has)


def test_the_epoch_is_the_same_whatever_the_tiers_and_resumes(labelled, tmp_path):
    volume = opened(labelled[0])
    sampler = samplers.patches(volume, 300, boxes=volume.boxes("labels"), window=64, places=4)

    def batches(loader):
        return [(batch.ids.tolist(), batch["raw"].tobytes(), batch["labels"].tobytes()) for batch in loader]

    def loader(memory, cache="auto", workers=2, disk=None):
        return tg.Loader(
            volume,
            batch_size=8,
            memory=memory if isinstance(memory, tg.Budget) else tg.Budget(memory),
            disk=disk,
            sampler=sampler,
            cache=cache,
            workers=workers,
            extras=("ids",),
            seed=3,
        )

    expected = batches(loader("64MiB"))
    for memory, cache, workers in (("3MiB", "auto", 1), ("6MiB", "stored", 2), ("64MiB", "off", 3)):
        one = loader(memory, cache, workers)
        assert batches(one) == expected
        stages = one.report()["stages"]
        assert stages["samples"] == 300
        assert stages["wanted_chunks"] > 300
        assert stages["decoded_chunks"] + stages["hits"] == stages["wanted_chunks"]
    common = tg.Budget("24MiB", scope="node", processes=1, name=f"volume-{os.getpid()}")
    disk = tg.DiskCache(tmp_path / "cache", "64MiB", leave_free=0)
    for memory, tier in (("6MiB", disk), (common, None), (common, disk)):
        one = loader(memory, disk=tier)
        assert batches(one) == expected
        stages = one.report()["stages"]
        assert stages["decoded_chunks"] + stages["hits"] == stages["wanted_chunks"]
    first, second = loader("6MiB", disk=disk), loader(common)
    begun = iter(first)
    assert [next(begun).ids.tolist() for _ in range(20)] == [ids for ids, *_ in expected[:20]]
    second.load_state_dict(first.state_dict())
    assert batches(second) == expected[20:]
    stages = first.report()["stages"]
    assert stages["reads"] == 0, "the disk has every chunk from before"
    assert stages["disk_hits"] > 0
    alone = tg.Loader(volume, batch_size=8, memory=tg.Budget("8MiB"), sampler=sampler, seed=3, fields=["labels"])
    assert [(list(batch), batch["labels"].tobytes()) for batch in alone] == [(["labels"], e[2]) for e in expected]
    first, second = loader("8MiB"), loader("4MiB")
    begun = iter(first)
    head = [next(begun) for _ in range(11)]
    second.load_state_dict(first.state_dict())
    assert [batch.ids.tolist() for batch in head] == [ids for ids, *_ in expected[:11]]
    assert batches(second) == expected[11:]
    assert first.report()["mixing"][0]["label_variation"] > 0


def write(folder, shape=(8, 8, 8), chunks=(8, 8, 8), **more):
    """A plain array of version 2; its one chunk is not written."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": "<u2", "fill_value": 0, "order": "C"}
    metadata |= {"compressor": None, "filters": None} | more
    (folder / ".zarray").write_text(json.dumps(metadata))
    return folder


def test_what_cannot_be_opened_says_why(tmp_path, golden, labelled):
    plain = write(tmp_path / "plain")
    third = json.loads((golden / "zarr3-zstd" / "zarr.json").read_text())

    def changed(name, **more):
        (tmp_path / name).mkdir()
        (tmp_path / name / "zarr.json").write_text(json.dumps(third | more))
        return tmp_path / name

    unknown = changed("codec", codecs=[{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "magic"}])
    for path, options, error, words in [
        (tmp_path / "nowhere", {}, tg.DataError, ["no such folder"]),
        (tmp_path, {}, tg.DataError, ["no Zarr array"]),
        (unknown, {}, tg.DataError, ["magic", "known codecs are", "zstd"]),
        (write(tmp_path / "old", compressor={"id": "magic"}), {}, tg.DataError, ["magic", "known codecs are"]),
        (write(tmp_path / "objects", dtype="|O"), {}, tg.DataError, ["objects"]),
        (changed("grid", chunk_grid={"name": "rectangular", "configuration": {}}), {}, tg.DataError, ["grid"]),
        (plain, {"patch": (4, 4, 9)}, tg.ConfigError, ["8 voxels, fewer than the patch of 9", "pad="]),
        (plain, {"patch": (1, 4, 4, 4)}, tg.ConfigError, ["3 axes and the patch 4"]),
        (plain, {"patch": (4, 4, 0)}, tg.ConfigError, ["at least 1"]),
        (plain, {"scale": 1}, tg.DataError, ["one resolution"]),
        (golden / "ngff-0.5", {"scale": 7}, tg.ConfigError, ["no level", "[30.0, 8.0, 8.0]"]),
        (golden / "ngff-0.5", {"stride": (1, 0, 1)}, tg.ConfigError, ["stride"]),
        (labelled[0], {"array": {"a": "raw", "b": "nope"}}, tg.DataError, ["nope", "no Zarr array"]),
        (
            labelled[0],
            {"array": {"a": "raw", "b": "labels"}, "patch": (4, 4, 5)},
            tg.ConfigError,
            ["'b'", "multiple of 2"],
        ),
        (labelled[0], {"array": {"a": "raw", "b": str(plain)}}, tg.ConfigError, ["where its voxels lie"]),
    ]:
        with pytest.raises(error) as caught:
            tg.volume(path, **({"patch": (4, 4, 4)} | options))
        for word in words:
            assert word in str(caught.value).replace('"', "'"), (path, str(caught.value))


def test_mismatched_units_are_named(labelled, tmp_path):
    folder = tmp_path / "units"
    shutil.copytree(labelled[0], folder)
    file = folder / "labels" / "zarr.json"
    for unit, word in (("second", "second"), (None, "unit is none")):
        described = json.loads(file.read_text())
        for axis in described["attributes"]["ome"]["multiscales"][0]["axes"]:
            axis["unit"] = unit
        file.write_text(json.dumps(described))
        with pytest.raises(tg.ConfigError, match=word):
            opened(folder)


def test_labels_that_are_none_are_named(labelled):
    volume = opened(labelled[0])
    with pytest.raises(tg.ConfigError, match="the arrays are raw, labels"):
        volume.boxes("masks")
    boxes = volume.boxes("labels")
    with pytest.raises(tg.ConfigError, match="class 9 has no voxels: the classes are 1, 2"):
        tg.Loader(
            volume,
            batch_size=1,
            memory=tg.Budget("16MiB"),
            sampler=samplers.patches(volume, 5, boxes=boxes, classes=[9]),
        )
    with pytest.raises(tg.ConfigError, match="no label but those that are ignored"):
        volume.boxes("labels", ignore=(0, 1, 2))
    other = tg.volume(labelled[0], array="raw", patch=(8, 8, 8))
    with pytest.raises(tg.ConfigError, match="another volume"):
        tg.Loader(other, batch_size=1, memory=tg.Budget("16MiB"), sampler=samplers.patches(volume, 5))
    with pytest.raises(tg.ConfigError, match="no voxels"):
        tg.Boxes([1], [[0, 0, 0]], [[4, 0, 4]])


def damaged(folder, golden, name, change):
    shutil.copytree(golden / name, folder)
    chunk = next(path for path in sorted(folder.rglob("*")) if path.is_file() and path.name[0].isdigit())
    chunk.write_bytes(change(chunk.read_bytes()))
    return chunk


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("zarr3-zstd", lambda b: b[:-5], "zstd"),
        ("zarr3-gzip", lambda b: b"x" + b[1:], "gzip"),
        ("zarr3-crc32c", lambda b: b[:-1] + bytes([b[-1] ^ 1]), "checksum"),
        ("zarr3-blosc", lambda b: b[:40], "blosc"),
        ("zarr3-none", lambda b: b[:-2], "decodes to 318 bytes where the chunk shape makes 320"),
        ("zarr3-none", lambda b: b + b"xx", "decodes to 322 bytes"),
        ("zarr3-none", lambda b: b * 10000, "3200000 bytes, where its codecs make at most"),
        ("zarr2-big", lambda b: b[:10], ""),
        ("zarr3-shards", lambda b: b[:-1] + bytes([b[-1] ^ 1]), "index of the shard is damaged"),
        ("zarr3-shards", lambda b: b[:50], "no room for its index"),
        ("zarr3-shards", lambda b: b"", "no room for its index"),
        ("ts3-shards-start", lambda b: b[:-20], "by the index"),
    ],
)
def test_damaged_chunks_fail_by_name_and_the_rest_goes_on(tmp_path, golden, name, change, word):
    chunk = damaged(tmp_path / "a", golden, name, change)
    volume = tg.volume(tmp_path / "a", patch=(2, 2, 2))
    strict = tg.Loader(volume, batch_size=4, memory=tg.Budget("16MiB"))
    with pytest.raises(tg.DataError) as caught:
        list(strict)
    for part in (word, str(chunk)):
        assert part in str(caught.value)
    # A whole shard is most of this array: others in its place fail too.
    for policy in ("skip",) if "shards" in name else ("skip", "replace"):
        loader = tg.Loader(
            volume, batch_size=4, memory=tg.Budget("16MiB"), on_error=policy, extras=("ids",), max_failure_rate=1.0
        )
        good = 0
        for batch in loader:
            for id, patch in zip(batch.ids, batch["data"], strict=True):
                z, y, x = volume.origin(int(id))
                np.testing.assert_array_equal(patch, elements()[z : z + 2, y : y + 2, x : x + 2])
                good += 1
        assert 0 < good <= len(volume)
        assert (good == len(volume)) == (policy == "replace")
        assert loader.report()["failures"]


def test_a_budget_that_cannot_hold_a_chunk_is_refused(tmp_path):
    write(tmp_path, shape=(512, 512, 512), chunks=(512, 512, 512))
    with pytest.raises(tg.BudgetError, match="smaller chunks"):
        tg.Loader(tg.volume(tmp_path, patch=(8, 8, 8)), batch_size=1, memory=tg.Budget("64MiB"))


def test_other_programs_are_asked_where_data_lie_remote(golden, tmp_path):
    """The same over HTTP: chunks, shards and what is not there."""
    import functools
    import http.server
    import threading

    asked = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def send_head(self):
            asked.append(self.path)
            ranged = self.headers.get("Range")
            path = self.translate_path(self.path)
            if ranged is None or not os.path.isfile(path):
                return super().send_head()
            first, last = (int(n) for n in ranged.removeprefix("bytes=").split("-"))
            data = Path(path).read_bytes()
            part = data[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Last-Modified", self.date_time_string(0))
            self.end_headers()
            self.wfile.write(part)
            return None

    handler = functools.partial(Quiet, directory=str(golden))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for name in ("zarr3-zstd", "ts3-shards-end", "zarr2-slashes"):
            np.testing.assert_array_equal(whole(f"{url}/{name}"), elements())
        missing = whole(f"{url}/zarr3-missing-shards")
        assert (missing[4:] == 7).all()
        with pytest.raises(tg.DataError, match="no Zarr array"):
            tg.volume(f"{url}/nothing", patch=(1, 1, 1))
        # From a disk the next run asks for nothing, chunks that are not there included.
        volume = tg.volume(f"{url}/zarr3-missing-shards", patch=(4, 5, 6), stride=(4, 5, 6))
        epochs = []
        for _ in range(2):
            asked.clear()
            disk = tg.DiskCache(tmp_path / "cache", "64MiB", leave_free=0)
            loader = tg.Loader(volume, batch_size=4, memory=tg.Budget("64MiB"), disk=disk, cache="off")
            epochs.append(([batch["data"].tobytes() for batch in loader], len(asked)))
        assert epochs[0][0] == epochs[1][0]
        assert epochs[0][1] > 0
        assert epochs[1][1] == 0
        server.shutdown()


def test_levels_that_say_not_where_they_lie_are_not_aligned(tmp_path):
    root = zarr3().open_group(str(tmp_path / "old"), mode="w", zarr_format=2)
    for level, side in (("0", 32), ("1", 16)):
        root.create_array(level, shape=(1, 1, side, side, side), chunks=(1, 1, 16, 16, 16), dtype="uint8")
    root.attrs["multiscales"] = [{"version": "0.2", "datasets": [{"path": "0"}, {"path": "1"}]}]
    assert len(tg.volume(str(tmp_path / "old"), patch=(8, 8, 8), scale=1)) == 9**3
    with pytest.raises(tg.ConfigError, match="where its voxels lie"):
        tg.volume(str(tmp_path / "old"), array={"fine": "", "coarse": ""}, patch=(8, 8, 8), scale={"coarse": 1})


def test_an_image_above_counts_only_for_the_arrays_that_it_names(tmp_path):
    root = zarr3().open_group(str(tmp_path / "x"), mode="w", zarr_format=2)
    for path in ("scale1/image", "other/raw"):
        root.create_array(path, shape=(16, 16), chunks=(8, 8), dtype="uint8")
    datasets = [{"path": "scale1/image", "coordinateTransformations": [{"type": "affine"}]}]
    root.attrs["multiscales"] = [{"version": "0.4", "axes": ["y", "x"], "datasets": datasets}]
    assert len(tg.volume(str(tmp_path / "x"), array="other/raw", patch=(8, 8))) == 81
    with pytest.raises(tg.DataError, match="affine"):
        tg.volume(str(tmp_path / "x"), array="scale1/image", patch=(8, 8))


def test_a_budget_is_refused_or_enough_whatever_is_done_about_failures(tmp_path):
    folder = write(tmp_path / "x", shape=(64, 64, 64), chunks=(64, 64, 64))
    volume = tg.volume(str(folder), patch=(8, 8, 8))
    enough = 0
    for kib in range(1024, 8192, 128):
        budget = tg.Budget(kib << 10)
        try:
            sampler = samplers.patches(volume, 8)
            loader = tg.Loader(volume, batch_size=2, memory=budget, sampler=sampler, on_error="skip", workers=1)
            enough += sum(batch.rows for batch in loader) == 8
        except tg.BudgetError:
            assert not enough
    assert enough


def test_boxes_of_an_array_that_is_not_there_are_named(labelled):
    volume = opened(labelled[0])
    boxes = tg.Boxes([1], [[0, 0, 0]], [[4, 4, 4]], array=5)
    with pytest.raises(tg.ConfigError, match="count from 0"):
        tg.Loader(volume, batch_size=1, memory=tg.Budget("16MiB"), sampler=samplers.patches(volume, 4, boxes=boxes))


def test_a_file_that_is_written_again_is_named(golden, tmp_path):
    name = next(name for name in names("zarr3") if "shard" in name)
    shutil.copytree(golden / name, tmp_path / "x")
    volume = tg.volume(str(tmp_path / "x"), patch=(4, 4, 4))
    before = volume[0]["data"]
    for path in (tmp_path / "x" / "c").rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))
    with pytest.raises(tg.Error, match="changed"):
        volume[0]
    assert (tg.volume(str(tmp_path / "x"), patch=(4, 4, 4))[0]["data"] == before).all()


def test_values_that_a_codec_cannot_have_are_refused(tmp_path):
    compressor = {"id": "bz2", "level": 0}
    metadata = {"zarr_format": 2, "shape": [4, 4], "chunks": [2, 2], "dtype": "<f4", "fill_value": 0, "order": "C"}
    (tmp_path / ".zarray").write_text(json.dumps({**metadata, "compressor": compressor, "filters": None}))
    with pytest.raises(tg.DataError, match=r"\.zarray: metadata that no array can have: .*level"):
        tg.volume(tmp_path, patch=(2, 2))


@pytest.mark.parametrize("path", ["../other.zarr", "/etc", "s3://bucket/x", "a/../../b"])
def test_a_level_of_an_image_lies_within_it(tmp_path, path):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(tmp_path / "image.zarr", mode="w", zarr_format=2)
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    scale = [{"type": "scale", "scale": [1.0, 1.0]}]
    datasets = [{"path": path, "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    with pytest.raises(tg.DataError, match="leads out of the image"):
        tg.volume(tmp_path / "image.zarr", patch=(2, 2))
