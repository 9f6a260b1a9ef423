"""Other loaders on the same files: `make bench-peers DATA=<folder of JPEGs>`.

Flow: folder of classes -> the peers' own shards next to it -> every loader in a process of its
own, in interleaved rounds -> images/s of the second epoch, seconds to the first batch, peak
proportional set size of the process tree, peak of a memory control group -> one table of medians;
raw runs are kept as JSON lines.
Memory: that of the peers; only the control group counts page cache.

A peer that cannot be imported or fails is listed with its reason.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = ["tidegate", "dali", "tfdata", "torch", "spdl", "datago", "grain"]
# Made from the folder first: the peers' own shards; for Tidegate checkpoints of the same files.
SHARDS = ["tidegate_checkpoints", "webdataset", "mosaicml", "litdata"]
PEERS = FOLDER + SHARDS
TAR = ["tidegate", "webdataset"]


def tree(pid):
    """The ids of a process and of all its descendants."""
    pids, found = [pid], []
    while pids:
        pid = pids.pop()
        found.append(pid)
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                pids += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        except OSError:
            pass
    return found


def proportional_mib(pid):
    """The sum of the proportional set sizes of a process tree."""
    total = 0
    for one in tree(pid):
        try:
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        except OSError:
            pass
    return total / 1024


def group():
    """A fresh memory control group (its folder), or None where none can be made."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        root = "/sys/fs/cgroup/memory" if "memory" in controllers.split(",") else "/sys/fs/cgroup"
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = Path(root + path) / f"tidegate-bench-{os.getpid()}-{time.monotonic_ns()}"
        try:
            folder.mkdir()
            return folder
        except OSError:
            continue
    return None


def peak_mib(folder):
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        if folder and (folder / name).exists():
            return int((folder / name).read_text()) / 2**20
    return None


def child(peer, data, batch, workers, epochs):
    """Run in a process of its own and print one line of JSON."""
    sys.path.insert(0, str(HERE))
    began = time.perf_counter()
    import loaders

    loader = getattr(loaders, f"{peer}_loader")(data, batch, workers)
    first, rates, count = None, [], 0
    for _ in range(epochs):
        start, count = time.perf_counter(), 0
        for images in loader.epoch():
            count += len(images)
            first = first or time.perf_counter() - began
        rates.append(count / (time.perf_counter() - start))
    loader.close()
    print(json.dumps({"images": count, "rates": rates, "first_s": first}), flush=True)


