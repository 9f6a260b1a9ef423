"""Patches of a chunked volume, next to TensorStore and zarr-python. `make bench-volumes`.

Flow: a synthetic 512^3 uint16 volume, once in chunks of 64^3 and once in shards of 256^3 with
chunks of 32^3, zstd-3 -> the same number of patches from each, uncached, interleaved, the median
of the rounds; augmented patches from chunks in memory; then a cache of a tenth of the volume.
Memory: the budgets that are named; peers use as much as they want.

The floor is the rate at which two threads decode the same chunks from memory into memory, without
reading files and without making patches.
"""

import argparse
import json
import os
import statistics
import struct
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import tidegate as tg
from tidegate import samplers

SIDE = 512
LAYOUTS = {"chunks": {"chunks": (64,) * 3}, "shards": {"chunks": (32,) * 3, "shards": (256,) * 3}}
THREADS = 2


def make(folder, side, names):
    import zarr
    from zarr.codecs import ZstdCodec

    rng = np.random.default_rng(0)
    # Smooth structures and the noise of a camera: zstd-3 makes them about 1.8 times smaller.
    z, y, x = np.ogrid[:side, :side, :side]
    waves = np.sin(z / 17) * np.cos(y / 23) * np.sin(x / 31)
    volume = (2000 + 1500 * waves).astype("u2") + rng.integers(0, 128, (side,) * 3, "u2")
    for name in names:
        kwargs = LAYOUTS[name]
        array = zarr.create_array(
            f"{folder}/{name}", shape=volume.shape, dtype="u2", compressors=ZstdCodec(level=3), **kwargs
        )
        array[:] = volume
    return volume


def origins(count, patch, step, side, seed):
    places = (side - patch) // step + 1
    return np.random.default_rng(seed).integers(0, places, (count, 3)) * step


