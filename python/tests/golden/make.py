"""Writes the golden datasets with the writers of webdataset and mosaicml-streaming.

Run `python make.py` in an environment that has both. The files are committed.
"""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import webdataset as wds
from PIL import Image
from streaming import MDSWriter, StreamingDataset

HERE = Path(__file__).parent
COLUMNS = {
    "bytes": "bytes",
    "str": "str",
    "int": "int",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "str_int": "str_int",
    "str_float": "str_float",
    "str_decimal": "str_decimal",
    "json": "json",
    "array": "ndarray",
    "array_f32": "ndarray:float32",
    "array_fixed": "ndarray:float32:2,3",
    "pil": "pil",
    "jpeg": "jpeg",
    "png": "png",
}


def picture(i):
    ramp = np.add.outer(np.arange(24) * 5, np.arange(32) * 3)[..., None] + np.array([0, 40, 80]) + i * 9
    return Image.fromarray((ramp % 256).astype(np.uint8))


def sample(i):
    from decimal import Decimal

    return {
        "bytes": bytes(range(i)),
        "str": f"s{i} é",
        "int": -i,
        "u8": np.uint8(i),
        "u16": np.uint16(i * 1000),
        "u32": np.uint32(i * 10**8),
        "u64": np.uint64(i * 10**15),
        "i8": np.int8(-i),
        "i16": np.int16(-i * 1000),
        "i32": np.int32(-i * 10**8),
        "i64": np.int64(-i * 10**15),
        "f16": np.float16(i / 4),
        "f32": np.float32(i / 3),
        "f64": np.float64(i / 3),
        "str_int": i * 10**6,
        "str_float": i / 8,
        "str_decimal": Decimal(i) / 4,
        "json": {"i": [i, None]},
        "array": np.arange(i + 1, dtype=np.int16).reshape(1, -1),
        "array_f32": np.full((i + 1, 2), i, np.float32),
        "array_fixed": np.full((2, 3), i / 2, np.float32),
        "pil": picture(i),
        "jpeg": picture(i),
        "png": picture(i),
    }


def expected(i):
    """What the peer's reader gives, as JSON."""
    values = dict(sample(i))
    for name in ("pil", "png"):
        values[name] = np.asarray(values[name])
    return values


def plain(value):
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return list(value)
    if isinstance(value, Image.Image):
        return np.asarray(value.convert("RGB")).tolist()
    return value if isinstance(value, (int, float, str, dict)) else str(value)


def main():
    for name, options in {"mds": {}, "mds-zstd": {"compression": "zstd:3", "hashes": ["sha1", "xxh64"]}}.items():
        out = HERE / name
        shutil.rmtree(out, ignore_errors=True)
        with MDSWriter(out=str(out), columns=COLUMNS, size_limit=20_000, **options) as sink:
            for i in range(8):
                sink.write(sample(i))
    reader = StreamingDataset(local=str(HERE / "mds"), shuffle=False, batch_size=1)
    found = [{k: plain(v) for k, v in reader[i].items()} for i in range(8)]
    (HERE / "mds.json").write_text(json.dumps(found))
    shutil.rmtree(HERE / "wds", ignore_errors=True)
    (HERE / "wds").mkdir()
    with wds.ShardWriter(str(HERE / "wds/%03d.tar"), maxcount=5, verbose=0) as sink:
        for i in range(8):
            sink.write(
                {
                    "__key__": f"dir/{i:04}",
                    "jpg": picture(i),
                    "cls": i,
                    "txt": f"s{i}",
                    "json": {"i": i},
                    "npy": np.full((2, 2), i, np.float32),
                    "seg.png": picture(i),
                }
            )
    rows = []
    for row in wds.WebDataset(sorted(map(str, (HERE / "wds").glob("*.tar"))), shardshuffle=False).decode():
        rows.append(
            {
                "key": row["__key__"],
                "cls": row["cls"],
                "txt": row["txt"],
                "json": row["json"],
                "npy": row["npy"].tolist(),
            }
        )
    (HERE / "wds.json").write_text(json.dumps(rows))
    for form, name in ((tarfile.GNU_FORMAT, "gnu"), (tarfile.PAX_FORMAT, "pax"), (tarfile.USTAR_FORMAT, "ustar")):
        with tarfile.open(HERE / f"{name}.tar", "w", format=form) as tar:
            for i in range(3):
                info = tarfile.TarInfo(f"{'x' * (120 if name != 'ustar' else 20)}{i}.txt")
                info.size = 2
                tar.addfile(info, io.BytesIO(b"t%d" % i))


if __name__ == "__main__":
    main()
