"""Shared by the tests: `--slow`, skips that fail in CI, and small data sets of Pillow and tarfile.

With `CI=true` a skip that `skips.txt` does not list fails the run. Without the CUDA libraries that
torch links to, libraries without function stand in for them: see `torch_on_cpu.py`.
"""

import fnmatch
import io
import os
import socket
import sys
import tarfile
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch_on_cpu
from PIL import Image

# Until 13, Pillow resized along rows first, even where that is more work: a value may then round
# the other way.
ROUNDING = 0 if int(PIL.__version__.split(".")[0]) >= 13 else 1

SKIPS = Path(__file__).with_name("skips.txt")
unlisted_skips = pytest.StashKey[list]()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; run with --slow")
    config.stash[unlisted_skips] = []
    config.pluginmanager.register(Skips(config.stash[unlisted_skips]))
    torch_on_cpu.main()


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


def listed_skips(text, version):
    """[(glob of tests, glob of reasons)]: the lines of `skips.txt` for a Python version."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    columns = [[column.strip() for column in line.split("|", 2)] for line in lines]
    return [(test, reason) for test, versions, reason in columns if versions == "any" or version in versions.split()]


class Skips:
    """Collects the skips that `skips.txt` does not list."""

    def __init__(self, unlisted):
        self.unlisted = unlisted
        self.listed = listed_skips(SKIPS.read_text(), "{}.{}".format(*sys.version_info))

    def note(self, report):
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = reason.removeprefix("Skipped: ")
            name = report.nodeid.rpartition("tests/")[2]
            if not any(fnmatch.fnmatch(name, t) and fnmatch.fnmatch(reason, r) for t, r in self.listed):
                self.unlisted.append(f"{name}: {reason}")

    pytest_collectreport = note
    pytest_runtest_logreport = note


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if session.config.stash[unlisted_skips] and os.environ.get("CI") == "true" and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    unlisted = config.stash[unlisted_skips]
    if unlisted:
        fails = "which fails this run" if os.environ.get("CI") == "true" else "which would fail with CI=true"
        terminalreporter.section(f"skips that {SKIPS.name} does not list, {fails}")
        for line in unlisted:
            terminalreporter.write_line(line)


def zarr3():
    """Return zarr 3, or skip: on Python 3.10 there is only zarr 2, which writes no format 3."""
    return pytest.importorskip("zarr", minversion="3")


def picture(seed, width=96, height=80, mode="RGB"):
    """A smooth image with an edge."""
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


@pytest.fixture
def unused_port():
    """A port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