class Stored:
    """The stored chunks of a layout, in memory."""

    def __init__(self, folder, layout):
        self.side = LAYOUTS[layout]["chunks"][0]
        self.chunks = {}
        root = Path(folder) / layout / "c"
        for file in root.rglob("*"):
            if file.is_dir():
                continue
            at = [int(n) for n in file.relative_to(root).parts]
            data = file.read_bytes()
            if "shards" not in LAYOUTS[layout]:
                self.chunks[tuple(at)] = data
                continue
            per = LAYOUTS[layout]["shards"][0] // self.side
            index = struct.unpack(f"<{2 * per**3}Q", data[-16 * per**3 - 4 : -4])
            for i in range(per**3):
                inner = (i // per**2, i // per % per, i % per)
                place = tuple(a * per + b for a, b in zip(at, inner, strict=True))
                self.chunks[place] = data[index[2 * i] : index[2 * i] + index[2 * i + 1]]

    def of(self, origin, patch):
        spans = [range(a // self.side, (a + patch - 1) // self.side + 1) for a in origin]
        return [self.chunks[z, y, x] for z in spans[0] for y in spans[1] for x in spans[2]]


def floor(stored, places, patch):
    from numcodecs.zstd import Zstd

    work = [stored.of(at, patch) for at in places]
    began = time.perf_counter()

    def run(part):
        codec, out = Zstd(), np.empty(stored.side**3, "u2")
        for chunks in part:
            for chunk in chunks:
                codec.decode(chunk, out)

    threads = [threading.Thread(target=run, args=(work[i::THREADS],)) for i in range(THREADS)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return len(places) / (time.perf_counter() - began)


def ours(folder, layout, patch, step, count, memory, keep="nothing"):
    volume = tg.volume(f"{folder}/{layout}", patch=(patch,) * 3, stride=step)
    loader = tg.Loader(
        volume, batch_size=8, memory=tg.Budget(memory), sampler=samplers.replacement(count), keep=keep, workers=THREADS
    )
    began, rows = time.perf_counter(), 0
    for batch in loader:
        rows += batch.rows
    return rows / (time.perf_counter() - began), loader.report()


def augmented(folder, layout, count):
    """Patches of 64^3 a second from memory: each augmentation alone, all at nnU-Net's rates."""
    volume = tg.volume(f"{folder}/{layout}", patch=(64,) * 3)
    often = {"elastic": 0.2, "noise": 0.1, "blur": 0.2, "intensity": 0.15, "contrast": 0.15, "gamma": 0.3}
    ranges = {
        "elastic": (16, 4), "noise": (0, 1), "blur": (0.5, 1), "intensity": (0.7, 1.3), "contrast": (0.7, 1.3),
        "gamma": (0.7, 1.5),
    }  # fmt: skip
    kinds = {"stored": None, "float32": {}, "flip and rotate": {"flip": True, "rotate": True}}
    kinds |= {name: {name: value} for name, value in ranges.items()}
    kinds["all, as often as nnU-Net"] = {"flip": True, "rotate": True, "p": often, **ranges}
    rates = {}
    for name, options in kinds.items():
        fields = None if options is None else {"data": tg.Patch(dtype="float32", std=1000, **options)}
        sampler = samplers.replacement(count)
        loader = tg.Loader(
            volume, batch_size=8, memory=tg.Budget("1GiB"), sampler=sampler, workers=THREADS, fields=fields
        )
        for _ in range(2):  # the first brings all chunks into memory
            began, rows = time.perf_counter(), 0
            for batch in loader:
                rows += batch.rows
        rates[name] = round(rows / (time.perf_counter() - began))
    return {"layout": layout, "patch": 64, "augmented_patches_s": rates}


def tensorstore(folder, layout, places, patch, cache=0):
    import tensorstore as ts

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/{layout}/"}}
    context = ts.Context({"cache_pool": {"total_bytes_limit": cache}, "data_copy_concurrency": {"limit": THREADS}})
    array = ts.open(spec, context=context, open=True).result()
    began, flying = time.perf_counter(), []
    for z, y, x in places:
        flying.append(array[z : z + patch, y : y + patch, x : x + patch].read())
        if len(flying) == 16:
            flying.pop(0).result()
    [read.result() for read in flying]
    return len(places) / (time.perf_counter() - began)


def zarr_python(folder, layout, places, patch):
    import zarr

    array = zarr.open_array(f"{folder}/{layout}", mode="r")

    def read(at):
        z, y, x = at
        return array[z : z + patch, y : y + patch, x : x + patch].shape

    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, places))
    return len(places) / (time.perf_counter() - began)


def uncached(folder, layout, patch, aligned, arguments):
    side = LAYOUTS[layout]["chunks"][0]
    step = side if aligned else 1
    stored = Stored(folder, layout)
    probe = origins(64, patch, step, arguments.side, 1)
    chunks = statistics.mean(len(stored.of(at, patch)) for at in probe)
    count = int(max(64, min(4000, arguments.chunks / chunks)))
    rates, decoded = {"tidegate": [], "tensorstore": [], "zarr_python": [], "floor": []}, []
    for number in range(arguments.rounds):
        places = origins(count, patch, step, arguments.side, number)
        rates["floor"].append(floor(stored, places, patch))
        rate, report = ours(folder, layout, patch, step, count, arguments.memory)
        rates["tidegate"].append(rate)
        decoded.append(report["stages"]["decoded_chunks"] / report["stages"]["wanted_chunks"])
        rates["tensorstore"].append(tensorstore(folder, layout, places, patch))
        rates["zarr_python"].append(zarr_python(folder, layout, places[: max(16, count // 8)], patch))
    medians = {name: round(statistics.median(all), 1) for name, all in rates.items()}
    return {
        "layout": layout,
        "patch": patch,
        "aligned": aligned,
        "chunks_per_patch": round(chunks, 2),
        "patches_per_s": medians,
        "of_floor": round(medians["tidegate"] / medians["floor"], 3),
        # Patches in flight share chunks: the share of the needed chunks that was decoded.
        "decoded": round(statistics.median(decoded), 3),
        "chunks_of_floor": round(medians["tidegate"] * statistics.median(decoded) / medians["floor"], 3),
        "over_tensorstore": round(medians["tidegate"] / medians["tensorstore"], 2),
        "raw": {name: [round(rate, 1) for rate in all] for name, all in rates.items()},
    }


def label(folder, side):
    """Write labels of the volume: balls of ten classes, the later ones rarer."""
    import zarr

    rng = np.random.default_rng(1)
    labels = np.zeros((side,) * 3, "u1")
    for kind in range(1, 11):
        for _ in range(200 // kind):
            radius = int(rng.integers(3, 12))
            at = rng.integers(radius, side - radius, 3)
            box = tuple(slice(a - radius, a + radius + 1) for a in at)
            ball = sum(n**2 for n in np.ogrid[-radius : radius + 1, -radius : radius + 1, -radius : radius + 1])
            labels[box][ball <= radius**2] = kind
    zarr.create_array(f"{folder}/labels", shape=labels.shape, chunks=(64,) * 3, dtype="u1")[:] = labels


def belady(accesses, horizon, capacity):
    """Count the chunks that Belady's MIN decodes; it also knows the accesses of `horizon`."""
    import heapq

    coming, after = accesses + horizon, {}
    follows = [0] * len(coming)
    for i in range(len(coming) - 1, -1, -1):
        follows[i] = after.get(coming[i], len(coming))
        after[coming[i]] = i
    here, farthest, decoded = {}, [], 0
    for i, chunk in enumerate(accesses):
        decoded += chunk not in here
        here[chunk] = follows[i]
        heapq.heappush(farthest, (-follows[i], chunk))
        while len(here) > capacity:
            at, gone = heapq.heappop(farthest)
            if here.get(gone) == -at:
                del here[gone]
    return decoded


def cached(folder, layout, patch, count, share):
    """Chunks that Tidegate, MIN and TensorStore decode for class-balanced patches with a cache."""
    import tensorstore as ts

    volume = tg.volume(folder, array={"data": layout, "labels": "labels"}, patch=(patch,) * 3)
    sampler = samplers.patches(volume, count, boxes=volume.boxes("labels"))
    whole = SIDE**3 * 2

    def loader(memory):
        options = {"sampler": sampler, "fields": ["data"], "workers": THREADS, "seed": 3, "ids": True}
        return tg.Loader(volume, batch_size=8, memory=tg.Budget(memory), **options)

    def limit(memory):
        begun = loader(memory)
        next(iter(begun))
        return begun.report()["stages"]["cache_limit_bytes"]

    low, high = 8 << 20, 2 << 30
    while high - low > 1 << 18:
        middle = (low + high) // 2
        try:
            low, high = (middle, high) if limit(middle) < share * whole else (low, middle)
        except tg.BudgetError:
            low = middle
    ours = loader(high)
    began = time.perf_counter()
    ids = [int(id) for batch in ours for id in batch.ids]
    seconds = time.perf_counter() - began
    stages = ours.report()["stages"]
    ours.set_epoch(1)
    following = [int(id) for batch in ours for id in batch.ids]
    side = LAYOUTS[layout]["chunks"][0]

    def accesses(ids):
        for id in ids:
            spans = [range(a // side, (a + patch - 1) // side + 1) for a in volume.origin(id)]
            yield from ((z, y, x) for z in spans[0] for y in spans[1] for x in spans[2])

    capacity = stages["cache_limit_bytes"] // (side**3 * 2)
    least = belady(list(accesses(ids)), list(accesses(following)), capacity)

    def counted():
        found = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/batch_read", True)
        return sum(value["value"] for metric in found for value in metric["values"])

    before = counted()
    corners = np.array([volume.origin(id) for id in ids])
    rate = tensorstore(folder, layout, corners, patch, cache=stages["cache_limit_bytes"])
    return {
        "layout": layout,
        "patch": patch,
        "patches": count,
        "cache_mib": round(stages["cache_limit_bytes"] / 2**20, 1),
        "wanted": stages["wanted_chunks"],
        "decoded": stages["decoded_chunks"],
        "min": least,
        "over_min": round(stages["decoded_chunks"] / least, 3),
        "patches_per_s": round(count / seconds, 1),
        "tensorstore": {"reads": counted() - before, "patches_per_s": round(rate, 1)},
    }


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--side", type=int, default=SIDE)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--chunks", type=int, default=12000, help="decoded in a round, about")
    arguments.add_argument("--memory", default="1GiB")
    arguments.add_argument("--layouts", nargs="*", default=list(LAYOUTS))
    arguments.add_argument("--cases", nargs="*", default=["uncached", "augmented", "cached"])
    arguments.add_argument("--out", type=Path)
    arguments = arguments.parse_args()
    lines = []

    def say(line):
        lines.append(json.dumps(line))
        print(lines[-1], flush=True)

    with tempfile.TemporaryDirectory(dir=os.environ.get("TIDEGATE_BENCH_DIR")) as folder:
        make(folder, arguments.side, arguments.layouts)
        cases = [(layout, patch) for layout in arguments.layouts for patch in (64, 96)]
        if "uncached" in arguments.cases:
            for layout, patch in cases:
                for aligned in (True, False):
                    say(uncached(folder, layout, patch, aligned, arguments))
        if "augmented" in arguments.cases:
            say(augmented(folder, arguments.layouts[0], 2000))
        if "cached" in arguments.cases:
            label(folder, arguments.side)
            for layout, patch in cases:
                say(cached(folder, layout, patch, 3000, 0.1))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
