"""Writes before/: small data with files and states of one build, for later builds (test_before.py).

`files.zip` holds data of many formats with their side-car indexes, JPEG checkpoints and profiles,
two disk caches, boxes, and files of arrays. `states.json` holds, for each case, the state in the
middle of an epoch and hashes of the batches that follow. The build of commit eda1532 wrote both:

    PYTHONPATH=<folder with the package of that build> python make_before.py

A later build must not write them again: they show that it reads what that one wrote.
"""

import base64
import hashlib
import io
import itertools
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np

BEFORE = Path(__file__).parent / "before"
# Editions of data cover the times of files, which neither git nor a copy keeps.
TIME = 1_700_000_000
MEMORY = "48MiB"


def touch(root):
    """Give all files and folders of the data one time, but those of side-cars."""
    for folder, _, files in os.walk(root, topdown=False):
        if ".tidegate" not in Path(folder).parts:
            for name in files:
                os.utime(Path(folder) / name, (TIME, TIME))
            os.utime(folder, (TIME, TIME))


def noise(seed, height, width):
    """Return an image that compresses badly, so that its JPEG is large enough for checkpoints."""
    rng = np.random.default_rng(seed)
    waves = np.indices((height, width)).sum(0)[..., None] * (1 + seed % 5) + rng.integers(0, 120, (height, width, 3))
    return (waves % 256).astype(np.uint8)


def encoded(array, form="JPEG", **options):
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(array).save(out, form, **options)
    return out.getvalue()


