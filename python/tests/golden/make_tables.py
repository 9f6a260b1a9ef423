"""Writes the golden tables with the writers of datasets and pyarrow.

Run `python make_tables.py` in an environment of its own: it needs other versions than make.py.
"""

import io
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
from PIL import Image

HERE = Path(__file__).parent


def picture(i):
    ramp = np.add.outer(np.arange(24) * 5, np.arange(32) * 3)[..., None] + np.array([0, 40, 80]) + i * 9
    return Image.fromarray((ramp % 256).astype(np.uint8))


def hugging_face():
    """Images as Hugging Face stores them: Parquet, and the Arrow stream of `save_to_disk`."""
    encoded = []
    for i in range(12):
        out = io.BytesIO()
        picture(i).save(out, "PNG")
        encoded.append({"bytes": out.getvalue(), "path": f"p/{i:03}.png"})
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "caption": datasets.Value("string"),
            "box": datasets.Sequence(datasets.Value("float32"), length=4),
            "tokens": datasets.Sequence(datasets.Value("int32")),
            "objects": {
                "name": datasets.Value("string"),
                "ids": datasets.Sequence(datasets.Sequence(datasets.Value("int8"))),
            },
        }
    )
    columns = {
        "image": encoded,
        "label": [i % 2 for i in range(12)],
        "caption": [f"s{i} é" if i != 5 else None for i in range(12)],
        "box": [[i, i / 2, 0.0, 1.0] for i in range(12)],
        "tokens": [list(range(i)) for i in range(12)],
        "objects": [{"name": f"o{i}", "ids": [[i], []]} for i in range(12)],
    }
    data = datasets.Dataset.from_dict(columns, features=features)
    out = HERE / "hf"
    shutil.rmtree(out, ignore_errors=True)
    (out / "data").mkdir(parents=True)
    for k in range(2):
        part = data.select(range(k * 6, k * 6 + 6))
        part.to_parquet(out / f"data/train-{k:05}-of-00002.parquet", batch_size=4)
    disk = HERE / "hf-disk"
    shutil.rmtree(disk, ignore_errors=True)
    data.save_to_disk(disk)
    rows = []
    for row in datasets.load_dataset("parquet", data_files=str(out / "data/*.parquet"), split="train"):
        rows.append(row | {"image": np.asarray(row["image"]).tolist()})
    (HERE / "hf.json").write_text(json.dumps(rows))


def tables():
    """Every codec, page version and physical type that pyarrow writes."""
    n = 40
    table = pa.table(
        {
            "u8": pa.array(range(n), pa.uint8()),
            "i64": pa.array([-i * 10**15 for i in range(n)]),
            "f16": pa.array(np.arange(n).astype(np.float16)),
            "f32": pa.array(np.arange(n) / 3, pa.float32()),
            "f64": pa.array([i / 3 if i % 7 else None for i in range(n)]),
            "flag": pa.array([i % 3 == 0 for i in range(n)]),
            "text": pa.array([f"t{i}" for i in range(n)]),
            "word": pa.array([f"w{i % 4}" for i in range(n)]).dictionary_encode(),
            "raw": pa.array([bytes(range(i)) if i % 5 else None for i in range(n)]),
            "large": pa.array([bytes([i]) * 3 for i in range(n)], pa.large_binary()),
            "fixed": pa.array([bytes([i, i]) for i in range(n)], pa.binary(2)),
            "when": pa.array(range(n), pa.timestamp("ms")),
        }
    )
    out = HERE / "tables"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for codec in ("none", "snappy", "gzip", "brotli", "zstd", "lz4"):
        version = "2.0" if codec in ("none", "zstd") else "1.0"
        options = {"data_page_version": version, "use_dictionary": codec != "gzip", "row_group_size": 16}
        pa.parquet.write_table(table, out / f"{codec}.parquet", compression=codec, data_page_size=64, **options)
    # Lists over several pages, for which a reader must look ahead; statistics longer than the part
    # of a header that is read.
    long = {"list": [list(range(i)) for i in range(40)], "long": [bytes([65 + i % 20]) * 5000 for i in range(40)]}
    options = {"data_page_version": "2.0", "use_dictionary": ["long"], "data_page_size": 64, "write_batch_size": 4}
    pa.parquet.write_table(pa.table(long), HERE / "lists.parquet", compression="gzip", **options)
    for codec in ("uncompressed", "lz4", "zstd"):
        pa.feather.write_feather(table, out / f"{codec}.arrow", compression=codec, chunksize=16)
    with pa.ipc.new_stream(out / "stream.arrow", table.schema) as sink:
        sink.write_table(table, max_chunksize=16)
    read = pa.parquet.read_table(out / "snappy.parquet").to_pylist()
    rows = [{k: list(v) if isinstance(v, bytes) else v for k, v in row.items() if k != "when"} for row in read]
    (HERE / "tables.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    hugging_face()
    tables()
