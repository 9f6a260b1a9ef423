"""Recomputation next to torch's own, at no more than its peak. `make bench-training`.

Flow: models -> `checkpoint_sequential` with several numbers of segments, selective checkpoints, and
compiled models with an `activation_memory_budget` -> the peak of live tensors -> the plan within
that peak -> CPU seconds of forward and backward, in interleaved rounds on one thread -> ours /
theirs, the fastest round of each. Before that, a chain of 256 blocks in 1/25 of its activations,
and what an estimate of the noise scale costs.
Memory: the plain steps of the models, at most 0.6 GiB.
"""

import argparse
import functools
import itertools
import json
import math
import statistics
import sys
import time
from pathlib import Path

import torch
import torch._functorch.config
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, create_selective_checkpoint_contexts

from tidegate import BudgetError, training
from tidegate.torch import TrainStep
from tidegate.torch.graph import Stages
from tidegate.torch.live import Live
from tidegate.torch.profile import profile_of
from tidegate.torch.recompute import Runner

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python" / "tests"))
from test_train_step import Attention, Mean, Patches, Residual, Tokens, Unet, token_loss, twice

MIB = 1 << 20
# What selective checkpoints keep: what takes long to compute again.
PRODUCTS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]

BACKENDS = {"compiled": "inductor", "compiled, torch's kernels": "aot_eager_decomp_partition"}


class Flat(nn.Module):
    def forward(self, x):
        return x.flatten(1)


def made(name):
    """Return a chain of modules, a loss and a batch."""
    torch.manual_seed(0)
    labels, ids = torch.randint(10, (16,)), torch.randint(4096, (2, 256))
    if name == "mlp":
        blocks = [*[Residual(256, 1024) for _ in range(24)], nn.Linear(256, 10)]
        return blocks, F.cross_entropy, (torch.randn(512, 256), torch.randint(10, (512,)))
    if name == "resnet18":
        net = torchvision.models.resnet18(num_classes=10)
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        blocks = [stem, *net.layer1, *net.layer2, *net.layer3, *net.layer4, net.avgpool, Flat(), net.fc]
        return blocks, F.cross_entropy, (torch.randn(16, 3, 160, 160), labels)
    if name == "unet":
        blocks = [nn.Conv2d(3, 24, 3, padding=1), Unet(24, 3), twice(24, 24), nn.Conv2d(24, 4, 1)]
        return blocks, F.cross_entropy, (torch.randn(4, 3, 128, 128), torch.randint(4, (4, 128, 128)))
    if name == "vit":
        blocks = [Patches(192, 8), *[Attention(192, 3, False) for _ in range(8)], Mean(), nn.Linear(192, 10)]
        return blocks, F.cross_entropy, (torch.randn(16, 3, 112, 112), labels)
    layers = [Attention(256, 4, True) for _ in range(12)]
    return [Tokens(4096, 256, 256), *layers, nn.Linear(256, 4096)], token_loss, (ids, ids)


def peak(run, known):
    """Return the bytes of live tensors at the peak of a step."""
    with Live(known) as live:
        run().backward()
    return live.peak


def allocated(run, known):
    """Return the same by what the allocator notes: compiled code calls no operations of torch."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as noted:
        run().backward()
    events = noted.profiler.kineto_results.events()
    upto = itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]")
    return max(upto) + sum({t.data_ptr(): t.untyped_storage().nbytes() for t in known}.values())


def seconds(run, model):
    """Return the CPU seconds of forward and backward."""
    model.zero_grad(set_to_none=True)
    began = time.process_time()
    run().backward()
    return time.process_time() - began


class Compared:
    """One model: its plain step, torch's segments, and plans within their peaks."""

    def __init__(self, name):
        self.name = name
        self.blocks, self.loss, (self.x, self.y) = made(name)
        self.model = nn.Sequential(*self.blocks)
        self.known = [*self.model.parameters(), *self.model.buffers(), self.x, self.y]
        self.stages = Stages(self.model, [self.x])
        profile, _ = profile_of(self.stages, self.loss, [self.x], [self.y], None, 5)
        self.planner = training.Planner(profile, micro_batches=1)
        self.most = peak(self.plain, self.known)

    def plain(self):
        return self.loss(self.model(self.x), self.y)

    def theirs(self, segments):
        return self.loss(checkpoint_sequential(self.model, segments, self.x, use_reentrant=False), self.y)

    def selective(self):
        """Each block in a checkpoint that keeps products, as torch's selective checkpoints do."""
        keep = functools.partial(create_selective_checkpoint_contexts, PRODUCTS)
        x = self.x
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False, context_fn=keep)
        return self.loss(x, self.y)

    def compiled(self, backend):
        """The compiled model, which recomputes so that 0.3 of what it saves is left."""
        torch._dynamo.reset()
        torch._functorch.config.activation_memory_budget = 0.3
        model = torch.compile(self.model, backend=backend)

        def run():
            return self.loss(model(self.x), self.y)

        run().backward()
        return run

    def row(self, segments, rounds):
        """Return peaks and times of torch's way and of the plan within its peak."""
        count = allocated if segments in BACKENDS else peak
        if segments in BACKENDS:
            theirs = self.compiled(BACKENDS[segments])
        else:
            theirs = self.selective if segments == "selective" else functools.partial(self.theirs, segments)
        self.model.zero_grad(set_to_none=True)
        row = {"model": self.name, "segments": segments, "plain": self.most, "theirs": count(theirs, self.known)}
        try:
            plan = self.planner.plan(row["theirs"])
        except BudgetError:
            return {**row, "floor": self.planner.floor_bytes}
        runner = Runner(self.stages, self.loss, plan.schedule)
        ours = functools.partial(runner, [self.x], [self.y])
        self.model.zero_grad(set_to_none=True)
        reached = peak(ours, self.known)
        runs = [[seconds(run, self.model) for run in (self.plain, theirs, ours)] for _ in range(rounds + 1)][1:]
        return {**row, "ours": reached, "predicted": plan.time / plan.plain_time, "runs": runs}


