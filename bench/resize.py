"""The time to free memory when the budget is halved in an epoch. `make bench-resize`.

Flow: an epoch with a full cache -> `set_memory` -> its time, the resident bytes before and after,
the time of the next batches against those before; several runs, one line of JSON each.
Memory: the budget that is named.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tidegate as tg


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def once(data, memory):
    budget = tg.Budget(memory)
    loader = tg.Loader(
        data, batch_size=32, memory=budget, shuffle=True, seed=1, fields={"image": tg.Image(224, crop="random")}
    )
    for _ in loader:
        pass
    waits, figures = [], {}
    began = time.perf_counter()
    for i, batch in enumerate(loader):
        waits.append(time.perf_counter() - began)
        if i == 20:
            before = resident()
            began = time.perf_counter()
            loader.set_memory(memory // 2)
            figures = {"set_memory_ms": 1000 * (time.perf_counter() - began)}
            figures |= {
                "before_mib": before >> 20,
                "after_mib": resident() >> 20,
                "charged_mib": budget.charged_bytes >> 20,
            }
        if i == 40:
            break
        del batch
        began = time.perf_counter()
    usual = statistics.median(waits[5:20])
    after = waits[21:]
    figures |= {"usual_batch_ms": 1000 * usual, "next_batch_ms": 1000 * after[0]}
    return figures | {"late_batches": sum(wait > 3 * usual + 0.005 for wait in after)}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--memory-mib", type=int, default=512)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "photos"
        tidegate = Path(sys.executable).parent / "tidegate"
        subprocess.run([tidegate, "synth", data, "--samples", "4000"], check=True)
        runs = [once(str(data), given.memory_mib << 20) for _ in range(given.rounds)]
    for run in runs:
        print(json.dumps(run))
    if given.out:
        given.out.write_text(json.dumps({"memory_mib": given.memory_mib, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
