"""Tests that a training step keeps its budget, by memory control groups. `make test-memory`.

Flow: six models at three budgets each -> a child in a group of its base + what is set aside for
kernels and the C library + 1.1 times the planned peak: it must take its steps. Then a GPT that
reads from a loader, whose plain step is killed in a group; within one number it must finish with
the same losses, also while the limit falls in steps to a third of what the plain step takes.
Memory: the plain step of the GPT takes some 400 MiB above the base.

The base is what a child's process takes in no file after its imports and one small step; pages of
files count in a group too, and the kernel drops them where memory is short. In version 1 a limit is
written again until the kernel takes it; in version 2 memory.high falls first.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from memory import MIB, Group
from torch import nn
from torch.nn import functional as F

import tidegate as tg
from tidegate import training
from tidegate.torch import TrainStep, process, profile_model, training_context
from tidegate.torch.context import RESERVE_BYTES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python" / "tests"))
from test_train_step import MODELS, Attention, Tokens, made

BUDGETS = (0.1, 0.4, 0.7)
VOCABULARY, LENGTH, ROWS = 500, 256, 8
# A limit must be taken within this many seconds.
TAKEN_S = 10.0


def warm():
    """Return the base: what the process takes before the model."""
    nn.Linear(64, 64)(torch.randn(8, 64)).sum().backward()
    F.conv2d(torch.randn(2, 3, 16, 16), torch.randn(4, 3, 3, 3, requires_grad=True)).sum().backward()
    return process.anonymous_bytes()


def enter(group):
    """Move this process into a group."""
    Path(group, "cgroup.procs").write_text(str(os.getpid()))


def limit_group(group, size):
    """Write a limit until the kernel takes it; return the seconds that it took."""
    began = time.monotonic()
    if (Path(group) / "memory.max").exists():
        Path(group, "memory.high").write_text(str(size))
        while int(Path(group, "memory.current").read_text()) > size and time.monotonic() - began < TAKEN_S:
            time.sleep(0.01)
    while True:
        name = "memory.max" if (Path(group) / "memory.max").exists() else "memory.limit_in_bytes"
        try:
            Path(group, name).write_text(str(size))
            return time.monotonic() - began
        except OSError:
            if time.monotonic() - began > TAKEN_S:
                raise
            time.sleep(0.01)


def said(found):
    print(json.dumps(found), flush=True)


# One model at one budget


def step_child(group, name, part):
    """Plan outside of the group's limit; take steps within it."""
    process.return_freed_blocks()
    base = warm()
    model, loss, batch = made(name)
    # Four times the batch: where a step takes a few MiB, all is set aside.
    batch = tuple(torch.cat([tensor] * 4) for tensor in batch)
    optimizer = torch.optim.AdamW(model.parameters())
    profile = profile_model(model, loss, batch, optimizer=optimizer, repeats=1)
    planner = training.Planner(profile, micro_batches=1)
    least, most = planner.floor_bytes, planner.curve()[-1].memory_bytes
    memory = int(least + (most - least) * part)
    step = TrainStep(model, loss, optimizer, memory=memory, micro_batches=1, profile=profile)
    step((batch[0].clone(), batch[1]))
    planned = step.report().plan.peak_bytes
    del profile, planner
    limit = base + RESERVE_BYTES + planned * 11 // 10
    limit_group(group, limit)
    files = process.begin_peak()
    for _ in range(2):
        step(batch)
    figures = {"base": base, "planned": planned, "limit": limit, "plain": most}
    said({**figures, "above": process.peak_bytes(files) - base, "recomputed": step.report().plan.recomputed_stages})


def check_steps(models):
    """Run each model at each budget in a group; return whether all survive."""
    ok = True
    print("| model, budget | plain MiB | planned | measured above the base | limit above the base |\n|-|-|-|-|-|")
    for name in models:
        for part in BUDGETS:
            code, found = in_group("step", None, ["step", name, str(part)])
            ok &= code == 0
            if code:
                print(f"| {name} {part} | FAIL: ended with {code} |")
                continue
            plain, planned, above = (found[-1][key] / MIB for key in ("plain", "planned", "above"))
            room = (found[-1]["limit"] - found[-1]["base"]) / MIB
            print(f"| {name} {part} | {plain:.1f} | {planned:.1f} | {above:.1f} | {room:.1f} |", flush=True)
    return ok


# A loader and a step under one number


class Shifted(nn.Module):
    """Takes the rows of a file: a window of tokens and the one behind it."""

    def __init__(self):
        super().__init__()
        layers = [Attention(128, 4, True) for _ in range(12)]
        self.net = nn.Sequential(Tokens(VOCABULARY, LENGTH, 128), *layers, nn.Linear(128, VOCABULARY))

    def forward(self, rows):
        return self.net(rows[:, :-1])


def next_token(output, rows):
    return F.cross_entropy(output.flatten(0, 1), rows[:, 1:].flatten())


