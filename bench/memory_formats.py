"""Tests that the budget holds for files that take much memory to open or to decode.

Flow: made files -> a child in a memory control group, with source and index open and no loader: its
peak is the baseline; a child that reads an epoch: its peak must stay within baseline + budget +
max(2 %, 8 MiB) and every sample must come. For what is refused, a child that imports the package is
the baseline, and opening may take no more than its budget and 8 MiB.
Memory: `memory.py` makes the control groups.

`--workers 1,2,4,8,16` runs each case with these numbers of threads, and `--preload` with another
allocator, such as libjemalloc.so.2, in the place of the system's.
"""

import argparse
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

import memory
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "python" / "tests"))
from test_pixels import webp_of_groups

MIB = 1 << 20
ALLOWED = 8 * MIB


def photo(seed, width, height):
    """An image with a photo's mixture of areas and noise."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(height // 16, 1), max(width // 16, 1), 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = large + rng.integers(-12, 12, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encoded(image, form, **options):
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def with_exif(seed):
    """A PNG of 16 x 16 pixels with 7.9 MB of Exif."""
    png = encoded(photo(seed, 16, 16), "PNG")
    chunk = b"eXIfMM\0*\0\0\0\x08" + bytes(7_900_000)
    return png[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


def folder(path, count, ending, make):
    (path / "a").mkdir(parents=True)
    for i in range(count):
        (path / "a" / f"{i:03}.{ending}").write_bytes(make(i))


def blosc(path, chunk):
    import zarr

    side = 4 * chunk
    codec = {"name": "blosc", "configuration": {"cname": "zstd", "clevel": 3, "shuffle": "shuffle", "typesize": 2}}
    array = zarr.create_array(
        path, shape=(side,) * 3, chunks=(chunk,) * 3, dtype="u2", compressors=[{**codec}], zarr_format=3
    )
    rng = np.random.default_rng(0)
    for z in range(0, side, chunk):
        array[z : z + chunk] = rng.integers(0, 1000, (chunk, side, side), dtype=np.uint16)


def progressive(mode, size):
    def make(i):
        return encoded(photo(i, *size).convert(mode), "JPEG", quality=92, progressive=True, subsampling=2 * (i % 2))

    return make


# {case: (makes the data, the source, options of the loader, budget in MiB, samples that come)}.
DECODED = {
    "progressive JPEG": (
        lambda path: folder(path, 16, "jpg", progressive("RGB", (2400, 1600))),
        "tg.open(path)", "fields={'image': tg.Image(64, crop='random')}", 64, 16,
    ),
    "progressive JPEG, CMYK": (
        lambda path: folder(path, 12, "jpg", progressive("CMYK", (1600, 1200))),
        "tg.open(path)", "fields={'image': tg.Image(64, crop='random')}", 64, 12,
    ),
    "PNG with 7.9 MB of Exif": (
        lambda path: folder(path, 16, "png", with_exif), "tg.open(path)", "fields={'image': tg.Image(16)}", 96, 16,
    ),
    "WebP of many codes": (
        lambda path: folder(path, 8, "webp", lambda i: webp_of_groups(20_000)),
        "tg.open(path)", "fields={'image': tg.Image(8)}, on_error='skip', max_failure_rate=1.0", 64, 0,
    ),
    "blosc": (
        lambda path: blosc(path, 64), "tg.volume(path, patch=(48, 48, 48), stride=40)", "", 64, None,
    ),
}  # fmt: skip


def zeros_in_one_row(path, rows):
    count = 300_000_000
    offsets = pa.array([0] + [count] * rows, pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(count, "i1")))
    pq.write_table(pa.table({"x": lists}), path, compression="zstd", use_dictionary=True, data_page_size=1 << 30)


def arrow_of_zeros(path):
    lists = pa.ListArray.from_arrays(pa.array([0, 60_000_000], pa.int32()), pa.array(np.zeros(60_000_000, "i4")))
    table = pa.table({"x": lists})
    with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        file.write_table(table)


# {case: (name, makes the file)}: opening is refused, within 64 MiB.
REFUSED = {
    "Parquet, 300 million values in its only row": ("a.parquet", lambda path: zeros_in_one_row(path, 1)),
    "Parquet, 300 million values in one of 1,000 rows": ("a.parquet", lambda path: zeros_in_one_row(path, 1000)),
    "Arrow, 60 million values in one row": ("a.arrow", arrow_of_zeros),
    "JSON Lines, a line of 200 MB": ("a.jsonl", lambda path: path.write_text('{"x": "' + "y" * 200_000_000 + '"}\n')),
    "CSV, a quote that is never closed": ("a.csv", lambda path: path.write_text('x\n"' + "y\n" * 60_000_000)),
}


def small_samples(path):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for i in range(150_000):
            info = tarfile.TarInfo(f"{i:07}.cls")
            info.size = 1
            archive.addfile(info, io.BytesIO(b"1"))


# {case: (name, makes the file)}: opening succeeds within the same, page cache included.
OPENED = {"tar, 150,000 samples in 154 MB": ("a.tar", small_samples)}

CHILD = """
import json, sys
import tidegate as tg
path, kind, workers, memory = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if kind == "import":
    print(json.dumps({}))
