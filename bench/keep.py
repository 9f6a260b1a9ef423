"""The gain of caching decoded samples, where each epoch has the same ones. `make bench-keep`.

Flow: three epochs that cache samples as stored, as decoded, or as the loader chooses, for several
amounts of memory in one run -> images a second after the first epoch, one line of JSON each.
Memory: the budgets that are named.
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

SAMPLES = 4000


def epochs(data, memory, keep):
    fields = {"jpg": tg.Image(224, crop="center")}
    loader = tg.Loader(data, batch_size=64, memory=tg.Budget(memory), fields=fields, keep=keep, shuffle=True, seed=1)
    rates = []
    for _ in range(3):
        began = time.perf_counter()
        rows = sum(batch.rows for batch in loader)
        rates.append(rows / (time.perf_counter() - began))
    stages = loader.report()["stages"]
    decoded = stages["cache_decoded"]
    return {"per_s": round(statistics.mean(rates[1:])), "hits": stages["hits"], "samples": rows, "decoded": decoded}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--memory", nargs="*", default=["128MiB", "384MiB", "1GiB"])
    arguments.add_argument("--out", type=Path)
    arguments = arguments.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/photos"
        tidegate = Path(sys.executable).parent / "tidegate"
        command = [tidegate, "synth", data, "--samples", str(SAMPLES), "--width", "400", "--form", "tar"]
        subprocess.run(command, check=True)
        for memory in arguments.memory:
            runs = {keep: epochs(data, memory, keep) for keep in ("stored", "decoded", "auto")}
            ratio = runs["decoded"]["per_s"] / runs["stored"]["per_s"]
            lines.append(json.dumps({"memory": memory, "decoded_over_stored": round(ratio, 2)} | runs))
            print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
