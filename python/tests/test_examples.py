"""Every file of `examples/` runs for a few steps, on small synthetic data, without a network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import zarr3

EXAMPLES = Path(__file__).parents[2] / "examples"
# {file: arguments}; PHOTOS is a folder of images, PAGE a file to write.
ARGUMENTS = {
    "accelerate_train.py": ["PHOTOS", "--epochs", "1"],
    "imbalanced.py": ["--seeds", "1"],
    "lightning_train.py": ["PHOTOS", "--epochs", "1"],
    "segmentation.py": ["--seeds", "1", "--steps", "6", "--side", "64"],
    "train.py": ["PHOTOS", "--epochs", "2"],
    "train_under_budget.py": ["--steps", "4", "--page", "PAGE"],
}


def run(name, *arguments, launcher=(), **variables):
    """Return what an example prints."""
    command = [sys.executable, *launcher, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_runs(path, folder, tmp_path):
    if path.name == "segmentation.py":
        zarr3()
    places = {"PHOTOS": str(folder), "PAGE": str(tmp_path / "page.html")}
    arguments = [places.get(given, given) for given in ARGUMENTS[path.name]]
    assert run(path.name, *arguments)


def test_training_goes_on_with_the_same_losses(folder, tmp_path):
    state = tmp_path / "run.pt"
    whole = run("train.py", folder, "--epochs", 2, "--global-batch", 8)
    first = run("train.py", folder, "--epochs", 2, "--global-batch", 8, "--stop-after", 3, "--state", state)
    rest = run("train.py", folder, "--epochs", 2, "--global-batch", 8, "--state", state)
    assert first + rest == whole


def test_two_ranks_train(folder):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    printed = run("train.py", folder, "--epochs", 1, "--global-batch", 8, launcher=launcher, OMP_NUM_THREADS="1")
    assert re.search(r"epoch 0 step 1 loss \d", printed)
    assert re.search(r"accuracy .* held-out samples", printed)
