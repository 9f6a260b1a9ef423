"""Tests that the budget holds, by the peak of a memory control group. `make test-memory`.

Flow: tar shards and a folder of images, not in the page cache -> for each budget a child in a
control group without a limit: its peak must stay within baseline + budget + max(2 %, 8 MiB); then
a child with that limit: it must deliver every sample once. The baseline is the same process with
source and index open and no loader. A naive loader over np.memmap must fail the first half, which
proves that the test can fail.
Memory: control groups are made below this process's own. Where none can be made, the test prints
SKIPPED.

With `--ranks 64:4`, four processes share one budget of 64 MiB and run two epochs of one data set
in one control group. Its peak must stay within four baselines in one group + budget + max(2 %, 8
MiB), and the cache that they share must have each sample once. The test prints how long it takes
until the memory of a killed process (SIGKILL) is free.

With `--arrays 64`, the same for the patches of a Zarr volume and the rows of an .npy, each 20
times that budget, and the peaks of zarr-python and np.memmap, which read the same. Another child
with that limit augments all patches of the volume and blends the overlapping predictions into
another array, under the same budget.

Page cache, heap, stacks and the kernel's own bytes for open files all count. With `--files N` the
test also reads a folder of N images with the kernel's caches dropped. Every file that is opened
leaves its inode, its name and its part of the inode table in the kernel, about 1.6 KiB, and no
system call frees them. The kernel frees them at a limit, so with a limit the loader must finish;
without one the peak is only printed.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

MIB = 1 << 20


def groups():
    """The folder of this process's memory control group and whether it is version 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path("/sys/fs/cgroup/memory" + path), False
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return Path("/sys/fs/cgroup" + line.split("::", 1)[1]), True
    return None, False


class Group:
    """A control group for one child."""

    def __init__(self, name, limit=None):
        own, self.unified = groups()
        self.dir = own / f"tidegate-{name}-{os.getpid()}"
        self.dir.mkdir()
        if limit:
            self.write("memory.max" if self.unified else "memory.limit_in_bytes", limit)

    def write(self, name, value):
        (self.dir / name).write_text(str(value))

    def peak(self):
        return int((self.dir / ("memory.peak" if self.unified else "memory.max_usage_in_bytes")).read_text())

    def failures(self):
        """The number of times that the limit was reached and pages had to be reclaimed."""
        if self.unified:
            return dict(line.split() for line in (self.dir / "memory.events").read_text().splitlines())
        return {"failcnt": (self.dir / "memory.failcnt").read_text().strip()}

    def close(self):
        for _ in range(50):
            try:
                self.dir.rmdir()
                return
            except OSError:
                time.sleep(0.1)


def in_group(name, command, limit=None):
    """Run a command in a group of its own; return it and the peak in MiB, None without a group."""
    try:
        group = Group(name, limit)
    except OSError as error:
        print(f"SKIPPED: no memory group can be made: {error}", file=sys.stderr)
        return subprocess.run(command, check=False, capture_output=True, text=True), None

    def enter():
        group.write("cgroup.procs", os.getpid())

    done = subprocess.run(command, check=False, capture_output=True, text=True, preexec_fn=enter)
    peak = round(group.peak() / MIB, 1)
    group.close()
    return done, peak


def drop_cache(path):
    """Write a file back and drop it from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def make_shards(out, total, extension, payloads, per_shard=512):
    """Write tar shards of `total` bytes from the payloads in turn, not in the page cache."""
    done = out / "done"
    if done.exists() and int(done.read_text()) >= total:
        return
    out.mkdir(parents=True, exist_ok=True)
    written = count = 0
    while written < total:
        path = out / f"s-{count:08}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for _ in range(per_shard):
                data = payloads[count % len(payloads)]
                info = tarfile.TarInfo(f"{count:08}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                written, count = written + len(data), count + 1
        drop_cache(path)
    done.write_text(str(written))


def make_folder(out, total, payloads, files=None):
    """Write a folder of images in classes of 1,000: `files` files, or `total` bytes."""
    written = count = 0
    while count < files if files else written < total:
        folder = out / f"{count // 1000:04}"
        if count % 1000 == 0:
            folder.mkdir(parents=True, exist_ok=True)
        data = payloads[count % len(payloads)]
        (folder / f"{count:07}.jpg").write_bytes(data)
        written, count = written + len(data), count + 1


def small_images():
    """JPEGs of about 1 KiB."""
    from PIL import Image

    data = []
    for i in range(16):
        image = Image.radial_gradient("L").resize((48 + i, 40)).convert("RGB")
        image.save(sink := io.BytesIO(), "JPEG", quality=60)
        data.append(sink.getvalue())
    return data


def drop_kernel_caches():
    """Write everything back and drop pages, inodes and names, so that reads are cold."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")


