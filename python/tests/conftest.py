"""Shared by the tests: `--slow`, and small data sets written by Pillow and tarfile."""

import io
import tarfile

import numpy as np
import PIL
import pytest
from PIL import Image

# Until 13, Pillow resized along rows first, even where that is more work: then a value may round the other way.
ROUNDING = 0 if int(PIL.__version__.split(".")[0]) >= 13 else 1


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; run with --slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


def picture(seed, width=96, height=80, mode="RGB"):
    """A smooth picture with an edge."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 7, 3), np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image).copy()
    pixels[:, : width // 3] //= 2
    return Image.fromarray(pixels).convert(mode)


def encoded(image, form="JPEG", **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """40 JPEGs in two classes."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for i in range(40):
        path = root / ("cat" if i % 2 else "dog")
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{i}.jpg").write_bytes(encoded(picture(i), quality=92, subsampling=0 if i % 4 else 2))
    return root


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Two WebDataset shards with every simple field, in the pax format."""
    root = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        with tarfile.open(root / f"s-{shard}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for i in range(shard * 15, shard * 15 + 15):
                array = io.BytesIO()
                np.save(array, np.full((2, 3), i, np.float32))
                members = {
                    "jpg": encoded(picture(i), quality=90),
                    "cls": str(i % 5).encode(),
                    "txt": f"sample {i} é".encode(),
                    "json": b'{"i": %d}' % i,
                    "npy": array.getvalue(),
                    "seg.png": encoded(picture(i, mode="L"), "PNG"),
                }
                key = f"{'long' * 30 if i == 3 else 'k'}/{i:05}"
                for name, data in members.items():
                    info = tarfile.TarInfo(f"{key}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return root
