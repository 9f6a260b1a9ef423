"""Train a small network with plain torch, resume in mid-epoch, on one rank or several.

    tidegate synth photos --samples 2000 --classes 4 --width 160
    python examples/train.py photos --epochs 3
    python examples/train.py photos --epochs 3 --stop-after 20 --state run.pt   # stops
    python examples/train.py photos --epochs 3 --state run.pt     # resumes: the same losses
    torchrun --nproc-per-node 2 examples/train.py photos --epochs 1   # two ranks, gloo

Each step prints a line with its loss. The last line has the accuracy on held-out samples.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn

import tidegate as tg


def network(classes: int) -> nn.Module:
    """Return three convolutions and a classifier: enough for colours and stripes."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("data")
    arguments.add_argument("--epochs", type=int, default=3)
    arguments.add_argument("--global-batch", type=int, default=32)
    arguments.add_argument("--memory", default="64MiB")
    arguments.add_argument("--state")
    arguments.add_argument("--stop-after", type=int)
    given = arguments.parse_args()

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)

    source = tg.open(given.data)
    parts = source.split({"train": 0.9, "val": 0.1}, seed=0)
    norm = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "dtype": "float32"}
    budget = tg.Budget(given.memory)
    train = tg.Loader(
        parts["train"],
        global_batch_size=given.global_batch,
        memory=budget,
        shuffle=True,
        seed=1,
        rank=rank,
        world_size=world,
        fields={"image": tg.Image(64, crop="random", scale=(0.5, 1), **norm)},
        output="torch",
    )
    whole = {"rank": 0, "world_size": 1}  # every rank validates on all samples
    fields = {"image": tg.Image(64, **norm)}
    val = tg.Loader(parts["val"], batch_size=32, memory=budget, fields=fields, output="torch", **whole)
    model = network(len(source.stats["classes"]))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    step, first = 0, 0
    if given.state and os.path.exists(given.state):
        saved = torch.load(given.state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        train.load_state_dict(saved["loader"])
        step, first = saved["step"], saved["loader"]["epoch"]

    for epoch in range(first, given.epochs):
        for batch in train:
            mask = torch.from_numpy(batch.mask)
            losses = nn.functional.cross_entropy(model(batch["image"]), batch["label"], reduction="none")
            # Padded rows of the last batch do not count; every rank divides by the same number.
            real = mask.sum()
            if world > 1:
                dist.all_reduce(real)
            loss = (losses * mask).sum() * world / real
            optimizer.zero_grad()
            loss.backward()
            if world > 1:
                for parameter in model.parameters():
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= world
            optimizer.step()
            step += 1
            shown = loss.detach()
            if world > 1:
                dist.all_reduce(shown)
                shown /= world
            if rank == 0:
                print(f"epoch {epoch} step {step} loss {shown.item():.6f}")
            if step == given.stop_after:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save({**state, "loader": train.state_dict()}, given.state)
                return

    right = total = 0
    with torch.no_grad():
        for batch in val:
            right += (model(batch["image"]).argmax(1) == batch["label"]).sum().item()
            total += len(batch["label"])
    if rank == 0:
        print(f"accuracy {right / total:.3f} on {total} held-out samples")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
