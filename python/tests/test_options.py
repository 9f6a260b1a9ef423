"""Options are checked where they are given: by name, with the value, what is allowed, the nearest.

No message of the Rust side's parser or of the bindings reaches a user.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tidegate as tg

DATA = tg.synthetic(100, 8)
# What the parsers and bindings below say: none of it may come up.
FOREIGN = re.compile(
    r"at line \d+ column|invalid type|unknown variant|missing field|expected u\d|expected struct|usize|serde|pyo3|"
    r"cannot be converted|not JSON serializable|cannot be interpreted|argument '"
)


def loader(**options):
    return tg.Loader(DATA, **{"batch_size": 10, "memory": tg.Budget("16MiB"), **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": "8"}, "batch_size='8': expected an int of at least 1, such as batch_size=8"),
        ({"batch_size": 8.0}, "batch_size=8.0: expected an int of at least 1, such as batch_size=8"),
        ({"batch_size": 0}, "batch_size=0: expected an int of at least 1"),
        ({"batch_size": True}, "batch_size=True: expected an int"),
        ({"batch_size": None}, "give batch_size"),
        ({"seed": None}, "seed=None: expected an int of at least 0"),
        ({"workers": -1}, "workers=-1: expected an int from 1"),
        ({"prefetch": 1.5}, "prefetch=1.5: expected an int"),
        ({"remainder": "keep"}, "remainder='keep': expected 'drop', 'pad' or 'uneven'"),
        ({"remainder": "Pad"}, "did you mean 'pad'"),
        ({"on_error": "ignore"}, "on_error='ignore': expected 'raise', 'skip' or 'replace'"),
        ({"cache": "store"}, "did you mean 'stored'"),
        ({"output": "pytorch"}, "did you mean 'torch'"),
        ({"multiprocessing_context": "thread"}, "multiprocessing_context='thread'"),
        ({"max_failure_rate": 3}, "max_failure_rate=3: expected a number from 0 to 1"),
        ({"stall_seconds": "5"}, "stall_seconds='5': expected a number"),
        ({"shuffle": 1000}, r"shuffle=1000: expected True .* tg.Window\(1000\)"),
        ({"shuffle": "none"}, "shuffle='none': expected True"),
        ({"shuffle": tg.Window}, r"expected True .* tg.Window\(4096\)"),
        ({"transform": 5}, "transform=5: expected a function"),
        ({"processes": "2"}, "such as processes=2"),
        ({"drop_last": "yes"}, "drop_last='yes': expected True or False"),
        ({"memory": None}, "memory=None: expected bytes"),
        ({"memory": True}, "memory=True: expected bytes"),
        ({"memory": 64}, '64 bytes; did you mean "64MiB"'),
        ({"memory": "4096TiB"}, "overcommit=True"),
        ({"fields": "id"}, "fields='id': expected specs by name"),
        ({"fields": {"id": tg.Int}}, "expected a spec"),
        ({"columns": ["idd"]}, "no field 'idd'.*did you mean 'id'"),
        ({"columns": ["id"], "fields": {"data": tg.Bytes()}}, "columns leaves out"),
        ({"columns": ["id"], "fields": ["id"]}, "both list names"),
        ({"rank": 2, "world_size": 2}, "rank=2 of world_size=2"),
        ({"num_workers": 4}, "workers=N"),
        ({"pin_memory": True}, "pin_memory"),
        ({"collate_fn": list}, "batch_transform="),
        ({"persistent_workers": True}, "leave it out"),
        ({"batchsize": 4}, "no option 'batchsize'; did you mean 'batch_size'"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_right(options, words):
    with pytest.raises(tg.ConfigError, match=words) as raised:
        loader(**options)
    assert not FOREIGN.search(str(raised.value))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tg.Image((3, 64, 64)), r"size=\(3, 64, 64\): expected a side in pixels, or \(height, width\)"),
        (lambda: tg.Image(64.0), "such as size=64"),
        (lambda: tg.Image(0), "size=0: expected an int of at least 1"),
        (lambda: tg.Image(32, dtype="float"), "did you mean 'float"),
        (lambda: tg.Image(32, dtype=np.float64), "dtype='float64': expected 'uint8', 'float32'"),
        (lambda: tg.Image(32, mean=[123, 117, 104]), r"divide by 255, as in mean=\[0.482, 0.459, 0.408\]"),
        (lambda: tg.Image(32, mean=[0.5]), r"mean=\[0.5\]: expected 3 numbers"),
        (lambda: tg.Image(32, std=0), "std"),
        (lambda: tg.Image(32, jitter=0.4), "strengths by name"),
        (lambda: tg.Image(32, jitter={"bright": 0.4}), "did you mean 'brightness'"),
        (lambda: tg.Image(32, flip="h"), "flip='h': expected a number from 0 to 1"),
        (lambda: tg.Image(32, scale=(1, 0.5)), "the least first"),
        (lambda: tg.Image(layout="CHW"), "needs a size"),
        (lambda: tg.Image(crop="center"), "needs a size"),
        (lambda: tg.Image(jitter={"hue": 0.1}), "needs a size"),
        (lambda: tg.Image(32, layout="NCHW"), "did you mean 'CHW'"),
        (lambda: tg.Mask(5), "of=5"),
        (lambda: tg.Array("float33"), "did you mean 'float32'"),
        (lambda: tg.Array("float32", 5), "shape=5: expected a sequence of ints, the sides"),
        (lambda: tg.Window(0), "samples=0"),
        (lambda: tg.Window("many"), "samples='many'"),
        (lambda: DATA["id"], r"source\['id'\]: expected the number of a sample"),
        (lambda: DATA[0:5], r"select\(range\(0, 5\)\)"),
        (lambda: DATA.split([0.9, 0.1]), "by name"),
        (lambda: DATA.split({"a": "half"}), r"parts\['a'\]='half'"),
        (lambda: DATA.select([-1]), "no sample -1"),
        (lambda: DATA.select([True, False]), "np.flatnonzero"),
        (lambda: tg.open(["a.tar", "b.tar"]), "expected a path"),
        (lambda: tg.Loader(["a.tar", "b.tar"], batch_size=1, memory="16MiB"), "shards/"),
        (lambda: tg.synthetic("5", 8), "such as samples=5"),
        (lambda: tg.tokens("x", 0), "length=0"),
        (lambda: loader().set_epoch("1"), "such as epoch=1"),
        (lambda: loader().load_state_dict({"epoch": 1}), "state"),
        (lambda: loader().load_state_dict([1]), "expected what Loader.state_dict"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_right(make, words):
    with pytest.raises((tg.ConfigError, tg.StateError), match=words) as raised:
        make()
    assert not FOREIGN.search(str(raised.value))


def test_numbers_types_and_sequences_of_numpy_and_torch_are_taken():
    made = loader(
        batch_size=np.int64(8), seed=torch.tensor(3), prefetch=np.uint8(1), max_failure_rate=np.float32(0.5),
        shuffle=np.bool_(True), drop_last=np.True_, stall_seconds=torch.tensor(10.0),
    )  # fmt: skip
    plain = loader(batch_size=8, seed=3, shuffle=True, drop_last=True)
    assert [batch["id"].tolist() for batch in made] == [batch["id"].tolist() for batch in plain]
    wanted = tg.Image((32, 32), dtype="float32", mean=[0.5] * 3, std=[0.25] * 3).spec()
    for dtype in (np.float32, np.dtype("float32"), torch.float32):
        for mean in (np.full(3, 0.5, np.float32), torch.full((3,), 0.5), 0.5):
            assert tg.Image(np.array([32, 32]), dtype=dtype, mean=mean, std=torch.full((3,), 0.25)).spec() == wanted
    assert tg.Array(np.int64, np.array([2, 3])).spec() == tg.Array("int64", (2, 3)).spec()
    assert DATA[np.int64(-1)]["id"] == 99
    assert len(DATA.select(torch.tensor([1, 2]))) == 2


def test_columns_choose_and_fields_specify(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,c\n1,2,x\n3,4,y\n")
    options = {"batch_size": 2, "memory": tg.Budget("16MiB")}
    batch = next(iter(tg.Loader(tmp_path / "x.csv", columns=["c", "a"], fields={"a": tg.Float()}, **options)))
    assert sorted(batch) == ["a", "c"]
    assert batch["a"].dtype == "float64"


def test_a_new_size_counts_when_no_epoch_runs():
    first = tg.Loader(DATA, batch_size=10, memory="24MiB")
    list(first)
    second = tg.Loader(DATA, batch_size=10, memory="32MiB")
    assert first.budget.cap_bytes == second.budget.cap_bytes == 32 << 20
    running = iter(second)
    next(running)
    with pytest.raises(tg.ConfigError, match=r"epoch is running.*set_memory"):
        tg.Loader(DATA, batch_size=10, memory="48MiB")
    second.close()
    assert tg.Loader(DATA, batch_size=10, memory="48MiB").budget.cap_bytes == 48 << 20
    assert tg.Budget(1 << 60, overcommit=True).cap_bytes == 1 << 60


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.lists(st.integers(-5, 300), max_size=4),
    st.dictionaries(st.text(max_size=4), st.floats(), max_size=2),
    st.sampled_from([np.int64(3), np.float32(0.5), np.array([1, 2]), np.array("x"), torch.tensor(2), torch.float32,
                     np.float32, object(), object, len, lambda: 1, tg.Window, tg.Window(5), tg.Image, tg.Image(8),
                     range(3), b"\xff", "\ud800", float("nan"), 10**30, {1: 2}, set()]),
)  # fmt: skip
LOADER = [
    "batch_size",
    "global_batch_size",
    "fields",
    "columns",
    "shuffle",
    "sampler",
    "seed",
    "remainder",
    "drop_last",
    "extras",
    "workers",
    "prefetch",
    "held_batches",
    "on_error",
    "max_failure_rate",
    "transform",
    "batch_transform",
    "processes",
    "multiprocessing_context",
    "cache",
    "disk",
    "profile",
    "rank",
    "world_size",
    "stall_seconds",
    "output",
    "memory",
]
IMAGE = [
    "size",
    "crop",
    "scale",
    "ratio",
    "flip",
    "jitter",
    "mean",
    "std",
    "dtype",
    "layout",
    "draft",
    "load_truncated",
    "max_pixels",
]


def test_every_option_of_a_loader_is_among_those_that_are_tried():
    import inspect

    parameters = set(inspect.signature(tg.Loader.__init__).parameters) - {"self", "source", "keep", "ids"}
    assert parameters == set(LOADER)


@pytest.mark.parametrize(
    ("seed", "calls", "seconds"), [(1, 4000, 600.0), pytest.param(2, 10**9, 600.0, marks=pytest.mark.slow)]
)
def test_values_of_random_types_for_everything_public(tmp_path, seed, calls, seconds):
    program = Path(__file__).with_name("fuzz_options.py")
    command = [sys.executable, program, str(seed), str(calls), str(seconds)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def tried(call):
    """Call; an error must be one of Tidegate's, in its own words."""
    said = "nothing"
    try:
        call()
    except tg.Error as error:
        said = str(error)
    assert said
    assert not FOREIGN.search(said), said


