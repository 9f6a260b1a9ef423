"""Hit ratios of the planned cache, and the time that planning takes. `make bench-cache`.

Flow: access traces -> hit ratios of our policies and of libCacheSim's, in one table -> ns an
access for planning.
Memory: the traces; the caches are simulated.

Traces: T1, 20,000 samples in a new order each epoch; T5, 24 volumes of 12³ chunks, random patches
of 96³ voxels in chunks of 64³ (with replacement); T6, T5 with volumes drawn by Zipf's law, as
class balance draws them. The first epoch does not count. "min" knows this epoch and the next,
"optimum" knows all epochs.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

import tidegate as tg

LIBRARY = ["LRU", "Sieve", "S3FIFO", "WTinyLFU", "ARC", "LIRS"]


def shuffles(rng, samples=20_000, epochs=8):
    return np.concatenate([rng.permutation(samples) for _ in range(epochs)]).astype(np.uint32), samples


def patches(rng, zipf, volumes=24, side=12, chunk=64, patch=96, draws=8_000, epochs=4):
    """The chunks that random patches touch, in order of access."""
    weights = 1 / np.arange(1, volumes + 1) if zipf else np.ones(volumes)
    accesses = []
    for _ in range(draws * epochs):
        volume = rng.choice(volumes, p=weights / weights.sum())
        first = rng.integers(0, side * chunk - patch + 1, 3)
        axes = [np.arange(a // chunk, (a + patch - 1) // chunk + 1) for a in first]
        z, y, x = np.meshgrid(*axes, indexing="ij")
        accesses.append(((volume * side + z) * side + y).ravel() * side + x.ravel())
    per_epoch = sum(len(a) for a in accesses) // epochs
    return np.concatenate(accesses).astype(np.uint32), per_epoch


def library(name, accesses, epoch, size):
    """The hit ratio of a policy of libCacheSim after the first epoch."""
    import libcachesim as lcs

    cache = getattr(lcs, name)(cache_size=size)
    hits = 0
    request = lcs.Request()
    request.obj_size = 1
    for i, object in enumerate(accesses):
        request.obj_id = int(object) + 1
        request.clock_time = i
        hit = cache.get(request)
        hits += hit and i >= epoch
    return hits / (len(accesses) - epoch)


def ours(policy, accesses, epoch, sizes):
    points = tg.cache_curve(accesses, memory=sizes, epoch=epoch, policy=policy)
    return [p["hits"] / p["accesses"] for p in points]


def table(seed):
    rng = np.random.default_rng(seed)
    traces = {
        "T1": (*shuffles(rng), [0.25, 0.5, 0.75]),
        "T5": (*patches(rng, False), [0.1, 0.25, 0.5, 0.75]),
        "T6": (*patches(rng, True), [0.1, 0.25, 0.5, 0.75]),
    }
    found = {}
    for trace, (accesses, epoch, shares) in traces.items():
        objects = int(accesses.max()) + 1
        sizes = [int(share * objects) for share in shares]
        rows = {name: [library(name, accesses, epoch, size) for size in sizes] for name in LIBRARY}
        rows |= {name: ours(name, accesses, epoch, sizes) for name in ("fixed", "min", "optimum")}
        plan = "fixed" if trace == "T1" else "min"
        rows["plan / optimum"] = [a / b for a, b in zip(rows[plan], rows["optimum"], strict=True)]
        found[trace] = {"shares": shares, "accesses": len(accesses), "plan": plan, "rows": rows}
        print(f"\n{trace}: {len(accesses):,} accesses to {objects:,} objects; cache of {shares}; our plan is {plan!r}")
        for name, ratios in rows.items():
            print(f"  {name:<16}" + "".join(f"{100 * r:8.1f}" for r in ratios))
    return found


def planning(accesses=1_000_000, objects=1_000_000):
    """Nanoseconds an access for one cache, seconds for eight caches; two epochs are known."""
    rng = np.random.default_rng(0)
    trace = rng.integers(0, objects, 2 * accesses).astype(np.uint32)
    sizes = np.ones(objects, np.uint32)
    one, eight = [], []
    for _ in range(5):
        began = time.perf_counter()
        tg.cache_curve(trace, memory=[objects // 4], sizes=sizes, epoch=accesses)
        one.append((time.perf_counter() - began) / (2 * accesses) * 1e9)
        began = time.perf_counter()
        budgets = [objects * i // 10 for i in range(1, 9)]
        tg.cache_curve(trace[:accesses], memory=budgets, sizes=sizes)
        eight.append(time.perf_counter() - began)
    return {"plan_ns_per_access": float(np.median(one)), "eight_budgets_of_1e6_s": float(np.median(eight))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the raw figures go")
    args = parser.parse_args()
    result = {"traces": table(args.seed), "planning": planning()}
    print("\n" + json.dumps(result["planning"]))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
