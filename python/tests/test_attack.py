"""The programs of `attack/`, with few cases: `make test-attack` and `make test-slow` run many."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import zarr3

ATTACK = Path(__file__).parent / "attack"


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("mutants.py", ["--kind", "tar", "--count", "20"], ", 0 findings"),
        ("mutants.py", ["--kind", "parquet", "--of-index", "--count", "10"], ", 0 findings"),
        ("flips.py", ["--count", "6"], "\n0 findings"),
        ("hostile.py", ["good", "other total"], "4 runs in 2 modes, 0 failed"),
        ("runs.py", ["--count", "3", "--kinds", "png,jsonl,zarr zstd"], " 0 failed, in "),
        ("soak.py", ["--seconds", "3", "--kinds", "png,tar,jsonl"], "; 0 findings"),
    ],
)
def test_an_attack_finds_nothing(tmp_path, name, arguments, says):
    zarr3()
    done = subprocess.run(
        [sys.executable, str(ATTACK / name), *arguments],
        capture_output=True, text=True, cwd=tmp_path, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    if done.stdout.startswith("SKIPPED: no memory control group"):
        pytest.skip("no memory control group can be made here")
    assert says in done.stdout
