"""Makes the files that both readers read: images, tars, tables; the same bytes on every run.

Flow: a few arguments -> bytes, or a file below pytest's temporary folder, whose path returns.
Memory: one file at a time.
"""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(seed, mode="RGB", width=14, height=10):
    """A small image of drawn pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, form="JPEG", **options):
    """The bytes of an image."""
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def stored(path, image, **options):
    """Write an image in the format that its name says, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def npy(array):
    """The bytes of a .npy file."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def tar(path, *members):
    """Write a tar of (name, bytes)."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def parquet(path, columns, **options):
    """Write {name: array} as Parquet, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return path


def text(path, content, encoding="utf-8"):
    """Write text, without any translation of line ends."""
    path.write_bytes(content.encode(encoding))
    return path
