"""Training on several gloo ranks of this machine next to its plans. `make bench-training-ranks`.

Flow: «topk»: a small token model on the text of docs/, two ranks -> three dense seeds, 1 % top-k
with error feedback and without -> the loss at the end, bytes sent next to a dense ring. «fsdp»:
`fully_shard` on 2 and 4 ranks -> bytes of a rank's states and of its step, next to the plan's.
«pipeline»: 1F1B on two ranks by the plan's cut -> gradients next to the plain step's, micro-batches
in flight next to the plan's.
Memory: a model of at most 12 million parameters a rank.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import weakref
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

from tidegate import training
from tidegate.torch import TopKState, profile_model, topk_hook
from tidegate.torch.live import Live, storage_key

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python" / "tests"))
from test_train_step import Attention, Tokens, token_loss

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20


def joined(rank, ranks, port):
    """Join the ranks of this machine."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update(address, RANK=str(rank), WORLD_SIZE=str(ranks))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)


def on_ranks(work, ranks, *arguments):
    """Run a function on ranks; return what that of rank 0 returned."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_rank, (ranks, port, work, results, arguments), nprocs=ranks)
    return results.get()


def _rank(rank, ranks, port, work, results, arguments):
    joined(rank, ranks, port)
    found = work(rank, ranks, *arguments)
    if rank == 0:
        results.put(found)
    dist.destroy_process_group()


# «topk»


def text_of_the_docs():
    """Return the bytes of the pages as ids."""
    pages = b"\n".join(path.read_bytes() for path in sorted((ROOT / "docs").glob("*.md")))
    return torch.frombuffer(bytearray(pages), dtype=torch.uint8).long()


def token_model(width, layers, length):
    blocks = [Attention(width, 4, True) for _ in range(layers)]
    return nn.Sequential(Tokens(256, length, width), *blocks, nn.Linear(width, 256))


def train_topk(rank, ranks, seed, steps, how):
    """Train on the text; return the mean loss of the last steps, and the bytes that were sent."""
    length, rows, ids = 64, 8, text_of_the_docs()
    torch.manual_seed(seed)
    model = DistributedDataParallel(token_model(64, 2, length))
    state = None
    if how is not None:
        state = TopKState(0.01, warm_up=steps // 10, error_feedback=how)
        model.register_comm_hook(state, topk_hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.7)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draws = torch.Generator().manual_seed(1000 * seed + rank)
    losses, after_warm_up = [], (0, 0)
    for step in range(steps):
        if state is not None and step == steps // 10:
            after_warm_up = state.sent_bytes, state.dense_bytes
        begins = torch.randint(len(ids) - length - 1, (rows,), generator=draws)
        window = torch.stack([ids[at : at + length + 1] for at in begins])
        loss = token_loss(model(window[:, :-1]), window[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / ranks)
    sent = None
    if state is not None:
        sent = {
            "of dense": state.dense_bytes / state.sent_bytes,
            "of dense after warm-up": (state.dense_bytes - after_warm_up[1]) / (state.sent_bytes - after_warm_up[0]),
        }
    return {"loss": statistics.mean(losses[-steps // 10 :]), "sent": sent}


def topk(given):
    dense = [on_ranks(train_topk, 2, seed, given.steps, None)["loss"] for seed in range(3)]
    with_feedback = [on_ranks(train_topk, 2, seed, given.steps, True) for seed in range(3)]
    without = [on_ranks(train_topk, 2, seed, given.steps, False) for seed in range(3)]
    print(f"dense, three seeds: {[round(loss, 4) for loss in dense]}")
    for name, runs in (("with", with_feedback), ("without", without)):
        losses = [round(run["loss"], 4) for run in runs]
        sent = runs[0]["sent"]
        print(f"top 1 % {name} error feedback: {losses}; dense bytes / sent: {sent}")
    return {"dense": dense, "with": with_feedback, "without": without}


# «fsdp»


def gpt(width, layers, vocabulary, length):
    return nn.Sequential(
        Tokens(vocabulary, length, width), *[Attention(width, 4, True) for _ in range(layers)],
        nn.Linear(width, vocabulary),
    )  # fmt: skip


def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class Resized(Live):
    """Looks at the sizes of all storages again: gathered parameters are freed by a size of 0."""

    def add(self, tensor):
        super().add(tensor)
        if not hasattr(self, "storages"):
            self.storages = weakref.WeakValueDictionary()
        if tensor.layout == torch.strided:
            self.storages[storage_key(tensor)] = tensor.untyped_storage()

    def __torch_dispatch__(self, *arguments):
        for key, storage in list(self.storages.items()):
            if key in self._sizes and self._sizes[key] != storage.nbytes():
                self.now += storage.nbytes() - self._sizes[key]
                self._sizes[key] = storage.nbytes()
        return super().__torch_dispatch__(*arguments)


def shard(rank, ranks):
    """Train a sharded model; return what this rank holds and takes, next to the plan."""
    torch.manual_seed(0)
    model, ids = gpt(256, 12, 4096, 256), torch.randint(4096, (2, 256))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    # The plan's batch is that of all ranks.
    every = ids.repeat(ranks, 1)
    profile = profile_model(model, token_loss, (every, every), optimizer=optimizer, repeats=1)
    parameters = sum(p.numel() for p in model.parameters())
    plan = training.sharding(parameters, ranks, 3)
    ways = training.compare(profile, ranks, memory="64GiB", link="10GB", micro_batches=1)
    way = next(way for way in ways if way.name == "sharded")
    mesh = init_device_mesh("cpu", (ranks,))
    for module in [*model, model]:
        fully_shard(module, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)

    def step():
        loss = token_loss(model(ids), ids)
        loss.backward()
        optimizer.step()
        held = [local(p.grad) for p in model.parameters()]
        optimizer.zero_grad(set_to_none=True)
        return held

    gradients = step()
    states = [local(value) for state in optimizer.state.values() for value in state.values()]
    shards = [local(p) for p in model.parameters()]
    held = sum(t.numel() * t.element_size() for t in [*shards, *gradients, *states])
    del gradients
    with Resized([*shards, *states, ids]) as live:
        step()
    return {"ranks": ranks, "planned states": plan.bytes, "states": held, "planned": way.bytes, "peak": live.peak}


def fsdp(given):
    rows = [on_ranks(shard, ranks) for ranks in (2, 4)]
    for row in rows:
        states, whole = row["states"] / row["planned states"], row["peak"] / row["planned"]
        print(
            f"{row['ranks']} ranks: states {row['states'] / MIB:.2f} MiB, planned {row['planned states'] / MIB:.2f} "
            f"({states:.3f}); step {row['peak'] / MIB:.1f}, planned {row['planned'] / MIB:.1f} ({whole:.3f})"
        )
    return rows


# «pipeline»


class Counted(nn.Module):
    """A part of the model that counts the micro-batches whose backward has not come yet."""

    def __init__(self, parts):
        super().__init__()
        self.parts, self.now, self.most = nn.Sequential(*parts), 0, 0

    def forward(self, x):
        y = self.parts(x)
        self.now += 1
        self.most = max(self.most, self.now)
        y.register_hook(self.back)
        return y

    def back(self, gradient):
        self.now -= 1


def pipe(rank, ranks, kind, micro_batches):
    """Take a step in a pipeline; return how far gradients are from the plain step's."""
    torch.manual_seed(0)
    model, rows = gpt(64, 6, 500, 64).eval(), 16
    ids = torch.randint(500, (rows, 64))
    piece = ids[: rows // micro_batches]
    profile = profile_model(model, token_loss, (piece, piece), repeats=1)
    blocks = training.Chain(
        [training.Stage(output_bytes=1, saved_bytes=8, forward_time=1, backward_time=2)] * len(model)
    )
    cut = training.split(blocks, ranks, micro_batches, schedule="gpipe" if kind is ScheduleGPipe else "1f1b")
    token_loss(model(ids), ids).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    own = cut.devices[rank]
    part = Counted(model[own.first - 1 : own.last])
    example = piece if rank == 0 else torch.zeros(piece.shape + (64,))
    stage = PipelineStage(part, rank, ranks, torch.device("cpu"), input_args=(example,))
    schedule = kind(stage, n_microbatches=micro_batches, loss_fn=token_loss)
    # The first step also runs forward once for the shapes.
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        part.now = part.most = 0
        schedule.step(ids) if rank == 0 else schedule.step(target=ids)
    places = {id(p): i for i, p in enumerate(model.parameters())}
    apart = max(
        ((p.grad - expected[places[id(p)]]).norm() / expected[places[id(p)]].norm()).item() for p in part.parameters()
    )
    figures = torch.tensor([apart, part.most, own.in_flight], dtype=torch.float64)
    every = [torch.zeros_like(figures) for _ in range(ranks)]
    dist.all_gather(every, figures)
    return {"bubble": cut.bubble, "ranks": [row.tolist() for row in every], "profile": len(profile.chain.stages)}


def pipeline(given):
    found = {}
    for kind in (Schedule1F1B, ScheduleGPipe):
        found[kind.__name__] = row = on_ranks(pipe, 2, kind, 8)
        for rank, (apart, most, planned) in enumerate(row["ranks"]):
            print(
                f"{kind.__name__}, rank {rank}: gradients {apart:.1e} apart, {most:.0f} micro-batches in flight, "
                f"{planned:.0f} planned; bubble {row['bubble']:.3f}"
            )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["topk", "fsdp", "pipeline"])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "training_ranks.json")
    given = parser.parse_args()
    runs = {"topk": topk, "fsdp": fsdp, "pipeline": pipeline}
    found = json.loads(given.out.read_text()) if given.out.exists() else {}
    found |= {"torch": torch.__version__, **{what: runs[what](given) for what in given.what}}
    given.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
