"""The data that is attacked: one small data set for each kind of file that Tidegate reads.

Flow: a `Kind` makes its files in a folder, opens them, and says which bytes of a file a sample
comes from, so that a changed byte elsewhere may not change the sample.
Memory: a data set of under one MiB, or as many samples as are asked for.
"""

import hashlib
import io
import json
import shutil
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import tidegate as tg

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import encoded, picture

MODES = [
    {"quality": 85},
    {"quality": 60, "progressive": True},
    {"quality": 90, "subsampling": 0},
    {"quality": 75, "optimize": True, "restart_marker_blocks": 3},
]


def jpeg(i, side=70):
    image = picture(i, side + 7 * (i % 9), side + 20 - 3 * (i % 7))
    return encoded(image.convert({3: "L", 5: "CMYK"}.get(i % 8, "RGB")), "JPEG", **MODES[i % 4])


def png(i, side=50):
    image = picture(100 + i, side + 5 * (i % 6), side + 20 - i % 5)
    kind = i % 5
    if kind == 4:
        return interlaced(image)
    return encoded(image.convert(["RGB", "P", "RGBA", "1"][kind]), "PNG")


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def interlaced(image):
    """A PNG in seven passes, which Pillow does not write."""
    pixels, raw = np.asarray(image.convert("RGB")), b""
    for x, y, right, down in PASSES:
        raw += b"".join(b"\0" + row.tobytes() for row in pixels[y::down, x::right] if row.size)
    height, width, _ = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def webp(i, side=45):
    image = picture(400 + i, side + 4 * (i % 5), side, "RGBA" if i % 3 == 2 else "RGB")
    return encoded(image, "WEBP", lossless=i % 2 == 0, quality=70)


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def archive(path, members, mode="w", fileobj=None):
    with tarfile.open(path, mode, fileobj=fileobj, format=tarfile.GNU_FORMAT) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def sample_members(i, side=60):
    key = f"{'long/' * 30 if i == 5 else ''}{i:05}"
    values = {
        "jpg": jpeg(i, side), "png": png(i, side), "webp": webp(i, side), "cls": str(i).encode(),
        "npy": npy(np.full((3, 4), i, "f4")), "json": json.dumps({"i": i, "s": "é" * (i % 30)}).encode(),
        "txt": f"text {i}".encode() * 9,
    }  # fmt: skip
    return [(f"{key}.{ending}", data) for ending, data in values.items()]


def table(count, first=0):
    rows = range(first, first + count)
    images = [jpeg(i) for i in range(12)]
    return pa.table(
        {
            "id": pa.array(rows, pa.int64()),
            "f": pa.array([i / 3 for i in rows], pa.float32()),
            "s": [f"text {i % 7}" for i in rows],
            "b": pa.array([images[i % 12] for i in rows], pa.binary()),
            "l": pa.array([list(range(i % 5)) for i in rows], pa.list_(pa.int32())),
            "u8": pa.array([i % 200 for i in rows], pa.uint8()),
            "ll": pa.array([[float(j) for j in range(i % 4)] for i in rows], pa.list_(pa.float64())),
            "fs": pa.FixedSizeListArray.from_arrays(pa.array(range(count * 3), pa.int16()), 3),
        }
    )


# Makers: of `count` samples in a folder.


def images(ending, make):
    def files(folder, count):
        for i in range(count):
            place = folder / "images" / f"c{i % 3}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i:05}.{ending}").write_bytes(make(i))

    return files


def tars(ending, mode, compress=None):
    def files(folder, count):
        for part in range(2):
            path = folder / f"{part}.{ending}"
            members = [m for i in range(part, count, 2) for m in sample_members(i)]
            archive(path, members, mode)
            if compress:
                path.write_bytes(compress(path.read_bytes()))

    return files


def masks(folder, count):
    members = []
    for i in range(count):
        image = picture(i, 40, 30)
        mask = (
            image.convert("P", palette=Image.Palette.ADAPTIVE, colors=[2, 4, 16, 200][i % 4])
            if i % 2
            else image.convert("L")
        )
        members += [(f"{i:05}.jpg", encoded(image)), (f"{i:05}.png", encoded(mask, "PNG"))]
    archive(folder / "masks.tar", members)


def zstd(data):
    return pa.compress(data, codec="zstd", asbytes=True)


