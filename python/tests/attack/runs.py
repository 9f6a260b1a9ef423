"""Runs of random settings, each in a memory control group that has no room beyond the budget.

Flow: a seed -> a kind of data, workers, a budget, an order and a policy -> a child in a group whose
limit is baseline + budget + max(2 %, 8 MiB) -> an epoch or two. The child must not be killed, and
of a permutation every sample must come once. The baseline is the peak of a child with source and
index open and no loader.
Memory: the groups are those of `bench/memory.py`; the data take about 150 MiB on disk.

    python runs.py --count 1000
"""

import argparse
import concurrent.futures
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import kinds
import numpy as np

import tidegate as tg
from tidegate import samplers

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))
import memory

MIB = 1 << 20
# {kind: samples}: an epoch of each takes about a second.
COUNTS = {
    "jpeg, drafts": 400, "jpeg, checkpoints": 150, "png": 500, "webp": 400, "masks": 500, "tar": 200, "tar.gz": 100,
    "tar.zst": 100, "mds": 200, "mds zstd": 200, "parquet": 400, "arrow": 800, "arrow stream": 800, "jsonl": 20_000,
    "csv": 20_000, "libsvm": 20_000, "tokens": 5_000, "npy": 20_000, "zarr zstd": 600, "zarr blosc": 600,
    "zarr shards": 600, "zarr 2": 600,
}  # fmt: skip
BUDGETS = [24, 32, 48, 64, 96, 128]


def transformed(sample, rng):
    """A transform that draws and keeps the fields."""
    rng.random(100)
    return sample


def settings(rng, names):
    """Settings by a seed: {name: value} of JSON."""
    kind = rng.choice(names)
    orders, caches = ["none", "full", "window"], ["auto", "off", "stored"]
    if not kind.startswith(("parquet", "arrow", "zarr")):
        orders += ["replacement", "weighted", "explicit"]
    if kind.startswith("tar."):
        orders = ["none"]
    order = rng.choice(orders)
    # What is decoded can be kept where it has one size and no random crops.
    if kind in ("png", "webp", "masks") and order in ("none", "full", "window"):
        caches.append("decoded")
    return {
        "kind": kind,
        "order": order,
        "seed": rng.randrange(1 << 32),
        "batch_size": rng.choice([1, 3, 8, 16, 32]),
        "workers": rng.choice([1, 2, 3, 4, 8, 16]),
        "memory": rng.choice(BUDGETS) * MIB,
        "on_error": rng.choice(["raise", "skip", "replace"]),
        "remainder": rng.choice(["drop", "pad", "uneven"]),
        "cache": rng.choice(caches),
        "transform": rng.random() < 0.2,
        "profile": rng.random() < 0.1 and not kind.startswith("zarr"),
        "epochs": rng.choice([1, 1, 2]),
    }