def payloads(root, kind):
    """Photo-like JPEGs of about 100 KB, or random bytes of that size."""
    if kind == "bin":
        return [os.urandom(110_000) for _ in range(16)]
    photos = root / "photos"
    if not photos.exists():
        subprocess.run([Path(sys.executable).parent / "tidegate", "synth", photos, "--samples", "200"], check=True)
    return [path.read_bytes() for path in sorted(photos.glob("*/*.jpg"))]


def read_all(loader, field):
    """Touch every batch of one epoch; return how often each id was seen."""
    seen = bytearray(len(loader.source))
    for batch in loader:
        column = batch[field]
        if hasattr(column, "values"):
            column.values[::512].sum()
        else:
            column.reshape(len(column), -1)[:, ::512].sum()
        for id in batch.ids:
            seen[id] += 1
    return seen


def make_volume(path, total):
    """A Zarr volume of noise, in chunks of 64^3."""
    import numpy as np
    import zarr

    depth = total // 512**2 // 64 * 64
    rng = np.random.default_rng(0)
    array = zarr.create_array(path, shape=(depth, 512, 512), chunks=(64, 64, 64), dtype="u1")
    for z in range(0, depth, 64):
        array[z : z + 64] = rng.integers(0, 256, (64, 512, 512), "u1")


def make_npy(path, total):
    """An array of noise with rows of 64 KiB."""
    import numpy as np

    array = np.lib.format.open_memmap(path, "w+", "u1", (total >> 16, 1 << 16))
    rng = np.random.default_rng(0)
    for start in range(0, len(array), 256):
        array[start : start + 256] = rng.integers(0, 256, array[start : start + 256].shape, "u1")
    array.flush()


def opened(data):
    """The source of a data set of any kind."""
    import tidegate as tg

    if data.endswith(".zarr"):
        return tg.volume(data, patch=(64, 64, 64), stride=64)
    if data.endswith(".npy"):
        return tg.mapped(data).rows()
    return tg.open(data)


def child(kind, data, budget):
    import tidegate as tg

    source = opened(data)
    field = next(name for name in ("jpg", "image", "bin", "data") if name in source.schema)
    image = field in ("jpg", "image")
    if kind == "baseline":
        result = {"samples": len(source)}
    elif kind == "memmap":
        result = {"samples": naive(data)}
    elif kind == "predictions":
        result = predict(data, budget)
    else:
        fields = {field: tg.Image(224, crop="random", flip=True)} if image else [field]
        loader = tg.Loader(source, batch_size=32, memory=budget, shuffle=True, seed=1, fields=fields)
        seen = read_all(loader, field)
        result = {"samples": len(source), "once": seen.count(1), "peak_charged": loader.budget.peak_bytes}
    print(json.dumps(result), flush=True)


def predict(data, budget):
    """Augment and blend all patches; return how many came once, 0 if a chunk is unwritten."""
    import tidegate as tg

    tiles = tg.volume(data, patch=(64, 64, 64), stride=(64, 48, 64))
    ranges = {"noise": (0, 1), "blur": (0.5, 1), "gamma": (0.7, 1.5), "contrast": (0.7, 1.5), "elastic": (16, 4)}
    fields = {"data": tg.Patch(dtype="float32", flip=True, rotate=True, p=0.2, **ranges)}
    shared = tg.Budget(budget)
    with tiles.predictions(data + ".predicted", dtype="uint8", memory=shared) as out:
        options = {"batch_size": 4, "memory": shared, "sampler": out.wanted(), "seed": 1, "drop_last": False}
        loader, seen = tg.Loader(tiles, fields=fields, **options), bytearray(len(tiles))
        for batch in loader:
            out.add(batch.ids, batch["data"])
            for id in batch.ids:
                seen[id] += 1
        once = seen.count(1) if out.left == 0 else 0
    return {"samples": len(tiles), "once": once, "peak_charged": shared.peak_bytes}


