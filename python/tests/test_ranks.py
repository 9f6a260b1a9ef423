"""Which rank this process is, asked when an epoch begins, under the launchers that people use."""

import contextlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import tidegate as tg
from tidegate import ranks

SAMPLES = 101

# A loader that is made before anybody knows of ranks, and what each rank was given.
HEAD = f"""
import json, os, sys
import torch
import tidegate as tg

def made():
    return tg.Loader(tg.synthetic({SAMPLES}, 8), batch_size=8, memory="16MiB", shuffle=True, seed=5, output="torch")

def note(rank, epochs):
    with open(os.path.join(sys.argv[1], f"{{rank}}.json"), "w") as file:
        json.dump(epochs, file)

def ids(batch):
    return batch["id"][torch.from_numpy(batch.mask)].tolist()
"""

SPAWN = """
import torch.multiprocessing as mp

def work(rank, port):
    loader = made()
    assert "rank 0 of 1" in repr(loader)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    note(rank, [[i for batch in loader for i in ids(batch)] for _ in range(2)])
    assert f"rank {rank} of 2" in repr(loader)
    torch.distributed.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, (int(sys.argv[2]),), nprocs=2)
"""

TORCHRUN = """
loader = made()
rank = int(os.environ["RANK"])
torch.distributed.init_process_group("gloo")
note(rank, [[i for batch in loader for i in ids(batch)] for _ in range(2)])
torch.distributed.destroy_process_group()
"""

ACCELERATE = """
loader = made()
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
loader = accelerator.prepare(loader)
note(accelerator.process_index, [[i for batch in loader for i in ids(batch)] for _ in range(2)])
accelerator.end_training()
"""

LIGHTNING = """
import lightning, warnings
warnings.simplefilter("ignore")

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), []
    def on_train_epoch_start(self):
        self.seen.append([])
    def training_step(self, batch, _):
        self.seen[-1] += batch["id"][batch["mask"]].tolist()
        return (self.weight * batch["mask"].float()).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

if __name__ == "__main__":
    loader = tg.Loader(
        tg.synthetic(SAMPLES, 8), batch_size=8, memory="16MiB", shuffle=True, seed=5, output="torch", extras=("mask",)
    )
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(module, loader)
    note(trainer.global_rank, module.seen)
""".replace("SAMPLES", str(SAMPLES))


LIGHTNING_RESUMES = """
import lightning, warnings
from lightning.pytorch.callbacks import ModelCheckpoint
warnings.simplefilter("ignore")

class Module(lightning.LightningModule):
    def __init__(self, seen):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), seen
    def training_step(self, batch, _):
        self.seen.append(batch["id"].tolist())
        return self.weight.sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

def fit(steps, checkpoint=None):
    seen = []
    saves = ModelCheckpoint(sys.argv[1], filename="{step}", every_n_train_steps=5, save_top_k=-1)
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, callbacks=[saves],
        enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(Module(seen), made(), ckpt_path=checkpoint)
    return seen

if __name__ == "__main__":
    whole = fit(30)
    note(0, whole)
    note(1, whole[:20] + fit(30, os.path.join(sys.argv[1], "step=20.ckpt")))
"""


def launched(folder, script, *command, arguments=()):
    """Run a script under a launcher; return what each rank was given, by epoch."""
    file = folder / "script.py"
    file.write_text(HEAD + script)
    variables = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    variables |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, *command, str(file), str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=variables,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("launcher", ["spawn", "torchrun", "accelerate", "lightning"])
def test_every_sample_comes_once_an_epoch(launcher, tmp_path, unused_port):
    if launcher == "spawn":
        seen = launched(tmp_path, SPAWN, arguments=[str(unused_port)])
    elif launcher == "lightning":
        seen = launched(tmp_path, LIGHTNING)
    else:
        # `accelerate launch` is torchrun with variables of its own.
        command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(unused_port)]
        seen = launched(tmp_path, TORCHRUN if launcher == "torchrun" else ACCELERATE, *command)
    first, second = ([seen[rank][epoch] for rank in range(2)] for epoch in range(2))
    for epoch in (first, second):
        assert sorted(epoch[0] + epoch[1]) == list(range(SAMPLES))
        assert abs(len(epoch[0]) - len(epoch[1])) <= 1
    assert first != second


