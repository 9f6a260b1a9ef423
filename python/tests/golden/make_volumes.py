"""Writes volumes.zip: Zarr arrays by zarr-python and TensorStore, OME-NGFF images by ome-zarr.

python make_volumes.py; needs zarr==3.1.6, tensorstore==0.1.86 and ome-zarr==0.18.0.
"""

import shutil
from pathlib import Path

import numpy as np

SHAPE, CHUNKS = (9, 8, 10), (5, 4, 8)
HERE = Path(__file__).parent / "volumes"


def elements(dtype="uint16"):
    """What each array holds: the test computes it again."""
    return (np.arange(np.prod(SHAPE)) * 7919 % 65521).reshape(SHAPE).astype(dtype)


def by_zarr_python():
    import numcodecs
    import zarr
    from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

    plain = {"shape": SHAPE, "chunks": CHUNKS, "dtype": "uint16", "fill_value": 7}
    third = {
        "zstd": {"compressors": ZstdCodec(level=3)},
        "zstd-checksum": {"compressors": ZstdCodec(level=1, checksum=True)},
        "gzip": {"compressors": GzipCodec(level=5)},
        "blosc": {"compressors": BloscCodec(cname="lz4", shuffle="shuffle", typesize=2)},
        "blosc-bits": {"compressors": BloscCodec(cname="zstd", shuffle="bitshuffle", typesize=2)},
        "crc32c": {"compressors": [ZstdCodec(), Crc32cCodec()]},
        "none": {"compressors": None},
        "big": {"serializer": BytesCodec(endian="big"), "compressors": ZstdCodec()},
        "transposed": {"filters": TransposeCodec(order=(2, 0, 1)), "compressors": GzipCodec()},
        "int8": {"dtype": "int8"},
        "bool": {"dtype": "bool", "fill_value": True},
        "float16": {"dtype": "float16"},
        "float64": {"dtype": "float64", "fill_value": float("nan")},
        "uint64": {"dtype": "uint64", "compressors": BloscCodec(cname="blosclz", typesize=8)},
        "shards": {"chunks": (4, 4, 4), "shards": (8, 8, 8), "compressors": ZstdCodec()},
    }
    for name, more in third.items():
        array = zarr.create_array(HERE / f"zarr3-{name}", **(plain | more))
        array[:] = elements(array.dtype)
    bits = zarr.create_array(
        HERE / "zarr3-bitround", **(plain | {"dtype": "float32", "filters": zarr.codecs.numcodecs.BitRound(keepbits=7)})
    )
    bits[:] = elements("float32")
    second = {
        "zstd": {"compressors": numcodecs.Zstd(3)},
        "zlib": {"compressors": numcodecs.Zlib()},
        "gzip": {"compressors": numcodecs.GZip()},
        "bz2": {"compressors": numcodecs.BZ2()},
        "blosc": {"compressors": numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE)},
        "blosc-bits": {"compressors": numcodecs.Blosc("zstd", 5, numcodecs.Blosc.BITSHUFFLE)},
        "none": {"compressors": None},
        "shuffle": {"filters": numcodecs.Shuffle(2), "compressors": numcodecs.Zlib()},
        "fortran": {"order": "F"},
        "big": {"dtype": ">u2"},
        "slashes": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
    }
    for name, more in second.items():
        array = zarr.create_array(HERE / f"zarr2-{name}", **(plain | {"zarr_format": 2} | more))
        array[:] = elements(array.dtype)
    # Chunks that are not there: one of an array, one of a shard, a whole shard.
    for name, keyword in (("missing", {}), ("missing-shards", {"chunks": (4, 4, 4), "shards": (8, 8, 8)})):
        array = zarr.create_array(HERE / f"zarr3-{name}", **(plain | keyword))
        array[:4, :4, :4] = elements()[:4, :4, :4]


def by_tensorstore():
    import tensorstore as ts

    def sharded(location):
        return {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [2, 4, 4],
                "codecs": [
                    {"name": "transpose", "configuration": {"order": [2, 1, 0]}},
                    {"name": "bytes", "configuration": {"endian": "big"}},
                    {"name": "gzip", "configuration": {"level": 6}},
                ],
                "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
                "index_location": location,
            },
        }

    codecs = {
        "zstd": [{"name": "zstd", "configuration": {"level": 3}}],
        "gzip": [{"name": "gzip", "configuration": {"level": 3}}],
        "blosc": [{"name": "blosc", "configuration": {"cname": "zstd", "clevel": 5, "shuffle": "bitshuffle"}}],
        "crc32c": [{"name": "crc32c"}],
        "shards-end": [sharded("end")],
        "shards-start": [sharded("start")],
    }
    for name, chain in codecs.items():
        shape = [4, 8, 8] if "shards" in name else list(CHUNKS)
        metadata = {
            "shape": SHAPE,
            "data_type": "uint16",
            "fill_value": 7,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
            "codecs": chain,
        }
        kvstore = {"driver": "file", "path": f"{HERE}/ts3-{name}/"}
        array = ts.open({"driver": "zarr3", "kvstore": kvstore, "metadata": metadata, "create": True}).result()
        array.write(elements()).result()
    compressors = {
        "blosc": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1},
        "zlib": {"id": "zlib", "level": 1},
        "zstd": {"id": "zstd", "level": 1},
        "bz2": {"id": "bz2", "level": 1},
        "none": None,
    }
    for name, compressor in compressors.items():
        metadata = {"shape": SHAPE, "chunks": CHUNKS, "dtype": "<u2", "fill_value": 7, "compressor": compressor}
        kvstore = {"driver": "file", "path": f"{HERE}/ts2-{name}/"}
        array = ts.open({"driver": "zarr", "kvstore": kvstore, "metadata": metadata, "create": True}).result()
        array.write(elements()).result()


def by_ome_zarr():
    import zarr
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.writer import write_multiscale

    z, y, x = np.ogrid[:16, :24, :24]
    fine = (1000 + 40 * z + 7 * y + x).astype("uint16")
    coarse = fine[:, ::2, ::2]
    scales = [[30.0, 4.0, 4.0], [30.0, 8.0, 8.0]]
    transforms = [[{"type": "scale", "scale": scale}] for scale in scales]
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    for name, form, version in (("ngff-0.4", FormatV04(), 2), ("ngff-0.5", FormatV05(), 3)):
        group = zarr.open_group(HERE / name, mode="w", zarr_format=version)
        options = {"chunks": (8, 8, 8)}
        write_multiscale(
            [fine, coarse], group, fmt=form, axes=axes, coordinate_transformations=transforms, storage_options=options
        )


if __name__ == "__main__":
    shutil.rmtree(HERE, ignore_errors=True)
    by_zarr_python()
    by_tensorstore()
    by_ome_zarr()
    # One file instead of some hundreds.
    shutil.make_archive(str(HERE), "zip", HERE)
    shutil.rmtree(HERE)
