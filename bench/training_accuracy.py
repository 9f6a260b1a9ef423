"""What activations in 8 bits do to accuracy, five seeds. `make bench-training-accuracy`.

Flow: scikit-learn's digits -> a network with ReLUs -> accuracy on a third of them; the text of
docs/ -> a small GPT -> accuracy of the next byte on a tenth of it. Each seed trains with exact
activations and with compressed ones, from the same weights and batches.
Memory: some tens of MiB.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from tidegate.torch import Compress
from tidegate.torch.compress import Packer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python" / "tests"))
from test_train_step import Attention, Tokens, token_loss
from training_ranks import text_of_the_docs

FORMS = {
    "exact": None,
    "int8": Compress(),
    "int8, stochastic": Compress(rounding="stochastic"),
    "int8, blocks of 64": Compress(block=64),
    "bf16": Compress("bf16"),
}


def steps(model, loss, batches, how, lr):
    """Train on batches, with what is saved in a form."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    batches = list(batches)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    packer = None if how is None else Packer(how, model)
    for x, y in batches:
        if packer is None:
            value = loss(model(x), y)
        else:
            with packer.hooks():
                value = loss(model(x), y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()


def digits(seed, how):
    """Return the accuracy on a third of the digits, in points."""
    found = load_digits()
    x, y = torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)
    torch.manual_seed(seed)
    order = torch.randperm(len(x))
    test, train = order[: len(x) // 3], order[len(x) // 3 :]
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    parts = [train[torch.randperm(len(train))[:64]] for _ in range(600)]
    steps(model, F.cross_entropy, [(x[part], y[part]) for part in parts], how, 2e-3)
    return 100 * (model(x[test]).argmax(1) == y[test]).float().mean().item()


def text(seed, how):
    """Return the accuracy of the next byte on the last tenth of the text, in points."""
    ids, length = text_of_the_docs(), 64
    last = len(ids) * 9 // 10
    torch.manual_seed(seed)
    layers = [Attention(64, 4, True) for _ in range(2)]
    model = nn.Sequential(Tokens(256, length, 64), *layers, nn.Linear(64, 256))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    begins = torch.randint(last - length - 1, (300, 16))
    rows = [torch.stack([ids[at : at + length + 1] for at in some]) for some in begins]
    steps(model, token_loss, [(row[:, :-1], row[:, 1:]) for row in rows], how, 3e-3)
    held = ids[last : last + (len(ids) - last - 1) // length * length + 1]
    inputs, wanted = held[:-1].view(-1, length), held[1:].view(-1, length)
    with torch.no_grad():
        return 100 * (model(inputs).argmax(-1) == wanted).float().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench/results/training_accuracy.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    print("| task | form | accuracy, mean | from exact, points | spread of exact |\n|-|-|-|-|-|")
    for task in (digits, text):
        for name, how in FORMS.items():
            points = [task(seed, how) for seed in range(given.seeds)]
            found[f"{task.__name__}, {name}"] = points
            exact = found[f"{task.__name__}, exact"]
            mean = statistics.mean(points)
            apart, spread = mean - statistics.mean(exact), max(exact) - min(exact)
            print(f"| {task.__name__} | {name} | {mean:.2f} | {apart:+.2f} | {spread:.2f} |", flush=True)
    given.out.write_text(json.dumps({"torch": torch.__version__, "points": found}))


if __name__ == "__main__":
    main()
