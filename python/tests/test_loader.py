"""The loader as a user meets it: batches, fields, state, errors, threads."""

import gc
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading

import numpy as np
import pytest
from conftest import encoded, picture
from PIL import Image
from test_found import tar

import tidegate as tg

MEMORY = "64MiB"


def budget():
    return tg.Budget(MEMORY)


def epoch(loader, field):
    return [(int(id), np.array(row)) for batch in loader for id, row in zip(batch.ids, batch[field], strict=True)]


def same(a, b):
    return len(a) == len(b) and all(x[0] == y[0] and np.array_equal(x[1], y[1]) for x, y in zip(a, b, strict=True))


def test_a_folder_gives_images_and_labels(folder):
    source = tg.open(folder)
    assert source.schema == {"image": "image", "label": "int"}
    assert source.stats["classes"] == ["cat", "dog"]
    loader = tg.Loader(source, batch_size=16, memory=budget(), fields={"image": tg.Image(32)})
    batches = list(loader)
    assert [b["image"].shape for b in batches] == [(16, 3, 32, 32), (16, 3, 32, 32), (8, 3, 32, 32)]
    labels = np.concatenate([b["label"] for b in batches])
    assert labels.dtype == np.int64
    assert labels.tolist() == [0] * 20 + [1] * 20
    assert batches[0]["image"].flags.writeable
    assert batches[0]["image"].ctypes.data % 64 == 0


def test_every_field_of_a_tar(shards):
    fields = {
        "jpg": tg.Image(24, layout="HWC"),
        "seg.png": tg.Mask("jpg"),
        "cls": tg.Int(),
        "npy": tg.Array("float32", (2, 3)),
    }
    loader = tg.Loader(shards, batch_size=10, memory=budget(), fields=fields, extras=("ids",))
    batch = next(iter(loader))
    assert batch["jpg"].shape == (10, 24, 24, 3)
    assert batch["seg.png"].shape == (10, 24, 24)
    assert batch["cls"].tolist() == [i % 5 for i in range(10)]
    assert batch["npy"][7].tolist() == [[7.0] * 3] * 2
    assert batch["txt"][3] == "sample 3 é"
    assert [json.loads(text)["i"] for text in batch["json"]] == list(range(10))
    assert batch["ids"].tolist() == list(range(10))
    assert tg.open(shards).key(3).startswith("longlong")


def test_masks_share_the_geometry_of_their_image(tmp_path):
    # The image is its own mask: for any crop and flip, both show the same place.
    from PIL import Image

    with tarfile.open(tmp_path / "m.tar", "w") as tar:
        for i in range(20):
            ramp = np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8)
            for name, image in (("png", Image.fromarray(ramp).convert("RGB")), ("mask.png", Image.fromarray(ramp))):
                data = io.BytesIO()
                image.save(data, "PNG")
                info = tarfile.TarInfo(f"{i}.{name}")
                info.size = len(data.getvalue())
                tar.addfile(info, io.BytesIO(data.getvalue()))
    fields = {"png": tg.Image(32, crop="random", flip=True, layout="HWC"), "mask.png": tg.Mask("png")}
    for batch in tg.Loader(tmp_path, batch_size=20, memory=budget(), fields=fields, seed=3):
        far = np.abs(batch["png"][..., 0].astype(int) - batch["mask.png"])
        assert far.max() <= 3


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_floats_are_normalized(folder, dtype):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain = next(iter(tg.Loader(folder, batch_size=8, memory=budget(), fields={"image": tg.Image(32)})))
    spec = tg.Image(32, dtype=dtype, mean=mean, std=std)
    batch = next(iter(tg.Loader(folder, batch_size=8, memory=budget(), fields={"image": spec})))
    assert batch["image"].dtype.name == dtype
    shaped = [np.array(x, np.float32)[:, None, None] for x in (mean, std)]
    expected = (plain["image"] / np.float32(255) - shaped[0]) / shaped[1]
    tolerance = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    assert np.abs(batch["image"].astype(np.float32) - expected).max() < tolerance


def test_pictures_of_many_sizes_are_ragged(folder):
    batch = next(iter(tg.Loader(folder, batch_size=4, memory=budget(), fields=["image"])))
    assert isinstance(batch["image"], tg.Ragged)
    assert batch["image"][0].shape == (80, 96, 3)


