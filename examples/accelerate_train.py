"""Train the network of `train.py` with Accelerate.

The loader splits by rank itself: it asks torch.distributed when an epoch begins. So `prepare` takes
only the model and the optimizer.

    accelerate launch --cpu examples/accelerate_train.py photos
"""

import argparse

import torch
from accelerate import Accelerator
from torch import nn
from train import network

import tidegate as tg


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("data")
    arguments.add_argument("--epochs", type=int, default=2)
    given = arguments.parse_args()
    accelerator = Accelerator(cpu=True)
    source = tg.open(given.data)
    loader = tg.Loader(
        source,
        global_batch_size=32,
        memory="64MiB",
        shuffle=True,
        fields={"image": tg.Image(64, crop="random", scale=(0.5, 1), dtype="float32")},
        output="torch",
    )
    model = network(len(source.stats["classes"]))
    model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=2e-3))
    for epoch in range(given.epochs):
        for batch in loader:
            loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        accelerator.print(f"epoch {epoch} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
