"""`tidegate.torch.topk_hook`: entries as bytes, what is not sent, and two ranks of torch's DDP."""

import os
import socket
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

import tidegate as tg  # noqa: E402
from tidegate.torch import TopKState  # noqa: E402
from tidegate.torch.topk import decoded, encoded  # noqa: E402


@pytest.mark.parametrize(("form", "apart"), [("int8", 1 / 254), ("float16", 1e-3), ("float32", 0)])
def test_entries_come_back(form, apart):
    torch.manual_seed(0)
    for count in (1, 5, 1000, 300_000):
        values = torch.randn(count)
        places = values.abs().topk(max(1, count // 100)).indices.sort().values
        payload = encoded(places, values[places], form)
        back, found = decoded(payload, len(places), form, torch.float32)
        assert torch.equal(back, places)
        assert (found - values[places]).abs().max() <= apart * values.abs().max() + 1e-7
    # 4 bytes a value, against what is sent of 1 %.
    assert 4 * count / payload.numel() >= {"int8": 160, "float16": 115, "float32": 70}[form]
    far = torch.tensor([0, 127, 128, 300, 2**31, 2**34])
    assert torch.equal(decoded(encoded(far, torch.ones(6), "float32"), 6, "float32", torch.float32)[0], far)


def test_what_is_not_sent_is_sent_later():
    weights = [torch.zeros(300), torch.zeros(100)]
    state = TopKState(0.1)
    sums, sent = torch.zeros(400), torch.zeros(400)
    torch.manual_seed(0)
    for _ in range(40):
        gradient = torch.randn(400)
        chosen = state.chosen(gradient.clone(), weights)
        places, values = decoded(chosen.payload, chosen.count, "int8", torch.float32)
        state.keep(chosen, weights)
        sums += gradient
        sent[places] += values
    unsent = torch.cat(state.state_dict(weights)["unsent"])
    assert torch.allclose(sent + unsent, sums, atol=1e-4)
    # In other buckets each parameter has its own; so it has in another run.
    one, other = (_unsent(state, [weights[i]]) for i in (1, 0))
    assert torch.equal(torch.cat([other, one]), unsent)
    resumed = TopKState(0.1)
    resumed.load_state_dict(state.state_dict(weights), weights)
    assert torch.equal(_unsent(resumed, weights), unsent)
    for wrong in ({}, {**state.state_dict(weights), "unsent": [None]}, state.state_dict(weights[::-1])):
        with pytest.raises(tg.StateError):
            resumed.load_state_dict(wrong, weights)
    forgets = TopKState(0.1, error_feedback=False)
    forgets.keep(forgets.chosen(torch.randn(400), weights), weights)
    assert forgets.state_dict(weights)["unsent"] == [None, None]


def _unsent(state, weights):
    """What would be sent of gradients of 0, were all sent."""
    chosen = TopKState(1.0, "float32")
    chosen.load_state_dict(state.state_dict(weights), weights)
    found = chosen.chosen(torch.zeros(sum(w.numel() for w in weights)), weights)
    return decoded(found.payload, found.count, "float32", torch.float32)[1]


@pytest.mark.parametrize("form", ["int8", "float16", "float32"])
def test_a_gradient_that_is_not_finite_is_seen_and_not_kept(form):
    weights, state = [torch.zeros(400)], TopKState(0.1, form, momentum=0.9)
    state.keep(state.chosen(torch.ones(400), weights), weights)
    before = state.state_dict(weights)
    bad = torch.ones(400)
    bad[7] = float("inf")
    chosen = state.chosen(bad, weights)
    assert not torch.isfinite(decoded(chosen.payload, chosen.count, form, torch.float32)[1]).all()
    state.keep(chosen, weights)
    after = state.state_dict(weights)
    assert all(torch.equal(before[name][0], after[name][0]) for name in ("unsent", "velocity"))
    # A finite value that float16 does not hold is sent in parts.
    state.keep(state.chosen(torch.full((400,), 1e5), weights), weights)
    assert torch.isfinite(state.state_dict(weights)["unsent"][0]).all()


def test_momentum_is_applied_before_entries_are_chosen():
    weight, state = [torch.zeros(100)], TopKState(0.02, "float32", momentum=0.9)
    first = torch.zeros(100)
    first[:4] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    places, values = decoded(*_sent(state, first, weight))
    assert places.tolist() == [0, 1]
    assert values.tolist() == [4, 3]
    # What was not sent grew by its momentum: 2 + (0.9 * 2 + 0); what was sent has none.
    places, values = decoded(*_sent(state, torch.zeros(100), weight))
    assert places.tolist() == [2, 3]
    assert values.tolist() == pytest.approx([3.8, 1.9])


def _sent(state, gradient, parameters):
    chosen = state.chosen(gradient, parameters)
    state.keep(chosen, parameters)
    return chosen.payload, chosen.count, state.values, torch.float32


def test_the_part_falls_in_the_warm_up():
    state = TopKState(0.01, warm_up=10)
    parts = []
    for state.steps in range(12):
        parts.append(state.part())
    assert parts[0] == 0.25
    assert parts == sorted(parts, reverse=True)
    assert parts[10:] == [0.01, 0.01]
    for wrong in ({"ratio": 0}, {"ratio": 2}, {"values": "int4"}, {"momentum": -1}, {"warm_up": -1}):
        with pytest.raises(tg.ConfigError):
            TopKState(**wrong)


RANK = """
import json, os, sys
import torch, torch.distributed as dist
from tidegate.torch import TopKState, topk_hook
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
net = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8)))
state = TopKState(float(sys.argv[1]), "float32")
net.register_comm_hook(state, topk_hook)
draws, means = torch.Generator().manual_seed(rank), []
for _ in range(4):
    net.zero_grad()
    net(torch.randn(32, 64, generator=draws)).square().mean().backward()
    means.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
found = {"means": means, "sent": state.sent_bytes, "dense": state.dense_bytes, "steps": state.steps}
torch.save(found, sys.argv[2] + str(rank))
"""


def ran(ratio, folder):
    """Run two ranks; return what each saved."""
    out = str(folder / f"{ratio}-")
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    environ = {**os.environ, **address, "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", RANK, str(ratio), out]
    processes = [subprocess.Popen(command, env={**environ, "RANK": rank}) for rank in "01"]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return [torch.load(f"{out}{r}", weights_only=True) for r in "01"]


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_two_ranks_agree_and_send_less(tmp_path):
    everything, few = ran(1.0, tmp_path), ran(0.01, tmp_path)
    for ranks in (everything, few):
        for one, other in zip(ranks[0]["means"], ranks[1]["means"], strict=True):
            assert torch.equal(one, other)
        assert ranks[0]["steps"] == 4
    # All entries are the mean of the gradients; few of them are not more than they say.
    assert (few[0]["means"][0] != 0).sum() <= 2 * 47
    assert few[0]["dense"] / few[0]["sent"] > 50
    sums = [torch.stack(ranks[0]["means"]).sum(0) for ranks in (everything, few)]
    assert torch.nn.functional.cosine_similarity(*sums, dim=0) > 0.3