def test_any_picture_of_a_sample_counts_in_the_plan(tmp_path):
    """The largest of a sample is not the one that is widest."""
    square, strip = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (600, 600), (1, 2, 3)).save(square, "JPEG")
    Image.new("RGB", (9000, 20), (4, 5, 6)).save(strip, "PNG")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i in range(6):
            for name, data in ((f"{i}.jpg", square.getvalue()), (f"{i}.png", strip.getvalue())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    fields = {"jpg": tg.Image(16), "png": tg.Image((4, 40))}
    for batch in tg.Loader(tmp_path, batch_size=3, memory=tg.Budget("8MiB"), fields=fields):
        assert (batch["png"][:, :, 0, 0] == [4, 5, 6]).all()


@pytest.mark.parametrize("on_error", ["skip", "replace"])
def test_images_that_are_too_large_are_left_out_alone_whatever_the_budget(tmp_path, on_error):
    sides = {5: 2200, 8: 1400, 9: 1500, 10: 1300}
    for i in range(24):
        side = sides.get(i, 400)
        Image.new("RGB", (side, side), (i, 0, 0)).save(tmp_path / f"{i:02}.jpg")
    policy = {"on_error": on_error, "max_failure_rate": 1.0, "fields": {"image": tg.Image(max_pixels=600 * 600)}}
    for memory in ("16MiB", "20MiB", "24MiB", "64MiB"):
        loader = tg.Loader(tmp_path, batch_size=4, memory=tg.Budget(memory), **policy)
        ids = []
        for batch in loader:
            ids += batch.ids.tolist()
            # The next may need all there is.
            del batch
        assert len(ids) == (24 if on_error == "replace" else 24 - len(sides)), memory
        assert set(ids) == set(range(24)) - set(sides), memory
        assert loader.report()["failures"][0].startswith("position 5: sample 5 ")


def test_the_epoch_does_not_depend_on_workers_or_memory(folder):
    spec = {"image": tg.Image(32, crop="random", flip=True, jitter={"brightness": 0.4, "hue": 0.1})}

    def run(workers, memory):
        loader = tg.Loader(
            folder, batch_size=8, memory=tg.Budget(memory), fields=spec, shuffle=True, seed=2, workers=workers
        )
        return epoch(loader, "image")

    first = run(1, "8MiB")
    assert all(same(first, run(w, m)) for w, m in [(2, "64MiB"), (5, "9MiB")])


def test_vector_instructions_change_nothing(folder):
    code = f"""
        import hashlib, tidegate as tg
        spec = {{"image": tg.Image(32, crop="random", flip=True, dtype="float32")}}
        h = hashlib.sha256()
        for batch in tg.Loader({str(folder)!r}, batch_size=8, memory="64MiB", fields=spec, shuffle=True):
            h.update(batch["image"].tobytes())
        print(h.hexdigest())
    """
    hashes = {
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "TIDEGATE_SIMD": simd},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for simd in ("on", "off")
    }
    assert len(hashes) == 1


def test_state_goes_on_in_another_loader(folder):
    spec = {"image": tg.Image(16, crop="random")}
    options = {"memory": budget(), "fields": spec, "shuffle": True}
    whole = epoch(tg.Loader(folder, global_batch_size=8, seed=4, **options), "image")
    loader = tg.Loader(folder, global_batch_size=8, seed=4, **options)
    seen = []
    for i, batch in enumerate(loader):
        seen += [(int(id), np.array(row)) for id, row in zip(batch.ids, batch["image"], strict=True)]
        if i == 1:
            break
    text = json.dumps(loader.state_dict())
    assert len(text) <= 1024
    other = tg.Loader(folder, global_batch_size=5, seed=0, workers=3, **options)
    with pytest.warns(tg.DataWarning, match="seed=4"):
        other.load_state_dict(json.loads(text))
    assert same(seen + epoch(other, "image"), whole)
    with pytest.raises(tg.StateError, match="other data"):
        tg.Loader(tg.synthetic(40, 4), batch_size=8, memory=budget()).load_state_dict(json.loads(text))


def test_epochs_follow_one_another_and_can_be_set():
    loader = tg.Loader(tg.synthetic(100, 8), batch_size=50, memory=budget(), shuffle=True, seed=1)
    ids = [np.concatenate([b["id"] for b in loader]).tolist() for _ in range(3)]
    assert ids[0] != ids[1] != ids[2]
    loader.set_epoch(1)
    assert np.concatenate([b["id"] for b in loader]).tolist() == ids[1]


