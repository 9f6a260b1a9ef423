"""One flipped bit in data that have checksums: what is accepted must be what the peer accepts too.

Flow: for each format a file is made and read; of copies with one bit flipped, Tidegate and the
format's usual reader each give values or refuse. Other values that Tidegate gives and the usual
reader refuses are findings.
Memory: one file of some KiB.

    python flips.py --count 200
"""

import argparse
import gzip
import io
import json
import random
import sys
import tempfile
import warnings
from pathlib import Path

import kinds
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import tidegate as tg


def values(source, fields=None):
    """All rows, as hashes."""
    loader = tg.Loader(source, batch_size=4, memory=tg.Budget("48MiB"), fields=fields)
    return [hashes for batch in loader for hashes in kinds.rows(batch).values()]


def tar(ending, compress):
    members = [(f"{i}.npy", kinds.npy(np.arange(2000, dtype="i4") % 7 + i)) for i in range(8)]
    plain = io.BytesIO()
    kinds.archive("x", members, mode="w", fileobj=plain)
    return compress(plain.getvalue())


def png(place, data, spec):
    (place / "a").mkdir(exist_ok=True)
    (place / "a" / "x.png").write_bytes(data)
    return values(place, {"image": spec, "label": tg.Int()})


def file(name, fields=None):
    def read(place, data):
        (place / name).write_bytes(data)
        return values(place / name, fields)

    return read


def npz(place, data):
    (place / "x.npz").write_bytes(data)
    return kinds.digest(np.array(tg.mapped(place / "x.npz", name="x", verify=True).array))


def saved():
    sink = io.BytesIO()
    np.savez(sink, x=np.arange(4000, dtype="i4"))
    return sink.getvalue()


def parquet():
    columns = {"x": np.arange(3000) % 5, "y": np.random.default_rng(0).random(3000)}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="none", use_dictionary=False, write_page_checksum=True)
    return sink.getvalue()


def zarr_chunk(**codecs):
    """(makes the chunk, reads it with Tidegate, reads it with zarr-python)."""

    def stored(place):
        import zarr

        array = zarr.create_array(
            str(place / "z"), shape=(16, 16, 16), chunks=(16, 16, 16), dtype="u2", overwrite=True, **codecs
        )
        array[:] = np.arange(4096).reshape(16, 16, 16) % 300
        return place / "z" / "c" / "0" / "0" / "0"

    def made():
        with tempfile.TemporaryDirectory() as place:
            return stored(Path(place)).read_bytes()

    def ours(place, data):
        stored(place).write_bytes(data)
        return values(tg.volume(place / "z", patch=(16, 16, 16)))

    def theirs(data):
        import zarr

        with tempfile.TemporaryDirectory() as place:
            stored(Path(place)).write_bytes(data)
            zarr.open_array(str(Path(place) / "z"))[:]

    return made, ours, theirs


def hashed(place, data):
    """An MDS shard with hashes, which streaming checks when it is told to."""
    with tempfile.TemporaryDirectory() as made:
        kinds.mds()(Path(made), 4)
        index = json.loads((Path(made) / "mds" / "index.json").read_text())
        (place / "index.json").write_text(json.dumps(index))
        (place / index["shards"][0]["raw_data"]["basename"]).write_bytes(data)
    return values(place)


def shard():
    with tempfile.TemporaryDirectory() as made:
        kinds.mds()(Path(made), 4)
        return (Path(made) / "mds" / "shard.00000.mds").read_bytes()


def refuse(_):
    """The usual reader compares the hash of the whole."""
    raise ValueError("the hash differs")


def formats():
    """{name: (makes the bytes, Tidegate's reader, the usual reader)}."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    def pillow(data):
        Image.open(io.BytesIO(data)).load()

    def image(spec):
        return lambda: kinds.png(0, 80), lambda place, data: png(place, data, spec), pillow

    array = {"npy": tg.Array("int32", (2000,))}
    return {
        "PNG, whole": image(tg.Image()),
        "PNG, resized": image(tg.Image(32)),
        "PNG, random crop": image(tg.Image(32, crop="random")),
        "PNG, interlaced": (lambda: kinds.png(4, 80), lambda p, d: png(p, d, tg.Image()), pillow),
        "tar.gz": (lambda: tar("gz", gzip.compress), file("x.tar.gz", array), gzip.decompress),
        "tar.gz, stored": (lambda: tar("gz", lambda b: gzip.compress(b, 0)), file("x.tar.gz", array), gzip.decompress),
        "tar.zst with a checksum": (lambda: tar("zst", zstd), file("x.tar.zst", array), zstd_read),
        "npz, verify=True": (saved, npz, lambda data: np.load(io.BytesIO(data))["x"]),
        "Parquet with page checksums": (
            parquet, file("x.parquet"), lambda data: pq.read_table(io.BytesIO(data), page_checksum_verification=True)
        ),
        "MDS with hashes": (shard, hashed, refuse),
        "Zarr crc32c": zarr_chunk(compressors=[Crc32cCodec()]),
        "Zarr zstd with a checksum": zarr_chunk(compressors=[ZstdCodec(level=1, checksum=True)]),
    }  # fmt: skip


def zstd(data):
    import numcodecs

    return numcodecs.Zstd(level=1, checksum=True).encode(data)


def zstd_read(data):
    import numcodecs

    numcodecs.Zstd().decode(data)


def trial(name, count):
    """Flip bits; return (other values accepted, of these refused by the peer, refused)."""
    make, ours, theirs = formats()[name]
    good = make()
    with tempfile.TemporaryDirectory() as place:
        right = ours(Path(place), good)
    accepted = findings = refused = 0
    for number in range(count):
        rng, data = random.Random(number), bytearray(good)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        with tempfile.TemporaryDirectory() as place:
            try:
                other = ours(Path(place), bytes(data)) != right
            except tg.Error:
                refused += 1
                continue
        if other:
            accepted += 1
            try:
                theirs(bytes(data))
            except Exception:
                findings += 1
    return accepted, findings, refused


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200, help="flips of each format")
    given, bad = parser.parse_args(), 0
    warnings.simplefilter("ignore")
    for name in formats():
        accepted, findings, refused = trial(name, given.count)
        bad += findings
        print(
            f"{name}: of {given.count} flips {refused} were refused, {accepted} gave other values, and the usual "
            f"reader refuses {findings} of these",
            flush=True,
        )
    print(f"{bad} findings")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
