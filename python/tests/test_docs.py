"""Every example in a docstring, in the README and in the docs runs.

A `python` block that cannot run has the reason on the line before it: `<!-- not run: REASON -->`.
"""

import doctest
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import zarr3

import tidegate
from tidegate import sketch

ROOT = Path(__file__).parents[2]
MODULES = ["tidegate", *(module.name for module in pkgutil.walk_packages(tidegate.__path__, "tidegate."))]
MODULES.remove("tidegate._tidegate")
PAGES = [ROOT / "README.md", ROOT / "python" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- not run: *(?P<reason>[^\n]*?) *-->\n)?^```(?:python|py)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, extraglobs={"tg": tidegate}, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


# In a process of its own, since the budget is the process's. Blank lines before each block make the
# line numbers in a traceback those of the page.
RUN = """
import json, sys, warnings
warnings.simplefilter("error", DeprecationWarning)
path, blocks = json.load(sys.stdin)
names = {"__name__": "__main__", "step": lambda *_: None}
for line, code in blocks:
    exec(compile("\\n" * line + code, path, "exec"), names)
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages(page, folder, tmp_path):
    if page.name == "README.md":
        command = [Path(sys.executable).with_name("tidegate"), "synth", tmp_path / "shards", "--form", "tar"]
        subprocess.run([*command, "--samples", "40", "--width", "160"], check=True, capture_output=True)
    if page.name in ("README.md", "data.md"):
        (tmp_path / "photos").symlink_to(folder)
    if page.name == "volumes.md":
        cells(zarr3(), str(tmp_path / "cells.zarr"))
    code = json.dumps([str(page), [(line, code) for line, _, code in blocks(page) if code is not None]])
    command = [sys.executable, "-c", RUN]
    done = subprocess.run(command, cwd=tmp_path, input=code, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_not_run_says_why(page):
    text = page.read_text()
    assert text.count("<!-- not run:") == sum(code is None for _, _, code in blocks(page)), "a marker without a block"
    for line, reason, code in blocks(page):
        assert code is not None or len(reason) > 10, f"{page}:{line}: give the reason"


def blocks(page):
    """[(line, reason, code)] of a page's python blocks; the code is None where it is not run."""
    text = page.read_text()
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        found.append((line, match["reason"], match["code"] if match["reason"] is None else None))
    assert len(found) == len(re.findall(r"^ *```(?:python|py)\b", text, re.MULTILINE)), f"{page}: a block is indented"
    return found


def cells(zarr, path):
    """An image of 96^3 voxels and its labels."""
    root = zarr.open_group(path, mode="w")
    labels = np.zeros((96, 96, 96), "uint16")
    labels[20:40, 30:50, 60:90], labels[70:80, 70:80, 70:80] = 1, 2
    for name, array in (("em", (labels * 80).astype("uint8")), ("labels/nuclei", labels)):
        root.create_array(name, shape=array.shape, chunks=(32, 32, 32), dtype=array.dtype)[:] = array


@pytest.mark.parametrize("thing", [tidegate.Budget, *(getattr(sketch, name) for name in sketch.__all__)])
def test_docstrings_of_the_extension(thing):
    assert thing.__doc__
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(thing, thing.__name__, module=False, globs={"tg": tidegate}):
        assert runner.run(test).failed == 0