def test_a_full_shuffle_of_a_compressed_tar_is_refused_with_the_fix(shards, tmp_path):
    import gzip

    packed = tmp_path / "s-0.tar.gz"
    packed.write_bytes(gzip.compress((shards / "s-0.tar").read_bytes()))
    with pytest.raises(tg.ConfigError, match="tidegate pack"):
        tg.Loader(packed, batch_size=4, memory=budget(), fields=["txt"], shuffle=True)
    batches = list(tg.Loader(packed, batch_size=4, memory=budget(), fields=["txt"]))
    assert [text for b in batches for text in b["txt"]] == [f"sample {i} é" for i in range(15)]


def test_keeping_batches_ends_in_an_error_not_a_hang():
    loader = tg.Loader(tg.synthetic(100_000, 8), batch_size=1000, memory=budget(), columns=["id"])
    kept, iterator = [], iter(loader)
    with pytest.raises(tg.HeldError, match="held by the consumer"):
        kept.extend(iterator)
    assert isinstance(tg.HeldError(), MemoryError)
    made = len(kept)
    # It goes on where it was once batches are dropped, also those that only the collector drops.
    kept.append(kept)
    del kept
    assert next(iterator).number == made


def test_small_columns_do_not_hold_their_batch():
    loader = tg.Loader(tg.synthetic(100_000, 8), batch_size=100, memory=budget(), columns=["id"])
    labels = [batch["id"] for batch in loader]
    assert np.concatenate(labels).tolist() == list(range(100_000))


def test_kept_batches_have_room_or_are_refused_at_the_beginning():
    options = {"batch_size": 4096, "columns": ["id"], "prefetch": 0, "workers": 1}
    data = tg.synthetic(4096 * 40, 8)
    loader = tg.Loader(data, memory=tg.Budget("8MiB"), held_batches=30, **options)
    kept, iterator = [], iter(loader)
    for _ in range(31):
        kept.append(next(iterator))
    assert [batch.number for batch in kept] == list(range(31))
    with pytest.raises(tg.BudgetError, match="held_batches"):
        tg.Loader(data, memory=tg.Budget("8MiB"), held_batches=300, **options)


def test_a_view_keeps_its_batch_and_nothing_else_does():
    shared = budget()
    loader = tg.Loader(tg.synthetic(10_000, 8), batch_size=1000, memory=shared, columns=["id"])
    iterator = iter(loader)
    view = next(iterator)["id"][3:5]
    del iterator
    loader.close()
    assert view.tolist() == [3, 4]
    assert shared.accounts()["batch"] > 0
    del view
    gc.collect()
    assert shared.accounts()["batch"] == 0


def test_one_budget_for_two_loaders(folder):
    shared = tg.Budget("64MiB")
    spec = {"image": tg.Image(32)}
    train = tg.Loader(folder, batch_size=8, memory=shared, fields=spec, shuffle=True)
    val = tg.Loader(folder, batch_size=8, memory=shared, fields=spec)
    for a, b in zip(train, val, strict=True):
        assert len(a["image"]) == len(b["image"])
    assert shared.peak_bytes <= shared.cap_bytes


