"""Profiles from Python: figures against NumPy's, what follows from them, training with them."""

import base64
import io
import json
import pickle
import tarfile
import threading

import numpy as np
import pytest

import tidegate as tg
from tidegate import sketch

# Transformed batches that wait for the consumer, at least.
AHEAD = 32


@pytest.fixture(scope="module")
def mixed(shards, tmp_path_factory):
    """Shards with text, a float array and a class next to each image; and what was written."""
    root = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    source = tg.open(str(shards / "*.tar"))
    written = {"txt": [], "npy": [], "cls": []}
    with tarfile.open(root / "a.tar", "w") as out:
        for i in range(50):
            npy = io.BytesIO()
            written["npy"].append(rng.standard_normal((2, 8)).astype(np.float32) * 3 + 1)
            np.save(npy, written["npy"][-1])
            written["txt"].append("wörter " * int(rng.integers(1, 400)))
            written["cls"].append(int(rng.integers(0, 3)))
            parts = {
                "jpg": source[i % len(source)]["jpg"],
                "txt": written["txt"][-1].encode(),
                "npy": npy.getvalue(),
                "cls": str(written["cls"][-1]).encode(),
            }
            for extension, data in parts.items():
                info = tarfile.TarInfo(f"{i:04}.{extension}")
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
    return str(root / "*.tar"), written


def measures(profile, field):
    return profile.summary["fields"][field]["measures"]


def test_figures_are_those_of_numpy(mixed):
    url, written = mixed
    told = []
    profile = tg.profile(url, memory="64MiB", progress=lambda done, of: told.append((done, of)))
    assert told[0] == (0, 50)
    assert told[-1] == (50, 50)
    lengths = [len(text) for text in written["txt"]]
    characters = measures(profile, "txt")["characters"]
    assert (characters["min"], characters["max"]) == (min(lengths), max(lengths))
    assert characters["mean"] == pytest.approx(np.mean(lengths), rel=1e-12)
    assert measures(profile, "txt")["words"]["mean"] == pytest.approx(np.mean(lengths) / 7, rel=1e-12)
    values = np.concatenate([array.ravel() for array in written["npy"]]).astype(np.float64)
    value = measures(profile, "npy")["value"]
    assert value["count"] == values.size
    assert value["mean"] == pytest.approx(values.mean(), rel=1e-9)
    assert value["std"] == pytest.approx(values.std(), rel=1e-9)
    known = profile.summary["fields"]
    assert known["cls"]["values"] == {str(c): written["cls"].count(c) for c in sorted(set(written["cls"]))}
    assert known["npy"]["values"] == {"float32 [2, 8]": 50}
    counts = np.bincount(np.frombuffer("".join(written["txt"]).encode(), np.uint8), minlength=256)
    shares = counts[counts > 0] / counts.sum()
    assert known["txt"]["entropy_bits"] == [pytest.approx(-(shares * np.log2(shares)).sum(), rel=1e-9)]
    # Text that repeats itself is worth packing, images are not.
    assert known["txt"]["advice"]["codec"][1] > 5
    assert known["jpg"]["advice"]["codec"] is None
    # It is next to the data, where it is found.
    assert tg.Profile.load(url).summary == profile.summary
    assert "<svg" in profile.html()
    assert "50 of 50 samples" in str(profile)


def test_sketches_are_read_by_others(mixed):
    import datasketches

    profile = tg.profile(mixed[0], memory="64MiB")
    fields = {field["name"]: field for field in json.loads(profile._inner.to_json())["fields"]}
    raw = base64.b64decode
    kll = datasketches.kll_floats_sketch.deserialize(raw(fields["txt"]["measures"][1]["kll"]))
    assert kll.get_max_value() == measures(profile, "txt")["characters"]["max"]
    hll = datasketches.hll_sketch.deserialize(raw(fields["cls"]["hll"]))
    assert round(hll.get_estimate()) == len(set(mixed[1]["cls"]))
    theta = datasketches.compact_theta_sketch.deserialize(raw(fields["jpg"]["theta"]))
    assert theta.get_estimate() == sketch.Theta.from_bytes(raw(fields["jpg"]["theta"])).estimate()[0]