calm = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@calm
@given(st.dictionaries(st.sampled_from(LOADER), anything, min_size=1, max_size=3))
def test_nonsense_for_a_loader_is_refused_in_words(options):
    # What a sampler or a transform raises is the user's own.
    options = {name: value for name, value in options.items() if not callable(value) or value is tg.Window}
    if isinstance(options.get("workers"), int) and options["workers"] > 64:
        options["workers"] = 2
    tried(lambda: loader(**options))


@calm
@given(st.dictionaries(st.sampled_from(IMAGE), anything, min_size=1, max_size=3))
def test_nonsense_for_an_image_is_refused_in_words(options):
    tried(lambda: tg.Image(**options))


@calm
@given(anything, anything)
def test_nonsense_for_other_specs_and_sources_is_refused_in_words(one, two):
    for call in (
        lambda: tg.Array(one, two),
        lambda: tg.Mask(one, two),
        lambda: tg.Window(one, two),
        lambda: tg.Budget(one),
        lambda: DATA.split({"a": one}, two),
        lambda: DATA.select(one),
        lambda: tg.synthetic(one, two) if not isinstance(one, int) else None,
        lambda: loader().seek(one, two),
        lambda: loader().set_epoch(one),
        lambda: loader().load_state_dict(one),
    ):
        tried(call)