def test_errors_have_figures_places_and_fixes(folder, tmp_path):
    with pytest.raises(tg.BudgetError, match="at least .* MiB"):
        tg.Loader(folder, batch_size=4096, memory="1MiB", fields={"image": tg.Image(224)})
    with pytest.raises(tg.ConfigError, match="no field 'nope'"):
        tg.Loader(folder, batch_size=4, memory=budget(), fields=["nope"])
    with pytest.raises(tg.ConfigError, match="parsecs"):
        tg.Loader(folder, batch_size=4, memory="2 parsecs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(tg.DataError, match="no images here"):
        tg.open(tmp_path / "empty")
    bad = tmp_path / "bad" / "x"
    bad.mkdir(parents=True)
    (bad / "1.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no image")
    with pytest.raises(tg.SampleError, match=r"x/1\.jpg") as caught:
        list(tg.Loader(tmp_path / "bad", batch_size=1, memory=budget(), fields={"image": tg.Image(8)}))
    assert (caught.value.id, caught.value.shard) == (0, "x/1.jpg")


def test_batch_transform_runs_off_the_main_thread(folder):
    threads = set()

    def double(batch):
        threads.add(threading.current_thread() is threading.main_thread())
        return batch["label"] * 2

    loader = tg.Loader(folder, batch_size=8, memory=budget(), fields={"image": tg.Image(8)}, batch_transform=double)
    assert np.concatenate(list(loader)).tolist() == [0] * 20 + [2] * 20
    assert threads == {False}

    def fail(batch):
        raise KeyError("mine")

    loader = tg.Loader(folder, batch_size=8, memory=budget(), fields={"image": tg.Image(8)}, batch_transform=fail)
    with pytest.raises(KeyError, match="mine"):
        next(iter(loader))


def test_transform_is_a_function_of_the_position_and_charged(folder):
    def noisy(sample, rng):
        return {
            "x": sample["image"].astype(np.float32) + rng.standard_normal(1, np.float32),
            "name": str(sample["label"]),
        }

    def run(workers):
        shared = budget()
        loader = tg.Loader(
            folder,
            batch_size=8,
            memory=shared,
            fields={"image": tg.Image(8)},
            shuffle=True,
            workers=workers,
            transform=noisy,
        )
        return shared, [(b["x"].copy(), b["name"]) for b in loader]

    shared, first = run(1)
    assert first[0][0].shape == (8, 3, 8, 8)
    assert set(first[0][1]) <= {"0", "1"}
    assert all(np.array_equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(first, run(3)[1], strict=True))
    held = shared.empty([4, 5], "float32")
    assert held.shape == (4, 5)
    assert shared.accounts()["user"] == 4096
    del held
    assert shared.accounts()["user"] == 0
    axes = lambda sample, _: {"x": np.zeros([1] * (1 + sample["label"]))}  # noqa: E731
    uneven = tg.Loader(folder, batch_size=40, memory=budget(), fields=["label"], transform=axes)
    with pytest.raises(tg.ConfigError, match="of shape"):
        list(uneven)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_after_a_fork_the_loader_says_so():
    loader = tg.Loader(tg.synthetic(100, 8), batch_size=10, memory=budget())
    iterator = iter(loader)
    next(iterator)
    child = os.fork()
    if child == 0:
        try:
            iter(loader)
        except tg.Error as error:
            os._exit(0 if "fork" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert next(iterator).rows == 10


def test_ctrl_c_works_at_once(tmp_path):
    code = """
        import time, threading, os, signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        import tidegate as tg
        gate = threading.Event()
        def stuck(batch):
            gate.wait(20)
        loader = tg.Loader(tg.synthetic(100, 8), batch_size=10, memory="16MiB", batch_transform=stuck)
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        try:
            threading.Timer(1.5, gate.set).start()
            next(iter(loader))
        except KeyboardInterrupt:
            print("interrupted")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=30)
    assert "interrupted" in done.stdout, done.stderr


def test_a_transform_that_forgets_to_return_is_an_error():
    loader = tg.Loader(
        tg.synthetic(20, 8), batch_size=10, memory=tg.Budget("16MiB"), batch_transform=lambda batch: None
    )
    with pytest.raises(tg.ConfigError, match="returned None"):
        next(iter(loader))


def test_a_loader_that_is_let_go_never_hangs():
    code = """
        import gc
        import tidegate as tg
        for _ in range(20):
            source = tg.synthetic(1000, 8)
            loader = tg.Loader(source, batch_size=10, memory="16MiB", batch_transform=lambda b: sum(b["id"]))
            iterator = iter(loader)
            del iterator, loader
            gc.collect()
        started = iter(tg.Loader(tg.synthetic(1000, 8), batch_size=10, memory="16MiB", batch_transform=lambda b: 1))
        next(started)
        print("done")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_the_watchdog_names_who_waits():
    gate = threading.Event()
    loader = tg.Loader(
        tg.synthetic(100, 8), batch_size=10, memory=budget(), batch_transform=lambda b: gate.wait(20), stall_seconds=0.3
    )
    threading.Timer(1.0, gate.set).start()
    with pytest.raises(tg.StalledError, match="no progress for"):
        next(iter(loader))


def test_ranks_partition_the_epoch():
    def ids(rank, world):
        loader = tg.Loader(
            tg.synthetic(53, 8), global_batch_size=8, memory=budget(), shuffle=True, rank=rank, world_size=world
        )
        return [b["id"][b.mask].tolist() for b in loader]

    whole = ids(0, 1)
    parts = [ids(rank, 3) for rank in range(3)]
    assert [sum((p[i] for p in parts), []) for i in range(len(whole))] == whole


def test_sources_are_looked_at_divided_and_filtered(shards, folder):
    source = tg.open(shards)
    assert len(source) == 30
    assert source[4]["txt"] == "sample 4 é"
    assert source[-1]["cls"] == 4
    with pytest.raises(IndexError):
        source[30]
    parts = source.split({"train": 0.8, "val": 0.2}, seed=1)
    assert [len(p) for p in parts.values()] == [24, 6]
    assert len(source.filter("cls", lambda c: c == 0)) == 6
    assert source.select([7, 3])[0]["txt"] == "sample 7 é"
    assert source.fingerprint == tg.open(shards).fingerprint


@pytest.mark.slow
def test_killed_at_random_points_the_epoch_is_the_same(folder, tmp_path):
    """200 times: kill a run, then go on from its last state with other options."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import hashlib, json, os, random, signal, sys, threading
            import tidegate as tg
            folder, log, state, seed = sys.argv[1:]
            rng = random.Random(int(seed))
            die = lambda: os.kill(os.getpid(), signal.SIGKILL)
            # Dies after some batches, at one of three points, or at any moment soon.
            left, point = (rng.randint(1, 6), rng.randint(0, 2)) if int(seed) else (10**9, 0)
            if int(seed) % 2:
                threading.Timer(rng.uniform(0, 0.03), die).start()
            def at(here):
                if left <= 0 and here == point:
                    die()
            world = rng.choice([1, 2, 4])
            loaders = [
                tg.Loader(folder, global_batch_size=4, memory=tg.Budget(rng.choice(["8MiB", "16MiB", "64MiB"])),
                          fields={"image": tg.Image(16, crop="random", flip=True)}, shuffle=True, seed=6,
                          workers=rng.choice([1, 2, 3]), rank=rank, world_size=world)
                for rank in range(world)
            ]
            if os.path.exists(state):
                saved = json.load(open(state))
                for loader in loaders:
                    loader.load_state_dict(saved)
            for batches in zip(*loaders):
                left -= 1
                at(0)
                out = []
                for batch in batches:
                    for id, row, label, real in zip(batch.ids, batch["image"], batch["label"], batch.mask):
                        if real:
                            out.append(f"{id} {label} {hashlib.sha1(row.tobytes()).hexdigest()}")
                now = loaders[0].state_dict()
                with open(log, "a") as sink:
                    sink.write(json.dumps([now["position"], out]) + "\\n")
                at(1)
                with open(state + ".new", "w") as sink:
                    json.dump(now, sink)
                os.replace(state + ".new", state)
                at(2)
            print("done")
            sys.stdout.flush()
            os._exit(0)
            """
        )
    )

    def lines(log):
        found = {}
        for line in log.read_text().splitlines():
            position, out = json.loads(line)
            assert found.setdefault(position, out) == out
        return [found[position] for position in sorted(found)]

    def run(log, state, seed):
        command = [sys.executable, str(script), *map(str, (folder, log, state, seed))]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True)

    whole = tmp_path / "whole"
    assert "done" in run(whole, tmp_path / "whole.state", 0).stdout
    kills = epochs = 0
    while kills < 200:
        log, state = tmp_path / f"log{epochs}", tmp_path / f"state{epochs}"
        log.touch()
        while (process := run(log, state, 1 + kills)).returncode == -signal.SIGKILL:
            kills += 1
        assert "done" in process.stdout
        assert lines(log) == lines(whole)
        epochs += 1