def mds(packed=False):
    def files(folder, count):
        made = folder / "made"
        made.mkdir()
        archive(made / "x.tar", [m for i in range(count) for m in sample_members(i)])
        tg.pack(made / "x.tar", folder / "mds", max_size=60_000)
        index = json.loads((folder / "mds" / "index.json").read_text())
        for shard in index["shards"]:
            path = folder / "mds" / shard["raw_data"]["basename"]
            data = path.read_bytes()
            shard["hashes"] = ["sha256"]
            shard["raw_data"]["hashes"] = {"sha256": hashlib.sha256(data).hexdigest()}
            if packed:
                small = zstd(data)
                path.unlink()
                path.with_name(path.name + ".zstd").write_bytes(small)
                about = {"basename": path.name + ".zstd", "bytes": len(small)}
                shard["zip_data"] = {**about, "hashes": {"sha256": hashlib.sha256(small).hexdigest()}}
                shard["compression"] = "zstd:3"
        (folder / "mds" / "index.json").write_text(json.dumps(index))
        shutil.rmtree(made)

    return files


def parquets(folder, count):
    for i, codec in enumerate(["none", "snappy", "zstd", "gzip", "brotli", "lz4"]):
        pq.write_table(
            table(count, i * count), folder / f"{i}.parquet", compression=codec, row_group_size=max(count // 3, 1),
            use_dictionary=i % 2 == 0, data_page_version="2.0" if i >= 3 else "1.0", data_page_size=2000,
            write_page_checksum=i in (1, 4),
        )  # fmt: skip


def arrows(folder, count):
    for i, codec in enumerate([None, "lz4", "zstd"]):
        rows = table(count, i * count)
        with pa.ipc.new_file(
            str(folder / f"{i}.arrow"), rows.schema, options=pa.ipc.IpcWriteOptions(compression=codec)
        ) as file:
            file.write_table(rows, max_chunksize=max(count // 3, 1))


def streams(folder, count):
    rows = table(count)
    with pa.ipc.new_stream(str(folder / "x.arrow"), rows.schema) as file:
        file.write_table(rows, max_chunksize=max(count // 3, 1))


def lines(name, head, line):
    def files(folder, count):
        (folder / name).write_text(head + "".join(line(i) for i in range(count)))

    return files


def json_line(i):
    value = {
        "a": i,
        "f": i / 3,
        "t": f'text {i} é " \n',
        "l": list(range(i % 6)),
        "lf": [0.5] * (i % 3),
        "o": {"x": [i]},
    }
    return json.dumps(value) + "\n"


def csv_line(separator):
    return lambda i: separator.join([str(i), str(i / 3), f"word{i}", f'"quo""ted{separator} {i}"']) + "\n"


def svm_line(i):
    return f"{i % 2} " + " ".join(f"{j + 1}:{(j * i) % 13 / 4}" for j in range(i % 9)) + "\n"


def token_files(folder, count):
    head = np.zeros(256, "<i4")
    head[:3] = [20240520, 1, count * 64]
    for name in ("t.bin", "u.bin"):
        (folder / name).write_bytes(head.tobytes() + np.arange(count * 64, dtype="<u2").tobytes())


def volume(side, **options):
    def files(folder, count):
        import zarr

        deep = max(count // 9, 1) * 8
        values = (np.indices((deep, side, side)).sum(0) * 3 % 251).astype("u2")
        array = zarr.create_array(str(folder / "v.zarr"), shape=values.shape, chunks=(8, 8, 8), dtype="u2", **options)
        array[:] = values

    return files


def zarr_codecs():
    import numcodecs
    from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

    return {
        "zarr zstd": {"compressors": ZstdCodec(level=1, checksum=True)},
        "zarr gzip": {"compressors": GzipCodec(level=1)},
        "zarr blosc": {"compressors": BloscCodec(cname="lz4", shuffle="shuffle")},
        "zarr shards": {"shards": (8, 24, 24), "compressors": ZstdCodec(level=1)},
        "zarr plain": {"compressors": None},
        "zarr 2": {"zarr_format": 2, "compressors": numcodecs.Blosc(cname="zstd")},
        "zarr 2 bz2": {"zarr_format": 2, "compressors": numcodecs.BZ2()},
    }


def arrays(folder, count):
    (folder / "x.npy").write_bytes(npy(np.arange(count * 12, dtype="f4").reshape(count, 3, 4)))


# Which bytes of a file a sample comes from: {key: [(start, end)]}.


def tar_spans(data):
    spans = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        for member in file:
            key = member.name[: member.name.index(".", member.name.rfind("/") + 1)]
            end = (member.offset_data + member.size + 511) // 512 * 512
            spans.setdefault(key, []).append((member.offset, end))
    return spans


def mds_spans(name, data):
    count = struct.unpack("<I", data[:4])[0]
    ends = struct.unpack(f"<{count + 1}I", data[4 : 8 + 4 * count])
    return {f"{name}:{i}": [(ends[i], ends[i + 1]), (0, ends[0])] for i in range(count)}


def spans_of(kind, path, data):
    """Which samples come from which bytes of a file; None where that is not known."""
    if kind.name in ("tar", "masks"):
        return tar_spans(data)
    if kind.name == "mds" and path.suffix == ".mds":
        return mds_spans(path.name, data)
    if kind.name in IMAGES:
        return {f"{path.parent.name}/{path.name}": [(0, 1 << 40)]}
    return None


@dataclass(frozen=True)
class Kind:
    """Data of one kind.

    Attributes:
        name: what it is.
        make: writes the files of `count` samples into a folder.
        fields: the loader's `fields`.
        where: what is opened, below the folder.
        shuffles: whether samples can come in any order.
        open: opens it; by default `tg.open`.
    """

    name: str
    make: Callable[[Path, int], None]
    fields: Any = None
    where: str = "."
    shuffles: bool = True
    open: Callable[[Path], Any] = tg.open


def made():
    """All kinds, by name."""
    square = {"image": tg.Image(24, crop="center"), "label": tg.Int()}
    members = {
        "jpg": tg.Image(24), "png": tg.Image(24, crop="center"), "webp": tg.Image(24),
        "npy": tg.Array("float32", (3, 4)), "cls": tg.Int(), "json": tg.Json(), "txt": tg.Text(),
    }  # fmt: skip
    any_size = {"image": tg.Image(load_truncated=True), "label": tg.Int()}
    drafts = {"image": tg.Image(8, draft=True, crop="random"), "label": tg.Int()}
    kinds = [
        Kind("jpeg", images("jpg", jpeg), square, "images"),
        Kind("jpeg, any size", images("jpg", jpeg), any_size, "images"),
        Kind("jpeg, drafts", images("jpg", lambda i: jpeg(i, 300)), drafts, "images"),
        Kind(
            "jpeg, checkpoints",
            images("jpg", lambda i: jpeg(i, 500)),
            {"image": tg.Image(16, crop="random"), "label": tg.Int()},
            "images",
            open=lambda path: tg.open(path, checkpoints=True),
        ),
        Kind("png", images("png", png), square, "images"),
        Kind("webp", images("webp", webp), square, "images"),
        Kind("masks", masks, {"jpg": tg.Image(16), "png": tg.Mask("jpg")}, "*.tar"),
        Kind("tar", tars("tar", "w"), members, "*.tar"),
        Kind("tar.gz", tars("tar.gz", "w:gz"), members, "*.tar.gz", False),
        Kind("tar.zst", tars("tar.zst", "w", zstd), members, "*.tar.zst", False),
        Kind("mds", mds(), None, "mds"),
        Kind("mds zstd", mds(packed=True), None, "mds"),
        Kind("parquet", parquets, None, "*.parquet"),
        Kind("arrow", arrows, None, "*.arrow"),
        Kind("arrow stream", streams, None, "*.arrow"),
        Kind("jsonl", lines("x.jsonl", "", json_line), None, "x.jsonl"),
        Kind("csv", lines("x.csv", "a,f,t,q\n", csv_line(",")), None, "x.csv"),
        Kind("tsv", lines("x.tsv", "a\tf\tt\tq\n", csv_line("\t")), None, "x.tsv"),
        Kind("libsvm", lines("x.libsvm", "", svm_line), None, "x.libsvm"),
        Kind("tokens", token_files, None, "*.bin", open=lambda path: tg.tokens(path, 64)),
        Kind("npy", arrays, None, "x.npy", open=lambda path: tg.mapped(path).rows()),
    ]
    patches = {"patch": (8, 8, 8), "stride": (8, 8, 8)}
    kinds += [
        Kind(name, volume(24, **options), None, "v.zarr", open=lambda path: tg.volume(path, **patches))
        for name, options in zarr_codecs().items()
    ]
    return {kind.name: kind for kind in kinds}


IMAGES = ("jpeg", "jpeg, any size", "png", "webp")


def opened(kind, folder):
    return kind.open(folder / kind.where if kind.where != "." else folder)


def digest(value):
    """A short hash of a row's value, whatever its type."""
    if isinstance(value, np.ndarray):
        head = repr((value.dtype.str, value.shape)).encode()
        return hashlib.md5(head + np.ascontiguousarray(value).tobytes()).hexdigest()[:12]
    return hashlib.md5(value if isinstance(value, bytes) else repr(value).encode()).hexdigest()[:12]


def rows(batch):
    """{id: hashes of the fields}, padding left out."""
    return {
        int(batch.ids[i]): tuple(digest(column[i]) for column in batch.values())
        for i in range(batch.rows)
        if batch.mask[i]
    }
