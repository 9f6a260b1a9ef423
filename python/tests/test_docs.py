"""Every example in a docstring and in the README runs."""

import doctest
import importlib
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import zarr

import tidegate

MODULES = [
    "tidegate",
    "tidegate.arrays",
    "tidegate.batch",
    "tidegate.compress",
    "tidegate.curve",
    "tidegate.disk",
    "tidegate.duplicates",
    "tidegate.fields",
    "tidegate.loader",
    "tidegate.profiling",
    "tidegate.quantize",
    "tidegate.samplers",
    "tidegate.sketch",
    "tidegate.source",
    "tidegate.sparse",
    "tidegate.tensor_train",
    "tidegate.volumes",
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, extraglobs={"tg": tidegate}, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_readme(folder, shards, monkeypatch, tmp_path):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").symlink_to(shards)
    (tmp_path / "photos").symlink_to(folder)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        if "torch" not in block:
            exec(compile(textwrap.dedent(block), "README.md", "exec"), {"step": lambda *_: None})


def test_data(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(folder)
    run("data.md")


def test_compact(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run("compact.md")


def test_orders():
    run("orders.md")


def test_volumes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    root = zarr.open_group("cells.zarr", mode="w")
    labels = np.zeros((96, 96, 96), "uint16")
    labels[20:40, 30:50, 60:90], labels[70:80, 70:80, 70:80] = 1, 2
    for path, array in (("em", (labels * 80).astype("uint8")), ("labels/nuclei", labels)):
        root.create_array(path, shape=array.shape, chunks=(32, 32, 32), dtype=array.dtype)[:] = array
    run("volumes.md")


def run(name):
    text = (Path(__file__).parents[2] / "docs" / name).read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, name, "exec"), names)
