"""A skip that `skips.txt` does not list fails a run with `CI=true`, and only such a run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SKIPS, listed_skips

HERE = Path(__file__).parent
TEST = """
import pytest

def test_one():
    pytest.skip("no file system can be made here: planted")

def test_other():
    pass
"""


def run(folder, **variables):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    plain = {name: value for name, value in os.environ.items() if name != "CI"}
    return subprocess.run(command, env={**plain, **variables}, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def tests(tmp_path):
    folder = tmp_path / "tests"
    folder.mkdir()
    for name in ("conftest.py", "torch_on_cpu.py", "skips.txt"):
        shutil.copy(HERE / name, folder)
    return folder


def test_an_unlisted_skip_fails(tests):
    (tests / "test_planted.py").write_text(TEST)
    done = run(tests, CI="true")
    assert done.returncode == 1, done.stdout
    assert "test_planted.py::test_one: no file system can be made here: planted" in done.stdout
    assert run(tests).returncode == 0


def test_a_module_that_is_skipped_fails_too(tests):
    (tests / "test_planted.py").write_text("import pytest\npytest.importorskip('not_there')")
    (tests / "test_more.py").write_text("def test_one(): pass")
    done = run(tests, CI="true")
    assert done.returncode == 1, done.stdout
    assert "test_planted.py: could not import 'not_there'" in done.stdout


def test_a_listed_skip_passes(tests):
    (tests / "test_disk.py").write_text(TEST)
    done = run(tests, CI="true")
    assert done.returncode == 0, done.stdout


def test_lines_hold_for_their_pythons():
    text = "# words\n\na.py | 3.10 3.11 | x*\nb.py | any | y | z\n"
    assert listed_skips(text, "3.10") == [("a.py", "x*"), ("b.py", "y | z")]
    assert listed_skips(text, "3.12") == [("b.py", "y | z")]
    assert listed_skips(SKIPS.read_text(), "3.13")