elif kind == "open":
    try:
        tg.open(path)
        print(json.dumps({"refused": None}))
    except tg.DataError as error:
        print(json.dumps({"refused": str(error)}))
else:
    source = SOURCE
    if kind == "baseline":
        print(json.dumps({"samples": len(source)}))
    else:
        loader = tg.Loader(source, batch_size=4, workers=workers, memory=memory, OPTIONS)
        seen = 0
        for batch in loader:
            for column in batch.values():
                column.reshape(-1)[::512].sum()
            seen += batch.rows
        print(json.dumps({"samples": len(source), "seen": seen}))
"""


def child(path, kind, source="None", options="", workers=1, budget=0, preload=None):
    """Run a child in a group of its own; return what it said and its peak in bytes."""
    group = memory.Group("formats")

    def enter():
        group.write("cgroup.procs", os.getpid())

    program = CHILD.replace("SOURCE", source).replace("OPTIONS", options)
    command = [sys.executable, "-c", program, path, kind, str(workers), str(budget)]
    environment = {**os.environ, **({"LD_PRELOAD": preload} if preload else {})}
    done = subprocess.run(command, check=False, capture_output=True, text=True, preexec_fn=enter, env=environment)
    peak = group.peak()
    group.close()
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return (json.loads(lines[-1]) if lines else {"failed": done.stderr.strip()[-300:]}), peak


def decoded(name, path, workers, preload):
    make, source, options, budget, comes = DECODED[name]
    if not path.exists():
        make(path)
    base = child(path, "baseline", source, preload=preload)[1]
    said, peak = child(path, "read", source, options, workers, budget * MIB, preload)
    over = peak - base - budget * MIB
    right = said.get("seen") == (said.get("samples") if comes is None else comes)
    good = right and over <= max(budget * MIB // 50, ALLOWED)
    print(
        f"{'ok  ' if good else 'FAIL'} {name}, budget {budget} MiB, {workers} workers: {over / MIB:+.1f} MiB over "
        f"baseline and budget, 8.0 allowed; {said}",
        flush=True,
    )
    return good


def opening(name, root):
    file, make = (REFUSED | OPENED)[name]
    path = root / file
    make(path)
    memory.drop_cache(path)
    base = child(path, "import")[1]
    said, peak = child(path, "open")
    over = peak - base
    good = bool(said.get("refused", "")) == (name in REFUSED) and "failed" not in said and over <= 64 * MIB + ALLOWED
    print(
        f"{'ok  ' if good else 'FAIL'} {name}, {path.stat().st_size} bytes: {over / MIB:+.1f} MiB over an import, "
        f"72.0 allowed; {said}",
        flush=True,
    )
    path.unlink()
    shutil.rmtree(root / ".tidegate", ignore_errors=True)
    return good


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--workers", default="8")
    arguments.add_argument("--preload", help="an allocator, such as libjemalloc.so.2")
    given = arguments.parse_args()
    try:
        memory.Group("probe").close()
    except OSError as error:
        print(f"SKIPPED: no memory control group can be made here ({error}); run as root")
        return
    good = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        child(root, "import")  # brings back what every process needs
        for number, case in enumerate(DECODED):
            for workers in map(int, given.workers.split(",")):
                good.append(decoded(case, root / str(number), workers, given.preload))
        good += [opening(case, root) for case in REFUSED | OPENED]
    print(f"{sum(good)} passed, {len(good) - sum(good)} failed")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