def loader(source, kind, given, budget=None):
    """The loader of some settings."""
    count, how = len(source), {}
    if given["order"] in ("full", "window"):
        how["shuffle"] = True if given["order"] == "full" else tg.Window(max(count // 8, 1))
    elif given["order"] == "replacement":
        how["sampler"] = samplers.replacement(count)
    elif given["order"] == "weighted":
        how["sampler"] = samplers.weighted(1.0 + np.arange(count) % 9)
    elif given["order"] == "explicit":
        how["sampler"] = np.random.default_rng(given["seed"]).permutation(count)
    if given["transform"] and kind.name.startswith("jpeg"):
        how["transform"] = transformed
    names = ("batch_size", "workers", "on_error", "remainder", "cache", "seed", "profile")
    budget = budget or tg.Budget(given["memory"])
    return tg.Loader(source, memory=budget, fields=kind.fields, **{name: given[name] for name in names}, **how)


def epoch(one, source, given):
    """Read an epoch; return {id: how often} of the rows that are no padding."""
    seen = Counter()
    for batch in one:
        seen.update(batch.ids[batch.mask].tolist())
        for column in batch.values():
            if isinstance(column, np.ndarray):
                column.reshape(-1)[::512].sum()
    return seen


def misses(seen, source, given):
    """What is wrong with the ids of an epoch, or None."""
    once = given["order"] in ("none", "full", "window", "explicit")
    left_out = len(source) % given["batch_size"] if given["remainder"] == "drop" else 0
    if once and (sum(seen.values()) != len(source) - left_out or set(seen.values()) - {1}):
        return f"{sum(seen.values())} rows of {len(seen)} samples where there are {len(source)}"
    if not once and sum(seen.values()) == 0:
        return "no row came"
    return None


def child(kind, folder, given):
    """Run settings, or with None only open the source."""
    source = kinds.opened(kind, folder)
    if given is None:
        np.arange(10).sum()
        print(json.dumps({"samples": len(source)}))
        return
    try:
        one = loader(source, kind, given)
        wrong = [misses(epoch(one, source, given), source, given) for _ in range(given["epochs"])]
        print(json.dumps({"wrong": [what for what in wrong if what]}))
    except (tg.BudgetError, tg.ConfigError) as error:
        print(json.dumps({"refused": str(error)[:200]}))


def in_group(name, limit, arguments, program=__file__, limit_s=120, env=None):
    """Run a child of a program in a group; return what it said, and the peak in bytes."""
    group = memory.Group(name, limit)

    def enter():
        group.write("cgroup.procs", os.getpid())

    try:
        done = subprocess.run(
            [sys.executable, program, "--child", *arguments],
            capture_output=True, text=True, preexec_fn=enter, timeout=limit_s, check=False, env=env,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": "it hangs"}, group.peak()
    finally:
        peak = group.peak()
        group.close()
    said = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not said:
        return {"failed": f"it ended with {done.returncode}: {done.stderr[-400:]}"}, peak
    return json.loads(said[-1]), peak


def one_run(number, root, baselines, preload):
    """Run the settings of a number; return them, what it said, and MiB over baseline and budget."""
    given = settings(random.Random(number), sorted(baselines))
    allowed = max(given["memory"] // 50, 8 * MIB)
    free = baselines[given["kind"]] + given["memory"]
    arguments = [given["kind"], str(root / given["kind"]), json.dumps(given)]
    said, peak = in_group(f"run-{number}", free + allowed, arguments)
    return given, said, (peak - free) / MIB


def kinds_of(text):
    """The names of kinds in a list; a name may have a comma of its own."""
    return [name for name in COUNTS if f",{name}," in f",{text},"]


def make(root, names):
    """Make the data of each kind, with its index."""
    for name in names:
        folder, kind = root / name, kinds.made()[name]
        folder.mkdir()
        kind.make(folder, COUNTS[name])
        kinds.opened(kind, folder)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(COUNTS), help="kinds of data, such as png,tar")
    parser.add_argument("--child", nargs=3, metavar=("KIND", "FOLDER", "SETTINGS"))
    parser.add_argument("--preload", help="an allocator, such as libjemalloc.so.2")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.child:
        kind, folder, text = given.child
        child(kinds.made()[kind], Path(folder), json.loads(text))
        return
    try:
        memory.Group("probe").close()
    except OSError as error:
        print(f"SKIPPED: no memory control group can be made here ({error}); run as root")
        return
    if given.preload:
        os.environ["LD_PRELOAD"] = given.preload
    began, counts, worst = time.monotonic(), Counter(), float("-inf")
    with tempfile.TemporaryDirectory() as folder:
        root, names = Path(folder), kinds_of(given.kinds)
        make(root, names)
        # The first child brings back what every process needs; the largest of two counts.
        peaks = {
            name: max(in_group("base", None, [name, str(root / name), "null"])[1] for _ in range(2)) for name in names
        }
        numbers = range(given.first, given.first + given.count)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for number, (asked, said, over) in zip(
                numbers, pool.map(lambda n: one_run(n, root, peaks, given.preload), numbers), strict=True
            ):
                bad = "failed" in said or said.get("wrong")
                counts["bad" if bad else "refused" if "refused" in said else "held"] += 1
                worst = max(worst, over)
                if bad:
                    print(f"FAIL --first {number} {asked}: {said}, {over:+.1f} MiB", flush=True)
                elif "refused" in said:
                    print(f"refused --first {number} {asked}: {said['refused']}", flush=True)
    print(
        f"{counts['held']} runs held, {counts['refused']} were refused, {counts['bad']} failed, in "
        f"{time.monotonic() - began:.0f} s; the most over baseline and budget: {worst:+.1f} MiB"
    )
    sys.exit(1 if counts["bad"] or counts["refused"] > given.count // 5 else 0)


if __name__ == "__main__":
    main()