def rank_child(kind, data, budget, rank, ranks):
    """One of several processes that share a budget; it waits for the others twice."""
    import tidegate as tg

    source = tg.open(data)
    if kind == "baseline":
        print(json.dumps({"samples": len(source)}), flush=True)
        sys.stdin.readline()
        return
    shared = tg.Budget(budget, scope="node", processes=ranks, name=f"bench-{os.getppid()}")
    options = {"batch_size": 16, "workers": 2, "rank": rank, "world_size": ranks, "remainder": "uneven"}
    loader = tg.Loader(source, memory=shared, shuffle=True, seed=1, fields=["bin"], **options)
    epochs = []
    for _ in range(2):
        seen = read_all(loader, "bin")
        stages = loader.report()["stages"]
        epochs.append({"seen": [i for i, n in enumerate(seen) for _ in range(n)], "hit_bytes": stages["hit_bytes"]})
    figures = {"pid": os.getpid(), "samples": len(source), "epochs": epochs, "common": shared.node["common_bytes"]}
    print(json.dumps(figures | {"peak_charged": shared.node["peak_bytes"]}), flush=True)
    # The parent kills another process: measure when its memory is free.
    batches = iter(loader)
    held = next(batches)
    for line in sys.stdin:
        killed, at = json.loads(line)
        while killed in shared.node["processes"] and time.time() < at + 60:
            time.sleep(0.0005)
        print(json.dumps({"ms": 1000 * (time.time() - at), "charged": shared.node["charged_bytes"]}), flush=True)
    del held


def run_ranks(kind, data, budget, ranks, limit=None):
    """Run all ranks in one group; return their figures, its peak, the ms to free a killed one."""
    group = Group(kind, limit)

    def enter():
        group.write("cgroup.procs", os.getpid())

    def start(rank):
        command = [sys.executable, __file__, "--child", kind, "--data", str(data), "--budgets", str(budget)]
        command += ["--rank", str(rank), "--ranks", str(ranks)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, preexec_fn=enter, **pipes)

    children = [start(rank) for rank in range(ranks)]
    lines = [child.stdout.readline() for child in children]
    result = {"ranks": [json.loads(line) for line in lines if line], "peak": group.peak(), "met": group.failures()}
    if kind == "ranks" and len(result["ranks"]) == ranks:
        victim, survivor = children[-1], children[0]
        victim.kill()
        survivor.stdin.write(json.dumps([victim.pid, time.time()]) + "\n")
        survivor.stdin.flush()
        result["killed"] = json.loads(survivor.stdout.readline())
    for child in children:
        child.stdin.close()
    for child in children:
        child.wait(60)
        child.stdout.close()
    group.close()
    return result


