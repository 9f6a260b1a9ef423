"""Two builds compared: CPU time, wall time, peak memory. `make bench-builds BASE=COMMIT`.

Flow: a commit -> its wheel, built and installed below target/ -> each case with each build, in a
process and a memory control group of its own, in interleaved rounds -> CPU seconds a sample, wall
seconds and peak memory as new / base within the round -> a table of medians; raw runs as JSON.
Memory: the budgets that the cases name. A control group counts heap, stacks and page cache. Where
none can be made, the peak is the proportional set size of the process tree, sampled at 4 Hz.

Before the rounds each build runs each case once, untimed. That run makes the index, and it digests
every batch: the digests of the two builds must be equal. A build that exists already is given by
its Python or by the folder that contains its `tidegate` package (`--base-python`, `--new-python`).
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from memory import MIB, Group, drop_cache
from peers import proportional_mib

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "builds"
PHOTOS = 2000
SIDE = 256
# CPU seconds a sample and peak memory of the new build, over those of the base build.
CPU_LIMIT, PEAK_LIMIT = 1.03, 1.02


def photos(tg, data, _scratch):
    """Random crops of JPEGs from tar shards, under 64 MiB."""
    fields = {"jpg": tg.Image(224, crop="random", flip=True)}
    return {"source": f"{data}/photos/*.tar", "batch_size": 64, "memory": "64MiB", "fields": fields}, 2


def volume(tg, data, layout):
    """Patches of 96^3 anywhere in a Zarr volume, without a cache."""
    from tidegate import samplers

    source = tg.volume(f"{data}/volume/{layout}", patch=(96,) * 3, stride=1)
    options = {"batch_size": 8, "memory": "512MiB", "keep": "nothing", "sampler": samplers.replacement(400)}
    return {"source": source, **options}, 2


def cache_memory(tg, data, _scratch):
    """Stored samples, half of which stay in memory from one epoch to the next."""
    options = {"batch_size": 64, "memory": "128MiB", "keep": "stored", "fields": {"jpg": tg.Bytes()}}
    return {"source": f"{data}/photos/*.tar", **options}, 10


def cache_decoded(tg, data, _scratch):
    """Decoded images, all of which stay in memory after the first epoch."""
    options = {"batch_size": 64, "memory": "512MiB", "keep": "decoded"}
    return {"source": f"{data}/photos/*.tar", "fields": {"jpg": tg.Image(224, crop="center")}, **options}, 5


def cache_disk(tg, data, scratch):
    """Stored samples, which stay in a disk cache after the first epoch."""
    options = {"batch_size": 64, "memory": "64MiB", "keep": "nothing", "fields": {"jpg": tg.Bytes()}}
    return {"source": f"{data}/photos/*.tar", "disk": tg.DiskCache(scratch, "1GiB"), **options}, 5


GROUPS = {
    "photos": {"photos": photos},
    "volumes": {
        "volume-chunks": lambda tg, data, _scratch: volume(tg, data, "chunks"),
        "volume-shards": lambda tg, data, _scratch: volume(tg, data, "shards"),
    },
    "caches": {"cache-memory": cache_memory, "cache-decoded": cache_decoded, "cache-disk": cache_disk},
}
CASES = {name: case for group in GROUPS.values() for name, case in group.items()}


def cpu_seconds():
    """CPU seconds of this process, all its threads, and of the children that it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def add_to_digest(digest, batch):
    """Hash every column of a batch; of a ragged one its values and offsets."""
    import numpy as np

    for name in sorted(batch):
        column = batch[name]
        parts = (column.values, column.offsets) if hasattr(column, "offsets") else (column,)
        for part in parts:
            digest.update(np.ascontiguousarray(part).view("u1").data)


def child(name, data, scratch, digest):
    """Run the epochs of one case and print one line of JSON."""
    import tidegate as tg

    options, epochs = CASES[name](tg, data, scratch)
    if "sampler" not in options:
        options["shuffle"] = True
    source = options.pop("source")
    source = tg.open(source) if isinstance(source, str) else source
    budget = tg.Budget(options.pop("memory"))
    hashed = hashlib.blake2b(digest_size=16) if digest else None
    began, cpu = time.perf_counter(), cpu_seconds()
    loader = tg.Loader(source, memory=budget, seed=1, workers=2, **options)
    samples = 0
    for _ in range(epochs):
        for batch in loader:
            samples += batch.rows
            if hashed:
                add_to_digest(hashed, batch)
    loader.close()
    run = {"samples": samples, "wall_s": time.perf_counter() - began, "cpu_s": cpu_seconds() - cpu}
    run |= {"charged_mib": round(budget.peak_bytes / MIB, 2), "package": str(Path(tg.__file__).parent)}
    if hashed:
        run["digest"] = hashed.hexdigest()
    print(json.dumps(run), flush=True)