def line(row):
    """Return a row of the table."""
    begin = f"| {row['model']}, {row['plain'] / MIB:.1f} | {row['segments']} | {row['theirs'] / MIB:.1f}"
    if "floor" in row:
        return f"{begin} | below the floor, {row['floor'] / MIB:.1f} | |"
    # The fastest round of each: another load on the machine only adds.
    plain, theirs, ours = (min(times) for times in zip(*row["runs"], strict=True))
    times = f"×{theirs / plain:.3f} | {row['ours'] / MIB:.1f}, ×{ours / plain:.3f}"
    return f"{begin}, {times} | {ours / theirs:.3f} |"


def deep(rounds, dropout, blocks=256, part=25):
    """Return the activations and the time of a deep chain, next to the plain step's."""
    torch.manual_seed(0)
    model = nn.Sequential(*[Residual(64, 256) for _ in range(blocks)], nn.Linear(64, 10))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    x, y = torch.randn(512, 64), torch.randint(10, (512,))
    stages = Stages(model, [x])
    profile, _ = profile_of(stages, F.cross_entropy, [x], [y], None, 3)
    known = [*model.parameters(), x, y]
    fixed = sum(held.bytes for held in profile.held) + profile.input_bytes
    fixed += sum(p.numel() * p.element_size() for p in model.parameters())

    def plain():
        return F.cross_entropy(model(x), y)

    activations = peak(plain, known) - fixed
    model.zero_grad(set_to_none=True)
    plan = training.Planner(profile, micro_batches=1).plan(fixed + activations // part)
    ours = functools.partial(Runner(stages, F.cross_entropy, plan.schedule), [x], [y])
    reached = peak(ours, known) - fixed
    runs = [[seconds(run, model) for run in (plain, ours)] for _ in range(rounds + 1)][1:]
    ratio = statistics.median(run[1] / run[0] for run in runs)
    part = f"{activations / MIB:.1f} MiB, ours {reached / MIB:.2f} (1/{activations / reached:.1f})"
    predicted = plan.time / plan.plain_time
    print(f"{blocks} blocks, dropout {dropout}: activations {part}, time ×{ratio:.2f}, predicted ×{predicted:.2f}")
    return {"blocks": blocks, "plain": activations, "ours": reached, "runs": runs}


def noise(rounds):
    """Return the time of steps that estimate the noise scale, next to steps that do not."""
    blocks, loss, batch = made("gpt")
    batch = tuple(tensor.repeat(2, 1) for tensor in batch)
    model = nn.Sequential(*blocks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    profile, _ = profile_of(Stages(model, [batch[0]]), loss, [batch[0]], [batch[1]], optimizer, 1)
    # So that both run in four micro-batches, and recompute nothing.
    profile.overhead_time = 0.0
    least = training.Planner(profile, batch=4, micro_batches=4, recompute=False).floor_bytes
    how = {"memory": least, "micro_batches": 4, "profile": profile}
    steps = [TrainStep(model, loss, optimizer, noise_scale=decay, **how) for decay in (None, 0.99)]
    runs = []
    for _ in range(rounds + 1):
        row = []
        for step in steps:
            began = time.process_time()
            step(batch)
            row.append(time.process_time() - began)
        runs.append(row)
    ratio = statistics.median(run[1] / run[0] for run in runs[1:])
    print(f"noise scale in {len(steps[1].report().plan.micro_batches)} micro-batches of a GPT: time ×{ratio:.3f}")
    return runs[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mlp", "resnet18", "unet", "vit", "gpt"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench/results/training.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    extra = {"deep": [deep(given.rounds, dropout) for dropout in (0.0, 0.1)], "noise": noise(4 * given.rounds)}
    print("| model, MiB plain | segments | theirs: MiB, time | ours: MiB, time | ours / theirs |\n|-|-|-|-|-|")
    for name in given.models:
        compared = Compared(name)
        count = len(compared.blocks)
        for segments in [*sorted({2, round(math.sqrt(count)), count}), "selective", *BACKENDS]:
            rows.append(compared.row(segments, given.rounds))
            print(line(rows[-1]), flush=True)
    given.out.write_text(json.dumps({"torch": torch.__version__, "rounds": given.rounds, "rows": rows, **extra}))


if __name__ == "__main__":
    main()
