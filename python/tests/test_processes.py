"""Transforms in worker processes: results as on threads, clear errors, memory given back."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import tidegate as tg

CONTEXTS = ["fork", "spawn"]


def noisy(sample, rng):
    return {
        "image": sample["image"].astype(np.float32) + rng.normal(),
        "label": sample["label"],
        "words": f"class {sample['label']}",
        "pid": os.getpid(),
    }


def mixed(batch):
    return {
        "same": batch["image"],
        "part": batch["image"][:, ::2, 1:],
        "fresh": batch["image"] * 2.0,
        "list": [batch["label"], (batch.rows, None)],
        "batch": batch,
        "pid": os.getpid(),
    }


def with_ragged(batch):
    batch["data"].values[:] ^= 1
    return batch


def failing(batch):
    raise KeyError(f"batch {batch.number}")


def dying(batch):
    if batch.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch


def slow(batch):
    time.sleep(60)


def large(sample, rng):
    return {"x": np.full(1 << 18, sample["id"])}


def larger_and_first_slowly(batch):
    if batch.number in (0, 3):
        time.sleep(0.4)
    return {"y": batch["x"] + 1}


def growing(batch):
    return {"large": np.ones(3 << 20, np.uint8)}


def loader(source, memory="64MiB", **options):
    return tg.Loader(source, batch_size=8, memory=tg.Budget(memory), shuffle=True, seed=3, **options)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_transform_gives_the_same_in_processes_as_on_threads(folder, context):
    fields = {"image": tg.Image(16, crop="random")}
    here = loader(folder, fields=fields, transform=noisy)
    there = loader(folder, fields=fields, transform=noisy, processes=2, multiprocessing_context=context)
    pids = set()
    for _ in range(2):
        batches = list(zip(here, there, strict=True))
        assert len(batches) > 2
        for a, b in batches:
            assert (a["image"] == b["image"]).all()
            assert (a["label"] == b["label"]).all()
            assert a["words"] == b["words"]
            assert (a.ids == b.ids).all()
            assert (a.positions == b.positions).all()
            assert a.number == b.number
            assert b["image"].flags.writeable
            assert set(a["pid"]) == {os.getpid()}
            pids |= set(b["pid"].tolist())
        del a, b, batches
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2
    assert there.budget.accounts()["user"] == 0
    there.close()


def test_results_of_any_form_come_back_and_inputs_are_not_copied(folder):
    fields = {"image": tg.Image(64)}
    here = iter(loader(folder, fields=fields))
    with loader(folder, fields=fields, batch_transform=mixed, processes=1) as there:
        for result, plain in zip(there, here, strict=True):
            assert (result["same"] == plain["image"]).all()
            assert result["same"].base is not None
            assert (result["part"] == plain["image"][:, ::2, 1:]).all()
            assert np.shares_memory(result["part"], result["same"])
            assert result["fresh"].dtype == np.float64
            assert (result["fresh"] == plain["image"] * 2.0).all()
            labels, (rows, nothing) = result["list"]
            assert (labels == plain["label"]).all()
            assert (rows, nothing) == (plain.rows, None)
            assert np.shares_memory(result["batch"]["image"], result["same"])
            assert (result["batch"].ids == plain.ids).all()
            assert result["pid"] != os.getpid()
            held = there.budget.accounts()["user"]
            assert result["fresh"].nbytes <= held, "charged while it is held"
            del result, plain, labels


def test_ragged_columns_and_tensors_cross_over():
    source = tg.synthetic(64, 5000)
    plain = list(loader(source))
    for a, b in zip(plain, loader(source, batch_transform=with_ragged, processes=2), strict=True):
        assert [bytes(x ^ 1 for x in row) for row in a["data"]] == list(b["data"])
    import torch

    for function in [{"transform": lambda s, _: {"x": np.full(5000, s["id"])}}, {"batch_transform": lambda b: b}]:
        for batch in loader(source, processes=1, multiprocessing_context="fork", output="torch", **function):
            assert all(isinstance(column, torch.Tensor) for column in batch.values() if not hasattr(column, "offsets"))


def test_errors_in_a_process_are_raised_here_with_their_place(folder):
    with pytest.raises(KeyError, match="batch 0") as caught:
        list(loader(folder, batch_transform=failing, processes=2))
    assert "in a worker process" in str(caught.value.__cause__)
    assert "failing" in str(caught.value.__cause__)


def test_a_broken_sample_is_an_error_and_not_a_hang(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    picture = sorted(broken.rglob("*.jpg"))[20]
    picture.write_bytes(picture.read_bytes()[:700])
    with pytest.raises(tg.SampleError, match=picture.name):
        list(loader(broken, fields={"image": tg.Image(16)}, transform=noisy, processes=2))
    rest = loader(broken, fields={"image": tg.Image(16)}, transform=noisy, processes=2, on_error="skip")
    assert sum(batch.rows for batch in rest) == 39


def test_ctrl_c_works_while_a_process_is_busy():
    code = """
        import os, signal, threading, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        import tidegate as tg
        def stuck(batch):
            time.sleep(60)
        loader = tg.Loader(tg.synthetic(100, 8), batch_size=10, memory="16MiB", batch_transform=stuck, processes=2)
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            next(iter(loader))
        except KeyboardInterrupt:
            print("interrupted")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=40)
    assert "interrupted" in done.stdout, done.stderr