class Build:
    """One of the two builds: its interpreter, and the folder that comes first on its path."""

    def __init__(self, name, place):
        place = Path(place)
        self.name = name
        self.site = None if place.is_file() else place.resolve()
        self.python = str(place) if place.is_file() else sys.executable
        if self.site and not (self.site / "tidegate" / "__init__.py").exists():
            raise SystemExit(f"{place} is neither a Python nor a folder with the package tidegate")
        self.cache = WORK / "cache" / name
        shutil.rmtree(self.cache, ignore_errors=True)

    def environment(self):
        """The environment of a child. Each build has a cache folder for its own indexes."""
        path = {"PYTHONPATH": str(self.site)} if self.site else {}
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return clean | path | {"XDG_CACHE_HOME": str(self.cache), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(self, case, data, digest=False):
        """Run a case in a process of its own; return its figures and its peak memory in MiB."""
        for path in data.rglob("*.tar") if case not in GROUPS["volumes"] else (data / "volume").rglob("*"):
            if path.is_file():
                drop_cache(path)
        with tempfile.TemporaryDirectory(dir=WORK) as scratch:
            command = [self.python, __file__, "--child", case, "--data", str(data), "--scratch", scratch]
            command += ["--digest"] if digest else []
            done, peak = measured(command, self.environment(), f"{self.name}-{case}")
        if done.returncode or not done.stdout.strip():
            raise SystemExit(f"{case} with the {self.name} build failed:\n{done.stderr}")
        run = json.loads(done.stdout.splitlines()[-1])
        package = run.pop("package")
        if self.site and Path(package) != self.site / "tidegate":
            raise SystemExit(f"the {self.name} build ran from {package}, not from {self.site}")
        return {"build": self.name, "case": case, **run, **peak}


def measured(command, environment, name):
    """Run a command in a memory control group; where none can be made, sample its memory."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    try:
        group = Group(f"builds-{name}")
    except OSError:
        group = None
    if group:
        enter = lambda: group.write("cgroup.procs", os.getpid())  # noqa: E731
        try:
            done = subprocess.run(command, check=False, preexec_fn=enter, **pipes)
            return done, {"peak_mib": round(group.peak() / MIB, 2), "peak_of": "control group"}
        finally:
            group.close()
    process = subprocess.Popen(command, **pipes)
    peak, stop = [0.0], threading.Event()

    def watch():
        while not stop.wait(0.25):
            peak[0] = max(peak[0], proportional_mib(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate()
    stop.set()
    watcher.join()
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    return done, {"peak_mib": round(peak[0], 2), "peak_of": "proportional set size"}


def built(commit):
    """Build and install the wheel of a commit below target/, once; return its folder."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--verify", f"{commit}^{{commit}}"], capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(f"no commit is named {commit}: {found.stderr.strip()}")
    sha = found.stdout.strip()
    folder = WORK / sha[:12]
    site, tree = folder / "site", folder / "tree"
    if site.exists():
        return site
    if not tree.exists():
        subprocess.run([*git, "worktree", "prune"], check=True)
        subprocess.run([*git, "worktree", "add", "--detach", str(tree), sha], check=True)
    # In the target folder of the root, crates from the registry are compiled already.
    environment = {"CARGO_TARGET_DIR": str(ROOT / "target")} | os.environ
    wheels, part = folder / "wheels", folder / "part"
    shutil.rmtree(wheels, ignore_errors=True)
    shutil.rmtree(part, ignore_errors=True)
    maturin = [sys.executable, "-m", "maturin", "build", "--release", "--locked", "--out", str(wheels)]
    command = [*maturin, "--interpreter", sys.executable]
    subprocess.run(command, cwd=tree / "python", env=environment, check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(part)]
    subprocess.run([*pip, *map(str, wheels.glob("*.whl"))], check=True)
    part.rename(site)
    subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=True)
    return site


def make_data(folder, cases, samples):
    """Make the data sets that the cases read, where they do not exist yet."""
    shards = folder / "photos"
    if any(case not in GROUPS["volumes"] for case in cases) and not shards.exists():
        part = folder / "photos-part"
        shutil.rmtree(part, ignore_errors=True)
        cli = [sys.executable, "-c", "import sys, tidegate.cli; sys.exit(tidegate.cli.main())"]
        subprocess.run([*cli, "synth", str(part), "--samples", str(samples), "--form", "tar"], check=True)
        part.rename(shards)
    if any(case in GROUPS["volumes"] for case in cases) and not (folder / "volume").exists():
        from volumes import make

        part = folder / "volume-part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        make(part, SIDE, ["chunks", "shards"])
        part.rename(folder / "volume")