def test_what_follows_goes_into_a_loader(mixed):
    url, written = mixed
    profile = tg.profile(url, memory="64MiB")
    of = profile.normalization("jpg")
    fields = profile.fields(32, crop="center")
    assert (fields["jpg"].mean, fields["jpg"].dtype, fields["jpg"].crop) == (of["mean"], "float32", "center")
    batch = next(iter(tg.Loader(url, batch_size=50, memory="64MiB", fields=fields)))
    assert batch["npy"].shape == (50, 2, 8)
    assert abs(batch["jpg"].mean()) < 0.4
    # In one word: images of many sizes stay as they are.
    batch = next(iter(tg.Loader(url, batch_size=50, memory="64MiB", fields=profile)))
    assert batch["npy"].shape == (50, 2, 8)
    weights = profile.class_weights("cls")
    assert sum(weights[c] for c in written["cls"]) == pytest.approx(50)
    padding = profile.padding("txt", buckets=4)
    assert padding["edges"][-1] == max(len(text) for text in written["txt"])
    assert padding["waste_in_buckets"] < padding["waste"]
    with pytest.raises(tg.ConfigError, match="cannot be normalized"):
        profile.normalization("cls")
    with pytest.raises(tg.ConfigError, match="no field 'nope'; it has"):
        profile.normalization("nope")
    with pytest.raises(tg.ConfigError, match="no lengths"):
        profile.padding("cls")
    with pytest.raises(tg.ConfigError, match="no classes"):
        profile.class_weights("jpg")
    with pytest.raises(tg.ConfigError, match=r"beta in \[0, 1\), not 1"):
        profile.class_weights("cls", beta=1.0)