def test_a_checkpoint_of_lightning_resumes_within_an_epoch(tmp_path):
    """An epoch has 13 batches; the checkpoint is of batch 7 of the second."""
    whole, resumed = launched(tmp_path, LIGHTNING_RESUMES)
    assert len(whole) == 30
    assert resumed == whole


def loader(**options):
    options = {"batch_size": 8, "memory": tg.Budget("16MiB"), **options}
    return tg.Loader(tg.synthetic(64, 8), **options)


def test_ranks_that_appear_are_taken_over_with_all_that_was_set(monkeypatch):
    whole = loader(shuffle=True, rank=1, world_size=2)
    whole.seek(2, 1)
    expected = [batch["id"].tolist() for batch in whole]
    late = loader(shuffle=True)
    assert len(late) == 8
    late.seek(2, 1)
    monkeypatch.setattr(ranks, "found", lambda: (1, 2))
    assert len(late) == 4
    assert [batch["id"].tolist() for batch in late] == expected
    assert "rank 1 of 2" in repr(late)
    monkeypatch.setattr(ranks, "found", lambda: (0, 2))
    with pytest.raises(tg.ConfigError, match="delivered batches to rank 1 of 2, and this process is rank 0 of 2"):
        next(iter(late))


def test_samplers_are_made_again_for_the_ranks_that_appear(monkeypatch):
    labels = np.arange(64) % 3
    options = {"sampler": tg.samplers.balanced(labels), "seed": 4}
    expected = [batch["id"].tolist() for batch in loader(rank=0, world_size=2, **options)]
    late = loader(**options)
    monkeypatch.setattr(ranks, "found", lambda: (0, 2))
    assert [batch["id"].tolist() for batch in late] == expected


def test_ranks_that_were_given_are_not_asked_for(monkeypatch):
    monkeypatch.setattr(ranks, "found", lambda: (1, 2))
    assert len(list(loader(rank=0, world_size=1))) == 8


def test_a_world_without_a_rank_is_refused_when_the_epoch_begins(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("RANK", raising=False)
    late = loader()
    with pytest.raises(tg.ConfigError, match=r"WORLD_SIZE=2 .*set RANK"):
        next(iter(late))
    monkeypatch.setenv("RANK", "1")
    assert sum(batch.rows for batch in late) == 32


def test_the_rank_of_jax_is_asked_for(monkeypatch):
    class Distributed:
        is_initialized = staticmethod(lambda: True)

    class Jax:
        distributed = Distributed
        process_index = staticmethod(lambda: 1)
        process_count = staticmethod(lambda: 2)

    monkeypatch.setitem(sys.modules, "jax", Jax)
    assert ranks.found() == (1, 2)
    Distributed.is_initialized = staticmethod(lambda: False)
    assert ranks.found() == (0, 1)


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("samples", [40, 41, 43, 63])
def test_the_last_batch_is_divided_evenly(samples, world):
    data, parts = tg.synthetic(samples, 8), []
    for rank in range(world):
        made = tg.Loader(data, global_batch_size=20, memory=tg.Budget("16MiB"), rank=rank, world_size=world)
        with (
            pytest.warns(tg.DataWarning, match="one padded row")
            if samples % 20 in range(1, world)
            else contextlib.nullcontext()
        ):
            parts.append(list(made))
    rows = samples % 20 or 20
    assert len({len(part) for part in parts}) == 1
    for rank, part in enumerate(parts):
        last = part[-1]
        assert last.mask.sum() == (rank + 1) * rows // world - rank * rows // world
        assert last.rows == max(1, last.mask.sum())
        assert last.weights.tolist() == last.mask.astype(float).tolist()
    real = [batch["id"][batch.mask].tolist() for part in parts for batch in part]
    assert sorted(i for ids in real for i in ids) == list(range(samples))