def write_data(root):
    """Write all data sets, with other programs than Tidegate."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zarr

    for i in range(7):
        path = root / "photos" / ("cat" if i % 2 else "dog") / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"quality": 90, "subsampling": i % 3, "progressive": i == 4}
        path.write_bytes(encoded(noise(i, 96 + i, 104 - i), **options))
    (root / "tar").mkdir()
    for shard in range(3):
        with tarfile.open(root / "tar" / f"s-{shard}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(shard * 10, shard * 10 + 10):
                smooth = np.add.outer(np.arange(24) * (i % 7), np.arange(20) * 3)[..., None] + [0, i, 50]
                image = encoded((smooth % 256).astype(np.uint8), quality=80)
                for name, data in (("jpg", image), ("cls", str(i % 4).encode())):
                    info = tarfile.TarInfo(f"{i:03}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    (root / "lines").mkdir()
    # One line in nine is damaged.
    lines = [f'{{"n": {i}, "text": "line {i}", "x": [{i}, 0.5]}}' if i % 9 != 4 else '{"n": no' for i in range(60)]
    (root / "lines" / "a.jsonl").write_text("\n".join(lines) + "\n")
    rows = [f'{i},{i * 0.25},"name, {i % 5}"' for i in range(50)]
    (root / "lines" / "b.csv").write_text("\n".join(["id,value,name", *rows]) + "\n")
    rng = np.random.default_rng(3)
    with tarfile.open(root / "arrays.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(12):
            for name, array in (("x", rng.normal(size=(2, 64)).astype("float32")), ("y", np.arange(60) * i)):
                out = io.BytesIO()
                np.save(out, array)
                info = tarfile.TarInfo(f"{i:03}.{name}.npy")
                info.size = out.getbuffer().nbytes
                tar.addfile(info, io.BytesIO(out.getvalue()))
    sparse = [f"{i % 3} " + " ".join(f"{c}:{c * 0.5 + i}" for c in sorted({1 + i % 7, 9, 12 + i})) for i in range(40)]
    (root / "lines" / "c.libsvm").write_text("\n".join(sparse) + "\n")
    (root / "tokens.bin").write_bytes(rng.integers(0, 50_000, 1000).astype("<u2").tobytes())
    np.save(root / "rows.npy", rng.normal(size=(40, 3)).astype("float32"))
    table = {
        "id": np.arange(64),
        "vector": list(rng.normal(size=(64, 4)).astype("float32")),
        "word": [f"w{i}" for i in range(64)],
    }
    pq.write_table(pa.table(table), root / "table.parquet", row_group_size=16, compression="zstd")
    group = zarr.open_group(root / "volume", mode="w")
    labels = np.zeros((12, 24, 24), "uint16")
    labels[2:6, 3:9, 3:9], labels[8:10, 16:19, 14:20] = 1, 2
    raw = (np.arange(labels.size).reshape(labels.shape) // 3 % 251).astype("uint8")
    for name, array in (("raw", raw), ("labels", labels)):
        group.create_array(name, shape=array.shape, chunks=(6, 12, 12), dtype=array.dtype)[:] = array


def opened(root, checkpoints=True):
    """Return every data set by its name; opening makes the indexes that are missing."""
    import tidegate as tg

    arrays = {"raw": "raw", "labels": "labels"}
    tar = tg.open(str(root / "tar" / "*.tar"))
    return {
        "photos": tg.open(str(root / "photos"), checkpoints=checkpoints),
        "tar": tar,
        "subset": tar.select(range(29, 4, -2)),
        "packed": tg.open(str(root / "packed")),
        "small": tg.open(str(root / "small")),
        "jsonl": tg.open(str(root / "lines" / "a.jsonl")),
        "csv": tg.open(str(root / "lines" / "b.csv")),
        "libsvm": tg.open(str(root / "lines" / "c.libsvm")),
        "tokens": tg.tokens(str(root / "tokens.bin"), 30, dtype="uint16"),
        "rows": tg.mapped(root / "rows.npy").rows("x"),
        "table": tg.open(str(root / "table.parquet")),
        "volume": tg.volume(root / "volume", array=arrays, patch=(4, 8, 8)),
    }


def losses(ids):
    return (np.asarray(ids) % 5 + 0.25).astype(np.float32)


def cases(sources):
    """Return the cases: source, loader options, epoch, batches before the state, feedback."""
    import tidegate as tg
    from tidegate import samplers

    photo = {"image": tg.Image(40, crop="random", flip=True, jitter={"brightness": 0.4, "hue": 0.1})}
    small = {"jpg": tg.Image(16, crop="random"), "cls": tg.Int()}
    labels = np.arange(30) % 4 % 3
    volume = sources["volume"]
    patch = {
        "raw": tg.Patch(dtype="float32", flip=True, rotate=(1, 2), noise=(0, 2), elastic=(4, 0.7)),
        "labels": tg.Mask("raw"),
    }
    boxes = volume.boxes("labels")

    def case(source, after=2, epoch=1, fed=False, **options):
        return {"source": source, "after": after, "epoch": epoch, "fed": fed, "options": options}

    class Stepping:
        """An iterable like torch's samplers."""

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __len__(self):
            return 45

        def __iter__(self):
            return (int(i * 7 + self.epoch) % 30 for i in range(45))

    drawn = np.random.default_rng(4).integers(0, 30, 50)
    tar = {
        "window": {"shuffle": tg.Window(12, 2), "remainder": "drop"},
        "full": {"shuffle": True},
        "pad": {"shuffle": True, "remainder": "pad", "rank": 1, "world_size": 2},
        "uneven": {"batch_size": None, "global_batch_size": 8, "rank": 2, "world_size": 3, "shuffle": True},
        "replacement": {"sampler": samplers.replacement(50)},
        "weighted": {"sampler": samplers.weighted(np.arange(30) + 1.0, 50)},
        "stratified": {"sampler": samplers.stratified(labels, block=6)},
        "over": {"sampler": samplers.balanced(labels)},
        "under": {"sampler": samplers.balanced(labels, "under")},
        "effective": {"sampler": samplers.balanced(labels, "effective", beta=0.9, positions=40)},
        "mixture": {"sampler": samplers.mixture([12, 18], [3, 1], "all")},
        "curriculum": {"sampler": samplers.curriculum(np.arange(30), epochs=3)},
        "listed": {"sampler": drawn},
        "function": {"sampler": lambda epoch: np.roll(drawn, epoch)},
        "iterable": {"sampler": Stepping()},
    }
    made = {f"tar-{name}": case("tar", fields=small, **({"batch_size": 4} | more)) for name, more in tar.items()}
    for name, sampler in (
        ("hard", samplers.hard()),
        ("focal", samplers.focal()),
        ("importance", samplers.importance(1.01)),
    ):
        made[f"tar-{name}"] = case("tar", fed=True, fields=small, batch_size=4, sampler=sampler)
    skipped = {"shuffle": True, "max_failure_rate": 1.0, "batch_size": 5}
    return made | {
        "photos": case("photos", batch_size=2, shuffle=True, fields=photo),
        "photos-ragged": case("photos", after=1, batch_size=3),
        "packed": case("packed", batch_size=6, shuffle=True),
        "subset": case("subset", batch_size=4, shuffle=True, fields=small),
        "small": case("small", batch_size=4, shuffle=True),
        "jsonl-skip": case("jsonl", after=6, on_error="skip", **skipped),
        "jsonl-replace": case("jsonl", after=6, on_error="replace", **skipped),
        "csv": case("csv", after=3, batch_size=7),
        "libsvm": case("libsvm", batch_size=7, shuffle=True),
        "tokens": case("tokens", batch_size=5, shuffle=True),
        "rows": case("rows", batch_size=9, shuffle=tg.Window(16)),
        "table": case("table", batch_size=10, shuffle=True),
        "volume": case("volume", after=9, batch_size=16, shuffle=True, fields=patch),
        "volume-near": case(
            "volume", batch_size=4, sampler=samplers.patches(volume, 40, boxes=boxes, window=16, places=4)
        ),
        "volume-even": case("volume", batch_size=4, sampler=samplers.patches(volume, 40)),
    }


def loader(sources, case, **more):
    import tidegate as tg

    source = sources[case["source"]]
    options = {"memory": tg.Budget(MEMORY), "seed": 7, "workers": 1} | case["options"] | more
    return tg.Loader(source, **options)