def test_training_profiles_what_it_delivers(mixed):
    url, _ = mixed
    image = tg.Image(32, crop="center", dtype="float32", mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    fields = {"jpg": image, "npy": tg.Array("float32", (2, 8))}
    loader = tg.Loader(url, batch_size=8, memory="64MiB", fields=fields, shuffle=True, profile=True, workers=3)
    pixels = np.concatenate([batch["jpg"] for batch in loader]).astype(np.float64)
    profile = loader.profile()
    channels = profile.summary["fields"]["jpg"]["channels"]
    assert [c["mean"] for c in channels] == pytest.approx(pixels.mean(axis=(0, 2, 3)), abs=1e-6)
    # To normalize by are the constants of what was delivered before they were taken off.
    of = profile.normalization("jpg")
    assert of["mean"] == pytest.approx(pixels.mean(axis=(0, 2, 3)) * 0.25 + 0.5, abs=1e-6)
    assert of["std"] == pytest.approx(pixels.std(axis=(0, 2, 3)) * 0.25, abs=1e-6)
    # As they are stored, they are larger.
    assert measures(profile, "jpg")["height"]["min"] > 32
    again = pickle.loads(pickle.dumps(profile))
    assert again.summary == profile.summary
    with pytest.raises(tg.ConfigError, match="profile=True"):
        tg.Loader(url, batch_size=8, memory="64MiB", fields=fields).profile()


def test_parts_are_merged_and_compared(mixed):
    ids = tg.synthetic(4000, 16)
    parts = ids.split({"train": 0.5, "val": 0.25, "test": 0.25})
    train, val, _ = (tg.profile(part, memory="32MiB", save=False) for part in parts.values())
    assert not any(drift["drifted"] for drift in train.diff(val)["drifts"])
    late = tg.profile(ids.select(range(3000, 4000)), memory="32MiB", save=False)
    drift = next(d for d in train.diff(late)["drifts"] if d["field"] == "id")
    assert drift["drifted"]
    assert "drifted" in str(train.diff(late))
    train.merge(val)
    assert (train.summary["samples"], train.summary["of"]) == (3000, 3000)
    with pytest.raises(tg.ConfigError, match="other fields"):
        train.merge(tg.profile(mixed[0], memory="64MiB"))


def table(path, columns):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def test_fields_that_samples_lack_are_counted(tmp_path):
    values = [float(i) for i in range(1000)]
    sparse = [value if i % 10 == 0 else None for i, value in enumerate(values)]
    url = table(tmp_path / "t.parquet", {"a": values, "b": sparse, "c": [f"word {i % 7}" for i in range(1000)]})
    profile = tg.profile(url, memory="64MiB")
    fields = profile.summary["fields"]
    assert profile.summary["failed"] == 0
    assert [fields[name]["missing"] for name in "abc"] == [0, 900, 0]
    assert measures(profile, "a")["value"]["mean"] == pytest.approx(np.mean(values), rel=1e-12)
    assert measures(profile, "b")["value"]["count"] == 100
    # Labels are in both datasets, which is no leak; other text would be.
    assert profile.diff(profile)["shared"] == []
    # Of some fields only, it does not take the place of the whole.
    tg.profile(url, memory="64MiB", fields=["a"])
    assert set(tg.Profile.load(url).summary["fields"]) == set("abc")


def test_what_is_missing_or_of_another_type_has_drifted(tmp_path):
    x = np.random.default_rng(0).normal(size=2000)
    one = table(tmp_path / "one.parquet", {"x": x, "y": x, "z": [1.0] * 2000, "k": np.arange(2000)})
    holes = [None if i % 2 else value for i, value in enumerate(x)]
    odd = np.where(np.arange(2000) % 2, np.nan, x)
    other = table(tmp_path / "other.parquet", {"x": holes, "y": odd, "z": ["1"] * 2000, "k": np.arange(2000)})
    one, other = (tg.profile(url, memory="64MiB") for url in (one, other))
    diff = one.diff(other)
    assert {(d["field"], d["what"]) for d in diff["drifts"] if d["drifted"]} >= {(f, "missing or NaN") for f in "xy"}
    assert diff["changed"] == [["z", "float (float)", "text (text)"]]
    assert "1000 lack it" in str(other)
    assert "1000 NaN" in str(other)
    # What never varies is divided by one, and what hardly comes twice is no class.
    assert one.normalization("z") == {"mean": [1.0], "std": [1.0]}
    assert one.summary["fields"]["k"]["advice"]["class_weights"] is None
    assert one.summary["fields"]["k"]["distinct"]["estimate"] == 2000
    with pytest.raises(tg.ConfigError, match="effect=2: expected a number from 0 to 1"):
        one.diff(other, effect=2)
    with pytest.raises(tg.ConfigError, match="give a Profile"):
        one.diff("other.parquet")


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([0.1, 0.2]), "float64"),
        (np.array([1e300, 1.0]), "float64"),
        (np.array([2**40 + 1, 5]), "int64"),
        (np.array([2.0**40 + 1, 0.5]), "float64"),
        (np.array([0.5, 1.25], np.float32), "float16"),
        (np.where(np.arange(128) % 2, 0.5, 3.0).astype(np.float32), "float16"),
        (np.array([1, 200], np.int64), "uint8"),
        (np.array([-1, 200], np.int32), "int16"),
        (np.array([3.0, 4.0]), "uint8"),
    ],
)
def test_the_type_that_is_told_loses_nothing(array, dtype, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as out:
        for i in range(3):
            npy = io.BytesIO()
            np.save(npy, array)
            info = tarfile.TarInfo(f"{i}.npy")
            info.size = len(npy.getvalue())
            out.addfile(info, io.BytesIO(npy.getvalue()))
    told = tg.profile(str(tmp_path / "*.tar"), memory="64MiB").summary["fields"]["npy"]["advice"]["dtype"]
    assert told == dtype
    assert (array.astype(told) == array).all()


def test_what_is_noted_of_mapped_batches_waits_for_the_consumer():
    # At each call of the transform: the number of batches that were transformed and not taken.
    # There are at most 64 slots.
    ahead, taken, changed = [], 0, threading.Condition()

    def counted(batch):
        with changed:
            ahead.append(len(ahead) + 1 - taken)
            changed.notify_all()
        return 1

    def far_ahead():
        return len(ahead) - taken >= min(AHEAD, 2000 - taken)

    loader = tg.Loader(tg.synthetic(4000, 8), batch_size=2, memory="32MiB", profile=True, batch_transform=counted)
    for _ in loader:
        with changed:
            taken += 1
            # Before each batch the loader has the time to get as far ahead as it may.
            assert changed.wait_for(far_ahead, timeout=60)
    assert taken == len(ahead) == 2000
    assert AHEAD <= max(ahead) <= 70
    assert loader.profile().summary["samples"] == 4000


def test_rows_that_were_kept_are_seen_again(folder):
    fields = {"image": tg.Image(32)}
    loader = tg.Loader(folder, batch_size=8, memory="64MiB", fields=fields, cache="decoded", profile=True)
    next(iter(loader))
    assert sum(batch.rows for batch in loader) == 40
    assert loader.profile().summary["samples"] == 40


def test_mistakes_are_told(mixed, tmp_path):
    url, _ = mixed
    with pytest.raises(tg.ConfigError, match="no field 'nope'"):
        tg.profile(url, memory="64MiB", fields=["nope"])
    with pytest.raises(tg.BudgetError, match="telemetry asks for"):
        tg.profile(url, memory=tg.Budget("4MiB"))
    with pytest.raises(tg.ConfigError, match="give a path"):
        tg.profile(tg.synthetic(10, 8), memory="32MiB", save=True)
    (tmp_path / "cut.json").write_text('{"version":1')
    with pytest.raises(tg.ConfigError, match="cut.json: this is no profile"):
        tg.Profile.load(tmp_path / "cut.json")

    def stop(done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tg.profile(url, memory="64MiB", progress=stop)