def compared(case, runs):
    """Return the ratios of a case, new over base within each round, as medians and ranges."""
    rounds = sorted({run["round"] for run in runs})
    at = {(run["round"], run["build"]): run for run in runs if run["case"] == case}
    per_sample = lambda run: run["cpu_s"] / run["samples"]  # noqa: E731
    figures = {"cpu": per_sample, "wall": lambda run: run["wall_s"], "peak": lambda run: run["peak_mib"]}
    result = {"case": case, "samples": at[rounds[0], "base"]["samples"]}
    for name, figure in figures.items():
        ratios = sorted(figure(at[i, "new"]) / figure(at[i, "base"]) for i in rounds)
        result[name] = {
            "base": statistics.median(figure(at[i, "base"]) for i in rounds),
            "new": statistics.median(figure(at[i, "new"]) for i in rounds),
            "ratio": round(statistics.median(ratios), 4),
            "range": [round(ratios[0], 4), round(ratios[-1], 4)],
        }
    return result


def table(results, rounds):
    """Print the medians; a ratio above its limit is marked."""
    print(f"\nMedians of {rounds} interleaved rounds; ratios are new / base within a round (range in brackets).")
    print(f"Above the limit, marked by !: CPU seconds a sample {CPU_LIMIT}, peak memory {PEAK_LIMIT}.\n")
    print("| case | CPU ms a sample, base → new | ratio | wall ratio | peak MiB, base → new | ratio |")
    print("|-|-|-|-|-|-|")
    ratio = lambda figure, limit: (  # noqa: E731
        f"{figure['ratio']:.3f}{' !' if limit and figure['ratio'] > limit else ''} "
        f"({figure['range'][0]:.3f}–{figure['range'][1]:.3f})"
    )
    for result in results:
        cpu, wall, peak = result["cpu"], result["wall"], result["peak"]
        print(
            f"| {result['case']} | {1e3 * cpu['base']:.3f} → {1e3 * cpu['new']:.3f} | {ratio(cpu, CPU_LIMIT)} "
            f"| {ratio(wall, None)} | {peak['base']:.1f} → {peak['new']:.1f} | {ratio(peak, PEAK_LIMIT)} |"
        )


def machine():
    """Return what identifies the machine that was measured."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    result = {"cpu": model[0].split(":")[1].strip() if model else platform.machine(), "cores": os.cpu_count()}
    return result | {"kernel": platform.release(), "python": platform.python_version(), "load": os.getloadavg()[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", metavar="COMMIT", help="the commit to build and compare with")
    place = "a Python, or the folder that has the package tidegate"
    parser.add_argument("--base-python", metavar="PLACE", help=f"the base build, where it exists already: {place}")
    parser.add_argument("--new-python", metavar="PLACE", help=f"the new build: {place}; by default this Python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=PHOTOS, help="images of the photo shards")
    parser.add_argument("--cases", nargs="+", default=list(GROUPS), help=f"of {', '.join([*GROUPS, *CASES])}")
    parser.add_argument("--out", type=Path, help="where the raw runs go; by default bench/results/builds-TIME.json")
    for private in ("--child", "--data", "--scratch"):
        parser.add_argument(private, help=argparse.SUPPRESS)
    for private in ("--digest", "--make"):
        parser.add_argument(private, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.data, given.scratch, given.digest)
        return
    if given.make:
        make_data(Path(given.data), given.cases, given.samples)
        return
    if not given.base and not given.base_python:
        parser.error("give --base COMMIT or --base-python PLACE")
    if given.rounds < 1:
        parser.error("give --rounds 1 or more")
    unknown = [name for name in given.cases if name not in GROUPS and name not in CASES]
    if unknown:
        parser.error(f"no case is named {', '.join(unknown)}: give some of {', '.join([*GROUPS, *CASES])}")
    cases = list(dict.fromkeys(case for name in given.cases for case in GROUPS.get(name, [name])))
    WORK.mkdir(parents=True, exist_ok=True)
    builds = [
        Build("base", given.base_python or built(given.base)),
        Build("new", given.new_python or sys.executable),
    ]
    data = WORK / f"data-{given.samples}-{SIDE}"
    data.mkdir(exist_ok=True)
    command = [builds[1].python, __file__, "--make", "--data", str(data), "--samples", str(given.samples)]
    subprocess.run([*command, "--cases", *cases], env=builds[1].environment(), check=True)
    for case in cases:
        digests = {build.name: build.run(case, data, digest=True)["digest"] for build in builds}
        if digests["base"] != digests["new"]:
            raise SystemExit(f"{case}: the two builds deliver different data: {digests}")
        print(f"{case}: both builds deliver the same data, digest {digests['new']}", flush=True)
    runs = []
    for number in range(given.rounds):
        # The speed of the machine drifts, so the builds take turns at running first.
        for case in cases:
            for build in builds if number % 2 == 0 else builds[::-1]:
                runs.append(build.run(case, data) | {"round": number})
                print(json.dumps(runs[-1]), flush=True)
    results = [compared(case, runs) for case in cases]
    table(results, given.rounds)
    out = given.out or ROOT / "bench" / "results" / f"builds-{time.strftime('%Y%m%d-%H%M%S')}.json"
    whole = {"base": given.base or Path(given.base_python).name, "machine": machine(), "results": results, "runs": runs}
    out.write_text(json.dumps(whole, indent=1) + "\n")
    print(f"\nraw runs: {out}")


if __name__ == "__main__":
    main()