def run(peer, data, batch, workers, epochs):
    folder = group()
    command = [
        sys.executable,
        __file__,
        "--child",
        peer,
        "--data",
        str(data),
        "--batch",
        str(batch),
        "--workers",
        str(workers),
        "--epochs",
        str(epochs),
    ]

    def enter():
        if folder:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=enter)
    peak, stop = [0.0], threading.Event()

    def watch():
        # A sample takes 2 ms and locks the mappings of the process: at 20 Hz, 5 % of a core.
        while not stop.wait(0.25):
            peak[0] = max(peak[0], proportional_mib(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        out, err = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    stop.set()
    watcher.join()
    result = {"peer": peer, "pss_mib": peak[0], "cgroup_mib": peak_mib(folder)}
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if process.returncode == 0 and lines:
        result.update(json.loads(lines[-1]))
    else:
        result["failed"] = (err.strip().splitlines() or ["no output"])[-1][:200]
    if folder:
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            folder.rmdir()
    return result


def shards(peer, data):
    out = data.parent / f"{data.name}-{peer}"
    # Tidegate itself checks that its checkpoints are complete and of this version.
    if not out.exists() or peer == "tidegate_checkpoints":
        code = (
            f"import sys; sys.path.insert(0, {str(HERE)!r}); import loaders\n"
            f"if __name__ == '__main__': loaders.make_shards({peer!r}, {str(data)!r}, {str(out)!r})"
        )
        script = data.parent / f".make-{peer}.py"
        script.write_text(code)
        subprocess.run([sys.executable, str(script)], check=True, capture_output=True)
        script.unlink()
    return out


def decoder(data):
    """Images/s of one thread that decodes and crops JPEGs from memory."""
    command = [sys.executable, "-c", "import tidegate.cli as c, sys; sys.exit(c.main())"]
    out = subprocess.run([*command, "bench", str(data), "--decoder", "--json"], capture_output=True, text=True)
    lines = [line for line in out.stdout.splitlines() if line.startswith("{")]
    return {"kind": "decoder", "peer": "decoder", **(json.loads(lines[-1]) if lines else {"failed": out.stderr[-200:]})}


def share(runs, workers):
    """Print the rate of the loader as a share of its decoder's, by round: the machine drifts."""
    good = [r for r in runs if "failed" not in r]
    alone = {r["round"]: r["decoder_per_second"] for r in good if r["kind"] == "decoder"}
    loaded = {r["round"]: r["rates"][-1] for r in good if (r["kind"], r["peer"]) == ("folder", "tidegate")}
    shares = sorted(loaded[i] / alone[i] / workers for i in loaded.keys() & alone.keys())
    if shares:
        one, all_ = statistics.median(alone.values()), statistics.median(loaded.values())
        print(
            f"\nTidegate delivers {statistics.median(shares):.0%} ({shares[0]:.0%}–{shares[-1]:.0%}) of {workers} x "
            f"its decoder alone; medians {all_:.0f} and {one:.0f} images/s."
        )


def table(name, runs, order):
    print(f"\n{name}\n\n| loader | images/s | rounds | first batch, s | PSS peak MiB | cgroup MiB |\n|-|-|-|-|-|-|")
    for peer in order:
        mine = [r for r in runs if r["peer"] == peer]
        good = [r for r in mine if r.get("images")]
        if not good:
            why = mine[0].get("failed", "it delivered no image") if mine else "not run"
            print(f"| {peer} | absent: {why} | | | | |")
            continue
        rates = [r["rates"][-1] for r in good]
        median = statistics.median
        cgroup = [r["cgroup_mib"] for r in good if r["cgroup_mib"]]
        print(
            f"| {peer} | {median(rates):.0f} | {min(rates):.0f}–{max(rates):.0f} ({len(good)}) "
            f"| {median(r['first_s'] for r in good):.2f} | {median(r['pss_mib'] for r in good):.0f} "
            f"| {median(cgroup) if cgroup else 0:.0f} |"
        )


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--batch", type=int, default=64)
    arguments.add_argument("--workers", type=int, default=os.cpu_count())
    arguments.add_argument("--epochs", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--peers", default=",".join(PEERS))
    arguments.add_argument("--out", type=Path, default=HERE / "results")
    arguments.add_argument("--child")
    given = arguments.parse_args()
    data = given.data.resolve()
    if given.child:
        return child(given.child, str(data), given.batch, given.workers, given.epochs)
    peers = given.peers.split(",")
    work = []
    for peer in peers:
        try:
            work.append(("folder", peer, data if peer in FOLDER else shards(peer, data)))
        except subprocess.CalledProcessError as error:
            print(f"{peer}: no shards: {error.stderr.decode().strip().splitlines()[-1:]}", file=sys.stderr)
    if "webdataset" in peers:
        work.append(("tar", "tidegate", shards("webdataset", data)))
    runs = []
    given.out.mkdir(parents=True, exist_ok=True)
    raw = given.out / f"peers-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    with raw.open("w") as sink:
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "data": data.name,
            "batch": given.batch,
            "workers": given.workers,
        }
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                machine["cpu"] = line.split(":")[1].strip()
                break
        sink.write(json.dumps({"machine": machine}) + "\n")
        for round_number in range(given.rounds):
            # The decoder runs next to the loader that it is compared with.
            for kind, peer, path in [work[0], ("decoder", "decoder", data), *work[1:]]:
                alone = kind == "decoder"
                result = decoder(path) if alone else run(peer, path, given.batch, given.workers, given.epochs)
                result.update(kind=kind, round=round_number)
                runs.append(result)
                sink.write(json.dumps(result) + "\n")
                sink.flush()
                print(result, file=sys.stderr)
    table("Image folder (shard readers: their own shards)", [r for r in runs if r["kind"] == "folder"], peers)
    share(runs, given.workers)
    tar = [r for r in runs if r["kind"] == "tar" or r["peer"] == "webdataset"]
    if tar:
        table("WebDataset tar shards", tar, TAR)
    print(f"\nraw runs: {raw}", file=sys.stderr)
    return None


if __name__ == "__main__":
    main()
