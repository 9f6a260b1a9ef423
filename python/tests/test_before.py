"""What the build of commit eda1532 wrote opens and goes on: indexes, states, caches, profiles.

golden/make_before.py wrote golden/before with that build. It also makes data, cases and hashes for
these tests.
"""

import base64
import importlib.util
import itertools
import json
import os
import zipfile
from pathlib import Path

import pytest

import tidegate as tg

GOLDEN = Path(__file__).parent / "golden"

spec = importlib.util.spec_from_file_location("make_before", GOLDEN / "make_before.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)

SHOWN = json.loads((GOLDEN / "before" / "states.json").read_text())


def unpacked(root):
    with zipfile.ZipFile(GOLDEN / "before" / "files.zip") as archive:
        archive.extractall(root)
    make.touch(root)
    return root


def side_cars(root):
    """Every file that was written beside data: its bytes, and which file it is."""
    paths = [path for path in sorted(root.rglob("*")) if ".tidegate" in path.parts and path.is_file()]
    return {str(path.relative_to(root)): (path.read_bytes(), os.stat(path).st_ino) for path in paths}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return unpacked(tmp_path_factory.mktemp("before"))


@pytest.fixture(scope="module")
def sources(root):
    return make.opened(root)


@pytest.fixture(scope="module")
def cases(sources):
    made = make.cases(sources)
    # What was the default with several ranks when the states were saved.
    made["tar-uneven"]["options"]["remainder"] = "pad"
    return made


@pytest.fixture
def relative(tmp_path, monkeypatch):
    """A copy in the working folder, by the relative path that the data had when all was written."""
    monkeypatch.chdir(tmp_path)
    return unpacked(Path("before"))


def test_side_cars_are_used_as_they_are(relative):
    before = side_cars(relative)
    metas = {name for name in before if Path(name).name == "meta.json"}
    names = {Path(name).name for name in before}
    assert {"meta.json", "entries", "keys", "checkpoints", "boxes"} <= names
    assert sum(name.startswith("profile-") for name in names) == len(SHOWN["profiles"])
    sources = make.opened(relative)
    cases = make.cases(sources)
    loader = make.loader(sources, cases["photos"])
    assert sum(batch.rows for batch in loader) == 7
    assert "7 samples with JPEG checkpoints" in str(loader.report())
    after = side_cars(relative)
    # Of the formats that are read in another way by now, meta.json is renewed, and it alone.
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} <= metas


def test_every_case_is_there(cases):
    assert sorted(cases) == sorted(SHOWN["states"])


@pytest.mark.parametrize("name", SHOWN["states"])
def test_states_go_on(sources, cases, name):
    shown, case = SHOWN["states"][name], cases[name]
    for workers in (1, 3):
        loader = make.loader(sources, case, workers=workers)
        if shown["feedback"] is not None:
            loader.load_feedback_state(base64.b64decode(shown["feedback"]))
        loader.load_state_dict(json.loads(shown["state"]))
        assert [make.digest(batch) for batch in loader] == shown["rest"]
        assert [make.digest(batch) for batch in itertools.islice(loader, 2)] == shown["next_epoch"]


@pytest.mark.parametrize("name", SHOWN["states"])
def test_states_are_the_same_bytes(sources, cases, name):
    assert make.state_of(sources, cases[name]) == SHOWN["states"][name]


@pytest.mark.parametrize("name", SHOWN["caches"])
def test_disk_caches_have_everything(relative, name):
    folder = relative / "cache" / name
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    loader, batches = make.cached(make.opened(relative), relative, name)
    assert batches == SHOWN["caches"][name]
    stages = loader.report()["stages"]
    assert stages["disk_hits"] > 0
    assert stages["reads"] == 0, "nothing is read from the data"
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(before)


def figures(summary):
    """Return a summary without the words for kinds of fields: they may change, figures may not."""
    if isinstance(summary, dict):
        return {key: figures(value) for key, value in summary.items() if key not in ("sort", "kind")}
    return [figures(value) for value in summary] if isinstance(summary, list) else summary


@pytest.mark.parametrize("name", SHOWN["profiles"])
def test_profiles_load_and_compare(root, sources, tmp_path, name):
    shown = SHOWN["profiles"][name]
    file = tg.Profile.load(root / f"{name}.profile")
    beside = tg.Profile.load(sources[name])
    for found in (file, beside):
        assert figures(found.summary) == figures(shown)
    file.save(tmp_path / "again")
    assert figures(tg.Profile.load(tmp_path / "again").summary) == figures(shown)
    fresh = tg.profile(sources[name], memory=tg.Budget(make.MEMORY), save=False)
    diff = file.diff(fresh)
    assert diff["drifts"]
    assert not any(drift["drifted"] for drift in diff["drifts"])
    other = tg.Profile.load(root / f"{'csv' if name == 'tar' else 'tar'}.profile")
    assert str(file.diff(other))
    field = {"tar": "cls", "csv": "id"}[name]
    assert file.class_weights(field) == fresh.class_weights(field)
    if name == "tar":
        assert file.normalization("jpg") == fresh.normalization("jpg")
        loader = tg.Loader(sources[name], batch_size=5, memory=tg.Budget(make.MEMORY), fields=file)
        assert next(iter(loader))["jpg"].dtype == "float32"
    else:
        assert file.padding("name") == fresh.padding("name")


def test_files_of_arrays_are_read(root):
    assert make.read_arrays(root / "arrays") == SHOWN["arrays"]