def test_a_process_that_dies_is_named_and_replaced(folder):
    broken = loader(folder, batch_transform=dying, processes=2)
    with pytest.raises(tg.Error, match=r"died \(killed by signal 9\) while it transformed batch 1 of epoch 0"):
        list(broken)
    broken.set_epoch(0)
    assert next(iter(broken)).number == 0
    broken.close()


def test_an_epoch_goes_on_in_its_middle_with_processes(folder):
    fields = {"image": tg.Image(16, crop="random")}
    whole = [batch["image"].copy() for batch in loader(folder, fields=fields, transform=noisy, processes=2)]
    first = loader(folder, fields=fields, transform=noisy, processes=2)
    batches = iter(first)
    seen = [next(batches)["image"].copy() for _ in range(2)]
    second = loader(folder, fields=fields, transform=noisy, processes=1)
    second.load_state_dict(first.state_dict())
    seen += [batch["image"].copy() for batch in second]
    assert len(seen) == len(whole)
    assert all((a == b).all() for a, b in zip(seen, whole, strict=True))


def test_closing_does_not_wait_for_a_function():
    busy = loader(tg.synthetic(64, 8), batch_transform=slow, processes=2)
    batches = iter(busy)
    began = time.monotonic()
    # The first batch never comes; the loader is closed from beside it.
    threading.Timer(0.5, busy.close).start()
    with pytest.raises((tg.Error, StopIteration)):
        next(batches)
    assert time.monotonic() - began < 20


def test_results_that_do_not_fit_are_an_error_and_not_a_hang():
    kept = []
    with (
        pytest.raises(tg.BudgetError),
        loader(tg.synthetic(64, 8), memory="16MiB", batch_transform=growing, processes=2) as starved,
    ):
        kept.extend(starved)
    assert 1 <= len(kept) < 8
    for result in loader(tg.synthetic(64, 8), memory="16MiB", batch_transform=growing, processes=2):
        assert result["large"].all()


def test_what_a_batch_asks_for_again_is_held_for_it():
    # A result is 16 MiB and then 16 MiB more: batches behind a slow one must not take the memory
    # that it still needs.
    functions = {"transform": large, "batch_transform": larger_and_first_slowly}
    seen = 0
    for result in loader(tg.synthetic(96, 8), memory="100MiB", processes=4, **functions):
        assert (result["y"][:, 0] == result["y"][:, -1]).all()
        seen += len(result["y"])
        del result
    assert seen == 96


def test_what_cannot_be_sent_is_refused_with_the_fix(folder):
    with pytest.raises(tg.ConfigError, match="top of a module, or pass multiprocessing_context='fork'"):
        loader(folder, batch_transform=lambda batch: batch, processes=1, multiprocessing_context="spawn")
    with pytest.raises(tg.ConfigError, match="without a transform"):
        loader(folder, processes=1)


@pytest.mark.parametrize("function", ["transform", "batch_transform"])
def test_memory_changes_in_mid_epoch_and_processes_go_on(folder, function):
    options = {
        "fields": {"image": tg.Image(24)},
        function: {"transform": noisy, "batch_transform": with_first}[function],
    }
    with loader(folder, **options) as plain, loader(folder, memory="256MiB", processes=2, **options) as there:
        for epoch in range(2):
            for i, (a, b) in enumerate(zip(plain, there, strict=True)):
                assert (a["image"] == b["image"]).all()
                there.set_memory(["256MiB", "40MiB", "96MiB"][(i + epoch) % 3])


def with_first(batch):
    batch["image"][:] = batch["image"][:1]
    return batch


PROMPT = """
import tidegate as tg
def double(sample, rng): return {"id": 2 * sample["id"]}
options = dict(batch_size=5, memory="64MiB", columns=["id"], transform=double, processes=1)
try:
    tg.Loader(tg.synthetic(10, 8), multiprocessing_context=METHOD, **options)
except tg.ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_functions_of_a_notebook_are_named_where_they_cannot_be_found(method):
    code = PROMPT.replace("METHOD", repr(method))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert "double is defined in a notebook or at a prompt" in done.stdout, done.stderr
    assert "multiprocessing_context='fork'" in done.stdout
