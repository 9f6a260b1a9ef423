"""Train a model that does not fit: a loader and a training step under one number.

    python examples/train_under_budget.py                    # some minutes on two cores
    python examples/train_under_budget.py --steps 4 --page page.html

A GPT learns the text of Python's standard library. The plain step is measured first. Then a new
process trains with the same batches under one number, which falls to a third of what the plain
step took while it trains, and the losses are compared. The page has two plots: the memory of each
step, and what every budget would cost in time. `plan.json` beside it is for `tidegate plan`.
"""

import argparse
import html
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import tidegate as tg
from tidegate.torch import process, training_context

MIB = 1 << 20
ROWS, LENGTH = 16, 128
# Parts of what the plain step takes: the number falls to each of them in turn.
PARTS = (1.0, 0.67, 0.5, 0.34)


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (4, -1)).transpose(1, 2)


class Block(nn.Module):
    """Causal attention and two layers behind it, each added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norms[0](x)).chunk(3, -1)
        q, k, v = heads(q), heads(k), heads(v)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Gpt(nn.Module):
    """Takes rows of bytes, and gives for each byte but the last what comes next."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(256, width), nn.Parameter(torch.zeros(LENGTH, width))
        self.blocks = nn.Sequential(*[Block(width) for _ in range(layers)])
        self.head = nn.Linear(width, 256)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.table(rows[:, :-1]) + self.places))


def next_byte(output: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), rows[:, 1:].flatten())