def training_setup(path):
    torch.manual_seed(0)
    model = Shifted()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    loader = tg.Loader(
        tg.mapped(path).rows(), batch_size=ROWS, memory=tg.Budget(8 * MIB), shuffle=True, seed=1, output="torch"
    )
    return loader, model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def plain_child(group, path, steps):
    """Train without Tidegate's step; prints what it takes above the base."""
    process.return_freed_blocks()
    base = warm()
    loader, model, optimizer = training_setup(path)
    losses = []
    said({"base": base})
    files = process.begin_peak()
    for number, batch in enumerate(loader):
        if number == int(steps):
            break
        optimizer.zero_grad(set_to_none=True)
        loss = next_token(model(batch["data"]), batch["data"])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    said({"losses": losses, "above": process.peak_bytes(files) - base})


def ours_child(group, path, steps, limits):
    """Train within one number; `limits` are numbers that it falls to, after every fourth step."""
    base = warm()
    loader, model, optimizer = training_setup(path)
    first, *falls = [int(limit) for limit in limits.split(",")]
    losses, plans, taken = [], [], []
    how = {"memory": first, "inputs": "data", "targets": "data"}
    with training_context(loader, model, next_token, optimizer, **how) as step:
        for number, batch in enumerate(loader):
            if number == int(steps):
                break
            if falls and number and number % 4 == 0:
                now = falls.pop(0)
                step.set_memory(now)
                taken.append(limit_group(group, base + now))
            losses.append(step(batch).item())
            plan = step.report().plan
            plans.append([len(plan.micro_batches), plan.recomputed_stages, plan.peak_bytes])
        report = step.report()
    found = {"losses": losses, "plans": plans, "taken": taken, "left": len(falls)}
    said({**found, "base": base, "above": report.measured_bytes, "report": str(report)})


def check_context(path, steps):
    """Check that the plain step is killed, and ours is not, nor where the limit falls."""
    code, found = in_group("plain", None, ["plain", str(path), str(steps)])
    if code:
        print(f"FAIL the plain step ended with {code}")
        return False
    base, plain, expected = found[0]["base"], found[-1]["above"], found[-1]["losses"]
    print(f"the plain step takes {plain / MIB:.1f} MiB above {base / MIB:.1f} MiB")
    half, third = plain // 2, plain // 3
    code, _ = in_group("plain", base + half, ["plain", str(path), str(steps)])
    ok = code == -signal.SIGKILL
    print(f"{'ok  ' if ok else 'FAIL'} in a group of base + {half / MIB:.1f} MiB it ends with {code}")
    for name, limits in (("half", [half]), ("falling", [plain, plain * 2 // 3, half, third])):
        arguments = ["ours", str(path), str(steps), ",".join(map(str, limits))]
        code, found = in_group(name, base + limits[0], arguments)
        if code:
            print(f"FAIL {name}: ended with {code}")
            ok = False
            continue
        last = found[-1]
        apart = max(abs(a - b) for a, b in zip(last["losses"], expected, strict=True))
        good = apart < 1e-6 * max(expected) and not last["left"] and all(s <= TAKEN_S for s in last["taken"])
        ok &= good
        print(
            f"{'ok  ' if good else 'FAIL'} {name}: limits {[round(size / MIB) for size in limits]} MiB, at most "
            f"{last['above'] / MIB:.1f} MiB above the base, losses within {apart:.1e}, limits taken after "
            f"{[round(s, 2) for s in last['taken']]} s"
        )
        print(f"     micro-batches, recomputed stages, planned bytes: {last['plans'][::4]}")
        print("\n".join(f"     {line}" for line in last["report"].splitlines()[-3:]))
    return ok


def in_group(name, limit, arguments):
    """Run a child of this program in a group; return how it ended and what it said."""
    group = Group(f"train-{name}", limit)
    command = [sys.executable, __file__, "--child", str(group.dir), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=lambda: enter(group.dir))
    group.close()
    if done.returncode > 0:
        print(done.stderr[-2000:], file=sys.stderr)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--child", nargs="+")
    given = parser.parse_args()
    if given.child:
        group, kind, *rest = given.child
        {"step": step_child, "plain": plain_child, "ours": ours_child}[kind](group, *map(_number, rest))
        return
    try:
        Group("probe").close()
    except OSError as error:
        print(f"SKIPPED: no memory control group can be made here ({error}); run as root")
        return
    ok = check_steps(given.models)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.npy")
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, (given.steps * ROWS, LENGTH + 1))
        np.save(path, tokens)
        ok &= check_context(path, given.steps)
    print("1 passed, 0 failed" if ok else "0 passed, 1 failed")
    sys.exit(0 if ok else 1)


def _number(text):
    return float(text) if text.replace(".", "", 1).isdigit() and "." in text else text


if __name__ == "__main__":
    main()
