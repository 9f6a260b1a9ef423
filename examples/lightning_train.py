"""Train the network of `train.py` with Lightning.

A loader is an iterable of dicts, so `Trainer.fit` takes it as it is, on several devices too: it
asks for its rank when an epoch begins.

    python examples/lightning_train.py photos --epochs 2
"""

import argparse

import lightning
import torch
from torch import nn
from train import network

import tidegate as tg


class Classifier(lightning.LightningModule):
    """A classifier of colours and stripes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.model = network(classes)

    def training_step(self, batch: tg.Batch) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.model(batch["image"]), batch["label"])
        self.log("loss", loss, prog_bar=True, batch_size=len(batch["label"]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("data")
    arguments.add_argument("--epochs", type=int, default=2)
    given = arguments.parse_args()
    source = tg.open(given.data)
    image = tg.Image(64, crop="random", scale=(0.5, 1), dtype="float32")
    loader = tg.Loader(
        source, batch_size=32, memory="64MiB", shuffle=True, drop_last=True, fields={"image": image}, output="torch"
    )
    trainer = lightning.Trainer(
        max_epochs=given.epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.fit(Classifier(len(source.stats["classes"])), loader)
    print(f"loss {trainer.callback_metrics['loss']:.4f}")


if __name__ == "__main__":
    main()