def check_ranks(data, budget_mib, ranks, report):
    budget = budget_mib * MIB
    base = run_ranks("baseline", data, budget, ranks)["peak"]
    allowed = base + budget + max(budget // 50, 8 * MIB)
    good = True
    for limit in (None, allowed):
        result = run_ranks("ranks", data, budget, ranks, limit)
        figures = result["ranks"]
        if len(figures) < ranks:
            report(f"FAIL {ranks} ranks: only {len(figures)} lived; limit met {result['met']}")
            return False
        epochs = [[rank["epochs"][i] for rank in figures] for i in range(2)]
        samples = list(range(figures[0]["samples"]))
        once = all(sorted(id for rank in epoch for id in rank["seen"]) == samples for epoch in epochs)
        # An epoch without repetition hits each cached sample once: if samples were cached twice,
        # the hit bytes would be half of the cached ones. The ends of segments are empty.
        hits, common = sum(rank["hit_bytes"] for rank in epochs[1]), max(rank["common"] for rank in figures)
        one_copy = hits >= 0.7 * common
        fits = result["peak"] <= allowed
        good &= once and one_copy and fits
        report(
            f"{'ok  ' if once and one_copy and fits else 'FAIL'} {ranks} ranks, budget {budget_mib} MiB, "
            f"{'limited to that' if limit else 'without a limit'}: peak {result['peak'] / MIB:.1f} MiB of "
            f"{allowed / MIB:.1f} allowed ({ranks} baselines {base / MIB:.1f}), every sample once: {once}, "
            f"kept in common {common / MIB:.1f} MiB, of which {hits / MIB:.1f} hit in one epoch, limit met "
            f"{result['met']}; freed {result['killed']['ms']:.1f} ms after SIGKILL"
        )
    return good


def naive(data):
    """Read without a loader: map the files and touch the pages; of a volume read patches."""
    import numpy as np

    if data.endswith(".npy"):
        array = np.load(data, mmap_mode="r")
        order = np.random.default_rng(1).permutation(len(array))
        return sum(int(array[i].sum()) & 1 for i in order)
    if data.endswith(".zarr"):
        import zarr

        array = zarr.open_array(data, mode="r")
        corners = [
            (z, y, x) for z in range(0, array.shape[0], 64) for y in range(0, 512, 64) for x in range(0, 512, 64)
        ]
        np.random.default_rng(1).shuffle(corners)
        return sum(int(array[z : z + 64, y : y + 64, x : x + 64].sum()) & 1 for z, y, x in corners)
    maps = [np.memmap(path, np.uint8, "r") for path in sorted(Path(data).glob("*.tar"))]
    return int(sum(int(m[::4096].sum()) & 1 for m in maps))


def run(kind, data, budget, limit=None):
    group = Group(kind, limit)
    command = [sys.executable, __file__, "--child", kind, "--data", str(data), "--budgets", str(budget)]

    def enter():
        group.write("cgroup.procs", os.getpid())

    process = subprocess.run(command, capture_output=True, text=True, preexec_fn=enter)
    peak, met = group.peak(), group.failures()
    group.close()
    lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        last = (process.stderr.strip().splitlines() or ["no output"])[-1]
        return {"failed": f"exit {process.returncode}: {last}", "peak": peak, "met": met}
    return {**json.loads(lines[-1]), "peak": peak, "met": met}


def check(data, budget_mib, report):
    budget = budget_mib * MIB
    base = run("baseline", data, budget)
    allowed = base["peak"] + budget + max(budget // 50, 8 * MIB)
    free = run("loader", data, budget)
    held = run("loader", data, budget, limit=allowed)
    runs = (("without a limit", free), ("limited to that", held))
    good = [report_run(name, result, base["peak"], allowed, budget_mib, report) for name, result in runs]
    return all(good), allowed


def report_run(name, result, base, allowed, budget_mib, report):
    """Report a run; return whether it passed."""
    once = result.get("once") == result.get("samples")
    good = "failed" not in result and once and result["peak"] <= allowed
    report(
        f"{'ok  ' if good else 'FAIL'} budget {budget_mib} MiB, {name}: peak {result['peak'] / MIB:.1f} MiB of "
        f"{allowed / MIB:.1f} allowed (baseline {base / MIB:.1f}), every sample once: {once}, "
        f"limit met {result['met']} {result.get('failed', '')}"
    )
    return good


def check_arrays(root, budget_mib, times, report):
    """`check` a volume and an .npy, and report the peaks of their peers."""
    ok = True
    for name, make, peer in (("volume.zarr", make_volume, "zarr-python"), ("rows.npy", make_npy, "np.memmap")):
        data = root / name
        make(str(data), times * budget_mib * MIB)
        drop_kernel_caches()
        run("baseline", data, budget_mib * MIB)  # brings back what every process needs
        report(f"{name}, {times} times the budget")
        good, allowed = check(data, budget_mib, report)
        ok &= good
        drop_kernel_caches()
        peak = run("memmap", data, budget_mib * MIB)["peak"]
        report(f"     {peer} peaks at {peak / MIB:.1f} MiB, where {allowed / MIB:.1f} are allowed")
        if data.suffix == ".zarr":
            base = run("baseline", data, budget_mib * MIB)["peak"]
            result = run("predictions", data, budget_mib * MIB, limit=allowed)
            ok &= report_run(
                "augmented, predictions blended, limited to that", result, base, allowed, budget_mib, report
            )
            shutil.rmtree(f"{data}.predicted")
        shutil.rmtree(data) if data.is_dir() else data.unlink()
    return ok


def check_folder(folder, budget_mib, report):
    """The second half of `check` over cold files; the first half is printed and cannot fail."""
    budget = budget_mib * MIB
    allowed = run("baseline", folder, budget)["peak"] + budget + max(budget // 50, 8 * MIB)
    drop_kernel_caches()
    run("baseline", folder, budget)
    free = run("loader", folder, budget)
    drop_kernel_caches()
    run("baseline", folder, budget)
    held = run("loader", folder, budget, limit=allowed)
    good = "failed" not in held and held.get("once") == held["samples"]
    report(
        f"{'ok  ' if good else 'FAIL'} folder of {held.get('samples')} files, budget {budget_mib} MiB, limited to "
        f"{allowed / MIB:.1f} MiB: every sample once: {held.get('once') == held.get('samples')}, "
        f"limit met {held['met']} {held.get('failed', '')}; without a limit the peak is {free['peak'] / MIB:.1f} MiB"
    )
    return good


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--budgets", default="64,128")
    arguments.add_argument("--times", type=int, default=20)
    arguments.add_argument("--data", type=Path)
    arguments.add_argument("--files", type=int, default=0)
    arguments.add_argument("--ranks", default="", help="budget in MiB : processes, such as 64:4,256:4")
    arguments.add_argument("--arrays", type=int, default=0, help="budget in MiB, for a volume and an .npy")
    arguments.add_argument("--rank", type=int)
    arguments.add_argument("--child")
    given = arguments.parse_args()
    if given.child and given.rank is not None:
        return rank_child(given.child, str(given.data), int(given.budgets), given.rank, int(given.ranks))
    if given.child:
        return child(given.child, str(given.data), int(given.budgets))
    try:
        Group("probe").close()
    except OSError as error:
        print(f"SKIPPED: no memory control group can be made here ({error}); run as root")
        return None
    budgets = [int(b) for b in given.budgets.split(",") if b]
    root = given.data or Path(tempfile.gettempdir()) / "tidegate-memory"
    root.mkdir(parents=True, exist_ok=True)
    work = [("jpg", budget) for budget in budgets[:1]] + [
        (kind, budget) for budget in budgets for kind in ("folder", "bin")
    ]
    ok = True
    for i, (kind, budget) in enumerate(work):
        shards = root / f"{kind}-{budget}"
        if kind == "folder":
            make_folder(shards, given.times * budget * MIB, payloads(root, kind))
        else:
            make_shards(shards, given.times * budget * MIB, kind, payloads(root, kind))
        run("baseline", shards, budget * MIB)  # makes the index
        if kind == "folder":
            drop_kernel_caches()
            run("baseline", shards, budget * MIB)  # brings back what every process needs
        print(f"{kind}, {given.times} times the budget")
        good, allowed = check(shards, budget, print)
        ok &= good
        if i == 0:
            naive_peak = run("memmap", shards, budget * MIB)["peak"]
            fails = naive_peak > allowed
            ok &= fails
            print(f"{'ok  ' if fails else 'FAIL'} a naive loader over np.memmap peaks at {naive_peak / MIB:.1f} MiB")
        shutil.rmtree(shards)
    if given.arrays:
        ok &= check_arrays(root, given.arrays, given.times, print)
    for pair in filter(None, given.ranks.split(",")):
        budget, ranks = map(int, pair.split(":"))
        shards = root / f"ranks-{budget}"
        make_shards(shards, given.times * budget * MIB, "bin", payloads(root, "bin"))
        run("baseline", shards, budget * MIB)  # makes the index
        print(f"{ranks} ranks, {given.times} times the budget")
        ok &= check_ranks(shards, budget, ranks, print)
        shutil.rmtree(shards)
    if given.files:
        folder = root / "folder"
        make_folder(folder, 0, small_images(), given.files)
        run("baseline", folder, budgets[0] * MIB)  # makes the index
        ok &= check_folder(folder, budgets[0], print)
        shutil.rmtree(folder)
    print("1 passed, 0 failed" if ok else "0 passed, 1 failed")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
