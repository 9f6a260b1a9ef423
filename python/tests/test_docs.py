"""Every example in a docstring and in the README runs."""

import doctest
import importlib
import re
import textwrap
from pathlib import Path

import pytest

import tidegate

MODULES = [
    "tidegate",
    "tidegate.batch",
    "tidegate.curve",
    "tidegate.disk",
    "tidegate.duplicates",
    "tidegate.fields",
    "tidegate.loader",
    "tidegate.profiling",
    "tidegate.samplers",
    "tidegate.sketch",
    "tidegate.source",
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


def test_orders():
    run("orders.md")


def run(name):
    text = (Path(__file__).parents[2] / "docs" / name).read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, name, "exec"), names)