def write_text(path: Path, rows: int) -> None:
    """Write rows of bytes of Python's standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    size, text = rows * (LENGTH + 1), b""
    for file in sorted(folder.glob("*.py")):
        text += file.read_bytes()
        if len(text) >= size:
            break
    np.save(path, np.frombuffer(text[:size], np.uint8).reshape(rows, LENGTH + 1).astype(np.int64))


def setup(given: argparse.Namespace) -> tuple[tg.Loader, nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    source = tg.mapped(given.text).rows()
    loader = tg.Loader(source, batch_size=ROWS, memory="8MiB", shuffle=True, seed=0, output="torch")
    model = Gpt(given.layers, given.width)
    return loader, model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def plain(given: argparse.Namespace) -> dict:
    """Train as usual; return the losses, and what the process took above what it took before."""
    process.return_freed_blocks()
    nn.Linear(8, 8)(torch.randn(4, 8)).sum().backward()
    before = process.anonymous_bytes()
    files = process.begin_peak()
    loader, model, optimizer = setup(given)
    losses = []
    for batch in loader:
        loss = next_byte(model(batch["data"]), batch["data"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return {"losses": losses, "taken": process.peak_bytes(files or 0) - before}


def budgeted(given: argparse.Namespace) -> dict:
    """Train under a number that falls; return losses, the figures of each step, and the curve."""
    nn.Linear(8, 8)(torch.randn(4, 8)).sum().backward()
    loader, model, optimizer = setup(given)
    limits = [int(given.taken * part) for part in PARTS]
    every, losses, reports = max(1, given.steps // len(PARTS)), [], []
    with training_context(loader, model, next_byte, optimizer, memory=limits[0], inputs="data", targets="data") as step:
        for number, batch in enumerate(loader):
            if number % every == 0 and 0 < number // every < len(limits):
                step.set_memory(limits[number // every])
            losses.append(step(batch).item())
            if number % every == every - 1:
                reports.append(str(step.report()))
        moments = [vars(moment) for moment in step.report().moments]
        step.profile().save(given.page.with_name("plan.json"))
        curve = tg.training.curve(step.profile())
    points = [[point.memory_bytes, point.time] for point in curve]
    return {"losses": losses, "moments": moments, "curve": points, "reports": reports}


# The page


def plot(title: str, across: str, lines: list[tuple[str, str, list[tuple[float, float]]]]) -> str:
    """Return lines over one another as SVG: (name, colour, points)."""
    wide, high, left, low = 640, 260, 60, 40
    xs = [x for _, _, points in lines for x, _ in points]
    most = 1.08 * max(y for _, _, points in lines for _, y in points)
    least, span = min(xs), max(max(xs) - min(xs), 1e-9)
    parts = [f"<text x='{left}' y='16' font-size='14'>{html.escape(title)}</text>"]
    for k in range(5):
        y = high - low - k * (high - low - 30) / 4
        parts.append(f"<line x1='{left}' x2='{wide - 10}' y1='{y:.0f}' y2='{y:.0f}' stroke='#ddd'/>")
        parts.append(f"<text x='{left - 6}' y='{y + 4:.0f}' text-anchor='end'>{most * k / 4:.3g}</text>")
        x = left + k * (wide - left - 10) / 4
        parts.append(f"<text x='{x:.0f}' y='{high - 22}' text-anchor='middle'>{least + span * k / 4:.3g}</text>")
    for number, (name, colour, points) in enumerate(lines):
        at = [
            f"{left + (x - least) / span * (wide - left - 10):.1f},{high - low - y / most * (high - low - 30):.1f}"
            for x, y in points
        ]
        parts.append(f"<polyline points='{' '.join(at)}' fill='none' stroke='{colour}' stroke-width='2'/>")
        parts.append(f"<text x='{left + 150 * number}' y='{high - 4}' fill='{colour}'>{html.escape(name)}</text>")
    parts.append(f"<text x='{wide - 10}' y='{high - 4}' text-anchor='end'>{html.escape(across)}</text>")
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {wide} {high}' width='{wide}' height='{high}' "
        f"font-family='sans-serif' font-size='11'><rect width='100%' height='100%' fill='white'/>{''.join(parts)}</svg>"
    )


def page_of(plain_run: dict, run: dict) -> tuple[str, str, str]:
    """Return the page, and its two plots."""
    moments, taken = run["moments"], plain_run["taken"]
    of = {
        name: [(moment["step"], moment[name] / MIB) for moment in moments]
        for name in ("memory_bytes", "step_bytes", "loader_bytes", "measured_bytes")
    }
    steps = plot(
        f"MiB of each step; the plain step took {taken / MIB:.0f}",
        "step",
        [
            ("the number", "#c0392b", of["memory_bytes"]),
            ("step, planned", "#2471a3", of["step_bytes"]),
            ("loader", "#1e8449", of["loader_bytes"]),
            ("measured", "#7d6608", of["measured_bytes"]),
        ],
    )
    fastest = min(time for _, time in run["curve"])
    times = [(size / MIB, time / fastest) for size, time in run["curve"]]
    cost = plot("time of the step for every budget", "MiB of the step", [("times the fastest", "#2471a3", times)])
    words = "".join(f"<pre>{html.escape(report)}</pre>" for report in run["reports"])
    page = f"<!doctype html><meta charset='utf-8'><title>Train a model that does not fit</title>{steps}{cost}{words}"
    return page, steps, cost


def child(kind: str, given: argparse.Namespace, text: Path, taken: int = 0) -> dict:
    """Run a kind of training in a process of its own."""
    how = ["--steps", given.steps, "--layers", given.layers, "--width", given.width, "--page", given.page]
    command = [sys.executable, __file__, "--child", kind, "--text", text, "--taken", taken, *how]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--layers", type=int, default=12)
    arguments.add_argument("--width", type=int, default=128)
    arguments.add_argument("--page", type=Path, default=Path("train_under_budget.html"))
    arguments.add_argument("--child", choices=["plain", "budgeted"], help=argparse.SUPPRESS)
    arguments.add_argument("--text", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--taken", type=int, default=0, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.child:
        print(json.dumps({"plain": plain, "budgeted": budgeted}[given.child](given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.npy"
        write_text(text, given.steps * ROWS)
        expected = child("plain", given, text)
        taken = expected["taken"]
        print(f"the plain step takes {taken / MIB:.0f} MiB above the interpreter and the libraries")
        run = child("budgeted", given, text, taken)
    for report in run["reports"]:
        print(f"\n{report}")
    apart = max(abs(a - b) for a, b in zip(run["losses"], expected["losses"], strict=True))
    print(
        f"\nlosses from {run['losses'][0]:.3f} to {run['losses'][-1]:.3f}, at most {apart:.1e} apart from the plain run"
    )
    page, *plots = page_of(expected, run)
    given.page.write_text(page)
    for name, one in zip(("steps", "budgets"), plots, strict=True):
        given.page.with_name(f"{given.page.stem}_{name}.svg").write_text(one)
    print(f"wrote {given.page}, its two plots and plan.json")


if __name__ == "__main__":
    main()
