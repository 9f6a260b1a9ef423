"""Sketches on one core, next to Python packages of the same kind. `make bench-sketch`.

Flow: arrays in memory -> each sketch and its peer, in interleaved rounds of one run -> median
millions of values a second, one line of JSON each.
Memory: 64 MiB of numbers, 10^5 short documents.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import datasketches as ds
import numpy as np
import rensa
from river import drift

from tidegate import sketch

ROUNDS = 5


def adwin(values):
    detector = drift.ADWIN()
    for value in values:
        detector.update(value)


def each(made, values):
    for value in values:
        made.update(value)


def rensas(documents):
    for tokens in documents:
        rensa.RMinHash(num_perm=128, seed=42).update(tokens)


def ours(documents):
    for tokens in documents:
        sketch.minhash(tokens, slots=128)


def cases():
    """Yield (name, million values, {peer: work})."""
    random = np.random.default_rng(0)
    singles = random.normal(size=16 << 20).astype(np.float32)
    cached, out = singles[: 1 << 16], np.empty_like(singles)
    yield (
        "moments",
        16.8,
        {
            "tidegate": lambda: sketch.Moments().update(singles),
            "tidegate, with shape": lambda: sketch.Moments(shape=True).update(singles),
            "tidegate, in cache": lambda: [sketch.Moments().update(cached) for _ in range(256)],
            "numpy var": lambda: (singles.mean(dtype=np.float64), singles.var(dtype=np.float64)),
            "numpy max": singles.max,
            "memcpy": lambda: np.copyto(out, singles),
        },
    )
    keys = random.integers(0, 1 << 40, 1 << 21)
    few = keys[: 1 << 18].tolist()
    yield "hll", 2.1, {"tidegate": lambda: made(sketch.Hll(12), keys)}
    yield "hll", 0.262, {"datasketches": lambda: each(ds.hll_sketch(12, ds.HLL_8), few)}
    yield "theta", 2.1, {"tidegate": lambda: made(sketch.Theta(12), keys)}
    yield "theta", 0.262, {"datasketches": lambda: each(ds.update_theta_sketch(12), few)}
    values = random.lognormal(size=1 << 20).astype(np.float32)
    yield (
        "kll",
        1.05,
        {
            "tidegate": lambda: sketch.Kll(200).update(values),
            "datasketches": lambda: ds.kll_floats_sketch(200).update(values),
        },
    )
    yield (
        "req",
        1.05,
        {
            "tidegate": lambda: sketch.Req(12).update(values),
            "datasketches": lambda: ds.req_floats_sketch(12).update(values),
        },
    )
    bits = (random.random(1 << 20) < 0.3).astype(np.float64)
    yield "adwin", 1.05, {"tidegate": lambda: sketch.Adwin().update(bits)}
    yield "adwin", 0.131, {"river": lambda: adwin(bits[: 1 << 17].tolist())}
    yield (
        "count-min",
        2.1,
        {
            "tidegate": lambda: made(sketch.CountMin(0.001, 0.02), keys),
            "tidegate, conservative": lambda: made(sketch.CountMin(0.001, 0.02, conservative=True), keys),
        },
    )
    # 300 tokens a document: rensa takes words, Tidegate takes their hashes.
    hashed = [random.integers(0, 1 << 62, 300) for _ in range(2000)]
    words = [[str(token) for token in tokens] for tokens in hashed]
    yield "minhash", 0.6, {"tidegate": lambda: ours(hashed), "rensa": lambda: rensas(words)}
    long = [random.integers(0, 1 << 62, 5000) for _ in range(200)]
    words = [[str(token) for token in tokens] for tokens in long]
    yield "minhash, 5000 tokens", 1.0, {"tidegate": lambda: ours(long), "rensa": lambda: rensas(words)}


def made(what, values):
    what.update(values)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out", type=Path)
    arguments = arguments.parse_args()
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    lines = []
    for name, millions, work in cases():
        seconds = {peer: [] for peer in work}
        for _ in range(ROUNDS):
            for peer, run in work.items():
                began = time.perf_counter()
                run()
                seconds[peer].append(time.perf_counter() - began)
        for peer, times in seconds.items():
            rates = [round(millions / t, 1) for t in times]
            lines.append(json.dumps({"sketch": name, "who": peer, "M/s": statistics.median(rates), "rounds": rates}))
            print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
