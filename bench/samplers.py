"""Samplers over 10^8 ids: memory and time, next to torch's. `make bench-samplers`.

Flow: labels or weights in NumPy -> a loader of ids alone -> seconds to make it, bytes charged to
the budget, growth of the process, ids a second; one line of JSON each.
Memory: the arrays, and the budget that is named.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

IDS = 100_000_000

TORCH = """
import json, resource, sys, time
import torch
from torch.utils.data import WeightedRandomSampler
n = int(sys.argv[1])
weights = torch.rand(n)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
try:
    ids = list(WeightedRandomSampler(weights, n))
    found = {"seconds": round(time.perf_counter() - began, 1)}
    found["peak_more_MiB"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
except RuntimeError as error:
    found = {"error": str(error).splitlines()[0]}
print(json.dumps({"sampler": "torch WeightedRandomSampler", "ids": n} | found))
"""


def resident():
    """Return the resident set size of this process in MiB."""
    fields = Path("/proc/self/smaps_rollup").read_text().split()
    return int(fields[fields.index("Rss:") + 1]) >> 10


def ours(name):
    import numpy as np

    import tidegate as tg
    from tidegate import samplers

    if name == "weighted":
        given = np.random.default_rng(0).random(IDS, np.float32)
        sampler = samplers.weighted(given)
    else:
        given = np.random.default_rng(0).integers(0, 1000, IDS, np.uint32)
        sampler = samplers.stratified(given) if name == "stratified" else samplers.balanced(given)
    before, began = resident(), time.perf_counter()
    budget = tg.Budget("2GiB")
    loader = tg.Loader(tg.synthetic(IDS, 8), batch_size=1000, memory=budget, sampler=sampler)
    made = time.perf_counter() - began
    held = budget.accounts()["index"]
    took = resident() - before
    began, rows = time.perf_counter(), 0
    for batch in loader:
        rows += batch.rows
        if rows >= 2_000_000:
            break
    rate = rows / (time.perf_counter() - began)
    found = {"made_s": round(made, 1), "held_MiB": held >> 20, "resident_more_MiB": took, "ids_per_s": round(rate)}
    print(json.dumps({"sampler": name, "ids": IDS} | found), flush=True)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--one")
    arguments.add_argument("--peers-python", default=sys.executable)
    arguments.add_argument("--out", type=Path)
    arguments = arguments.parse_args()
    if arguments.one:
        ours(arguments.one)
        return
    runs = [[sys.executable, __file__, "--one", name] for name in ("weighted", "stratified", "balanced")]
    torch = subprocess.run([arguments.peers_python, "-c", "import torch"], capture_output=True, check=False)
    if torch.returncode == 0:
        runs += [[arguments.peers_python, "-c", TORCH, str(n)] for n in (10_000_000, IDS)]
    else:
        print(f"SKIPPED: {arguments.peers_python} has no torch: give PEERS_PYTHON")
    lines = []
    for run in runs:
        lines.append(subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip())
        print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