def digest(batch):
    """Return a hash of a batch's ids, weights and columns, without padding."""
    found = hashlib.sha256()
    for name, value in [("ids", batch.ids), ("mask", batch.mask), ("weights", batch.weights), *sorted(batch.items())]:
        for array in (value.values, value.offsets) if hasattr(value, "offsets") else (value,):
            array = np.ascontiguousarray(array)
            if len(array) == len(batch.mask):
                array = array[batch.mask]
            found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


def begun(made, case):
    """Bring a new loader to where the state of a case is; returns its epoch, to go on with."""
    if case["fed"]:
        for batch in made:
            made.feedback(batch.indices, losses(batch.indices))
    made.set_epoch(case["epoch"])
    batches = iter(made)
    for _ in range(case["after"]):
        next(batches)
    if case["fed"]:
        made.feedback([1, 2], [3.0, 0.5])
    return batches


def state_of(sources, case):
    """Return a case's saved state, its feedback, and the hashes of the batches that follow."""
    made = loader(sources, case)
    batches = begun(made, case)
    state, fed = json.dumps(made.state_dict()), made.feedback_state()
    rest = [digest(batch) for batch in batches]
    after = [digest(batch) for batch in itertools.islice(made, 2)]
    fed = None if fed is None else base64.b64encode(fed).decode()
    return {"state": state, "feedback": fed, "rest": rest, "next_epoch": after}


def cached(sources, root, name):
    """Run an epoch with a disk cache in `cache/name`; return its loader and its batches' hashes."""
    import tidegate as tg

    case = {"tar": "tar-full", "volume": "volume-even"}[name]
    disk = tg.DiskCache(root / "cache" / name, "64MiB", leave_free=0)
    made = loader(sources, cases(sources)[case], disk=disk)
    return made, [digest(batch) for batch in made]


def write_arrays(folder):
    """Write files of arrays: quantized, packed, a tensor train."""
    from tidegate import compress, quantize, tensor_train

    x = np.random.default_rng(1).normal(size=(6, 40)).astype("float32")
    folder.mkdir()
    (folder / "quantized.bin").write_bytes(quantize.quantize(x, bits=4, per=("block", 16)).to_bytes())
    steps = (np.arange(200) * 3 % 101).astype("int32")
    for i, codec in enumerate(("lz4", "delta+shuffle+zstd:3", "deflate", "pco")):
        (folder / f"packed-{i}.bin").write_bytes(compress.pack(steps, codec))
    for i, codec in enumerate(("abs:0.01", "rel:0.001", "bitround:10+shuffle+zstd")):
        (folder / f"near-{i}.bin").write_bytes(compress.pack(x, codec))
    tensor_train.TensorTrain.decompose(x.reshape(4, 5, 12), tolerance=0.1).save(folder / "train.safetensors")


def read_arrays(folder):
    """Return hashes of the arrays in what `write_arrays` wrote."""
    from tidegate import compress, quantize, tensor_train

    found = {}
    for path in sorted(folder.iterdir()):
        if path.name == "quantized.bin":
            array = quantize.Quantized.from_bytes(path.read_bytes()).dequantize()
        elif path.suffix == ".bin":
            array = compress.unpack(path.read_bytes())
        else:
            cores = tensor_train.TensorTrain.load(path).cores
            array = np.concatenate([core.reshape(-1) for core in cores])
        array = np.ascontiguousarray(array)
        found[path.name] = hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()
    return found


def main():
    import subprocess
    import sys

    import tidegate as tg

    work = Path(tempfile.mkdtemp())
    # What is kept of a volume is kept under its path: a relative one is the same elsewhere.
    os.chdir(work)
    root = Path("before")
    root.mkdir()
    write_data(root)
    tidegate = [sys.executable, "-c", "from tidegate.cli import main; main()"]
    for source, to, more in (
        ("tar", "packed", []),
        ("arrays.tar", "small", ["--quantize", "x.npy=8", "--codec", "pco"]),
    ):
        subprocess.run([*tidegate, "pack", str(root / source), str(root / to), *more], check=True)
    touch(root)
    sources = opened(root)
    states = {name: state_of(sources, case) for name, case in cases(sources).items()}
    caches = {name: cached(sources, root, name)[1] for name in ("tar", "volume")}
    profiles = {}
    for name in ("tar", "csv"):
        found = tg.profile(sources[name], memory=tg.Budget(MEMORY), workers=1, save=True)
        found.save(root / f"{name}.profile")
        profiles[name] = found.summary
    write_arrays(root / "arrays")
    shown = {"states": states, "caches": caches, "profiles": profiles, "arrays": read_arrays(root / "arrays")}
    BEFORE.mkdir(exist_ok=True)
    (BEFORE / "states.json").write_text(json.dumps(shown, indent=1) + "\n")
    with zipfile.ZipFile(BEFORE / "files.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                # With fixed times, the same bytes in every run.
                info = zipfile.ZipInfo(str(path.relative_to(root)), (2023, 11, 14, 0, 0, 0))
                archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