def test_halving_the_memory_returns_pages_at_once(tmp_path):
    script = """
        import io, random, sys, tarfile
        import tidegate as tg

        def resident_mib():
            for line in open("/proc/self/status"):
                if line.startswith("VmRSS"):
                    return int(line.split()[1]) >> 10

        with tarfile.open(sys.argv[1] + "/s.tar", "w") as tar:
            for i in range(120):
                info = tarfile.TarInfo(f"{i:04}.bin")
                info.size = 1 << 20
                tar.addfile(info, io.BytesIO(bytes([i]) + random.randbytes(info.size - 1)))
        loader = tg.Loader(sys.argv[1] + "/s.tar", batch_size=4, memory=tg.Budget("128MiB"), shuffle=True)
        first = [int(i) for batch in loader for i in batch.ids]
        assert resident_mib() > 100, resident_mib()
        seen = []
        for batch in loader:
            seen += [(int(i), int(data[0]), len(data)) for i, data in zip(batch.ids, batch["bin"])]
            if len(seen) == 40:
                before = resident_mib()
                del batch
                loader.set_memory("64MiB")
                assert before > 120 and resident_mib() < before - 60, (before, resident_mib())
                assert loader.budget.charged_bytes <= 64 << 20
        assert sorted(seen) == [(i, i, 1 << 20) for i in range(120)]
        print(loader.report())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "from memory" in done.stdout


def test_too_little_memory_in_mid_epoch_is_refused(folder):
    loader = tg.Loader(folder, batch_size=8, memory=budget(), fields={"image": tg.Image(32)})
    for _ in loader:
        with pytest.raises(tg.BudgetError, match="needs at least"):
            loader.set_memory("50KiB")
        with pytest.raises(tg.ConfigError):
            loader.set_memory("lots")
        assert loader.budget.cap_bytes == 64 << 20


def test_a_curve_over_accesses_is_what_a_cache_would_hit():
    rng = np.random.default_rng(0)
    shuffles = np.concatenate([rng.permutation(1000) for _ in range(4)])
    curve = tg.cache_curve(shuffles, memory=[0, 250, 500, 1000], epoch=1000, sizes=np.ones(1000, int))
    assert [p["hits"] for p in curve] == [0, 750, 1500, 3000]
    fixed = tg.cache_curve(shuffles, memory=[250, 500], epoch=1000, policy="fixed", read=1000.0, ahead=20)
    assert [p["hits"] for p in fixed] == [750, 1500]
    assert 1100 < fixed[0]["stall_free_per_s"] < fixed[1]["stall_free_per_s"] < 2100
    repeated = rng.integers(0, 200, 5000)
    least, most = (tg.cache_curve(repeated, memory=["100B"], policy=p)[0]["hits"] for p in ("fixed", "optimum"))
    assert 2000 < least < most
    for wrong, words in [
        ({"memory": [10], "policy": "lru"}, "policy"),
        ({"memory": [10], "sizes": [1, 2]}, "has no size"),
        ({"memory": [10], "read": 0.0}, "positive"),
        ({"memory": ["x"]}, "size"),
    ]:
        with pytest.raises(tg.ConfigError, match=words):
            tg.cache_curve(repeated, **wrong)
    with pytest.raises(tg.ConfigError, match="integers"):
        tg.cache_curve([0.5], memory=[1])


def test_a_loaders_curve_is_what_it_then_hits(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for i in range(600):
            info = tarfile.TarInfo(f"{i:04}.bin")
            info.size = 30_000 + 137 * (i % 50)
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    sizes = ["1KiB", "6MiB", "10MiB", "16MiB", "40MiB"]
    options = {"batch_size": 8, "shuffle": True, "seed": 2, "workers": 2}
    curve = tg.cache_curve(
        tg.Loader(tmp_path / "s.tar", memory=tg.Budget("40MiB"), **options), memory=sizes, read=1e8, rate=3000
    )
    assert curve[0]["point"] is None
    assert "no stall at 3000" in str(curve)
    assert "too small" in str(curve)
    assert curve[-1]["point"]["stall_free_per_s"] == float("inf")
    for point, size in zip(curve[1:], sizes[1:], strict=True):
        loader = tg.Loader(tmp_path / "s.tar", memory=tg.Budget(size), **options)
        for _ in range(2):
            for batch in loader:
                del batch
        stages = loader.report()["stages"]
        # The samples of up to three batches in flight are read while the cache decides on others.
        assert abs(stages["hits"] - point["point"]["hits"]) <= 24, (size, stages["hits"], point)


def test_a_subset_is_kept_as_well_as_the_whole(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for i in range(800):
            info = tarfile.TarInfo(f"{i:04}.bin")
            info.size = 40_000
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    part = tg.open(tmp_path / "s.tar").select(range(0, 800, 8))
    loader = tg.Loader(part, batch_size=4, memory=tg.Budget("12MiB"), shuffle=True, workers=2)
    for _ in range(2):
        for batch in loader:
            del batch
    stages = loader.report()["stages"]
    assert stages["hits"] == 100, stages
    assert stages["could_hit_bytes"] < 5_000_000


def test_other_threads_may_ask_while_memory_changes(folder):
    def slowly(batch):
        return batch

    loader = tg.Loader(folder, batch_size=4, memory=budget(), fields={"image": tg.Image(16)}, batch_transform=slowly)
    done = threading.Event()

    def ask():
        while not done.is_set():
            loader.report()
            loader.state_dict()
            len(loader)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(3):
            for i, _batch in enumerate(loader):
                loader.set_memory(["64MiB", "5MiB"][i % 2])
    finally:
        done.set()
        thread.join()


def test_rows_stay_decoded_where_they_are_the_same_each_time(folder):
    def made(**more):
        options = {
            "batch_size": 8,
            "memory": tg.Budget("16MiB"),
            "extras": ("ids",),
            "shuffle": True,
            "seed": 2,
            **more,
        }
        return tg.Loader(str(folder), **options)

    def rows(loader):
        return [bytes(row) for batch in loader for row in batch["image"]]

    center = {"image": tg.Image(32, crop="center")}
    stored, decoded = made(fields=center, cache="stored"), made(fields=center, cache="decoded")
    for _ in range(3):
        assert rows(stored) == rows(decoded)
    stages = decoded.report()["stages"]
    assert stages["cache_decoded"]
    assert (stages["hits"], stages["reads"]) == (40, 0)
    assert "samples are kept decoded" in str(decoded.report())
    with pytest.raises(tg.ConfigError, match="flips and colours differ in each epoch"):
        made(fields={"image": tg.Image(32, flip=True)}, cache="decoded")
    with pytest.raises(tg.ConfigError, match="a column is ragged"):
        made(fields={"image": tg.Image()}, cache="decoded")
    with pytest.raises(tg.ConfigError, match="samples of a sampler are kept as they are stored"):
        made(fields=center, cache="decoded", sampler=[1, 2], shuffle=False)
    with pytest.raises(tg.ConfigError, match="cache='rows': expected 'auto'"):
        made(fields=center, cache="rows")


def test_the_what_if_of_a_disk_cache_says_what_the_store_is_asked_for(tmp_path):
    data = tmp_path / "data" / "s.tar"
    data.parent.mkdir()
    with tarfile.open(data, "w") as tar:
        for i in range(600):
            info = tarfile.TarInfo(f"{i:04}.bin")
            info.size = 30_000
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    total, options = 600 * 30_000, {"batch_size": 8, "shuffle": True, "memory": tg.Budget("64MiB")}
    loader = tg.Loader(data, **options)

    def point(**more):
        (point,) = tg.cache_curve(loader, memory=["10MiB"], read=1e9, **more)
        return point["point"]["read_bytes"], point["source_bytes"]

    read, source = point()
    assert 0.3 * total < read == source
    # A quarter of all samples is on disk, and none of them in memory too.
    assert abs(point(disk=total // 4)[1] - (read - total // 4)) < 10
    assert point(disk=total) == (read, 0)
    disk = tg.Loader(data, disk=tg.DiskCache(tmp_path / "cache", "64MiB", 0), **options)
    curve = tg.cache_curve(disk, memory=["10MiB"], read=1e9)
    assert curve[0]["source_bytes"] == 0
    assert "not on disk" in str(curve)


def test_synthetic_bytes_are_those_of_the_id_in_every_order():
    source = tg.synthetic(500, 20)
    batches = tg.Loader(source, batch_size=50, memory=tg.Budget("16MiB"), shuffle=True, seed=3)
    for batch in batches:
        for id, row in zip(batch.ids, batch["data"], strict=True):
            assert row == source[int(id)]["data"]


def test_loaders_that_begin_at_the_same_time_share_their_budget(tmp_path):
    tar(tmp_path / "a.tar", *[(f"{i:03}.jpg", encoded(picture(i, 300, 200), "JPEG")) for i in range(64)])
    source = tg.open(tmp_path / "a.tar")
    for _ in range(3):
        budget = tg.Budget("64MiB")
        loaders = [
            tg.Loader(source, batch_size=16, memory=budget, fields={"jpg": tg.Image(64)}, seed=i, shuffle=True)
            for i in range(4)
        ]
        rows, errors = [0] * 4, []

        def read(i, loaders=loaders, rows=rows, errors=errors):
            try:
                rows[i] = sum(batch.rows for batch in loaders[i])
            except tg.Error as error:
                errors.append(error)

        threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert rows == [64] * 4
