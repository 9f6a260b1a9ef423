"""Master weights: parameters in half precision that are updated in float32."""

import copy
import functools

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import tidegate as tg  # noqa: E402
from tidegate.torch import TrainStep  # noqa: E402
from tidegate.torch.live import Live  # noqa: E402

OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=1e-2),
    "adamw": functools.partial(torch.optim.AdamW, lr=1e-3),
}


def made():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(12)], nn.Linear(64, 10))
    return model.to(torch.bfloat16), (torch.randn(32, 64).to(torch.bfloat16), torch.randint(10, (32,)))


def plain_steps(model, batch, kind, steps, clip_norm=None):
    """The loop by hand: an optimizer of float32 copies."""
    masters = [nn.Parameter(p.detach().float()) for p in model.parameters()]
    optimizer = OPTIMIZERS[kind](masters)
    for _ in range(steps):
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        for parameter, master in zip(model.parameters(), masters, strict=True):
            master.grad = parameter.grad.float()
        optimizer.step()
        model.zero_grad()
        with torch.no_grad():
            for parameter, master in zip(model.parameters(), masters, strict=True):
                parameter.copy_(master)
    return masters


def masters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_weights_are_those_of_the_loop_by_hand(kind, clip_norm):
    model, batch = made()
    expected = plain_steps(copy.deepcopy(model), batch, kind, 4, clip_norm)
    optimizer = OPTIMIZERS[kind](model.parameters())
    step = TrainStep(model, F.cross_entropy, optimizer, memory="1GiB", micro_batches=1, master_weights=True,
                     clip_norm=clip_norm)  # fmt: skip
    with Live([*model.parameters(), *masters_of(optimizer), *batch]) as live:
        for _ in range(4):
            step(batch)
    assert all(torch.equal(a, b) for a, b in zip(masters_of(optimizer), expected, strict=True))
    pairs = zip(model.parameters(), expected, strict=True)
    assert all(p.dtype == torch.bfloat16 and torch.equal(p, m.to(torch.bfloat16)) for p, m in pairs)
    plan = step.report().plan
    assert plan.peak["master weights"] == 4 * sum(p.numel() for p in model.parameters())
    assert live.peak <= plan.peak_bytes <= 1.1 * live.peak
    assert plan.gradients == "kept"
    if clip_norm is None:
        step.set_memory(plan.peak_bytes - 1)
        assert step.report().plan.gradients == "fused"
        with Live([*model.parameters(), *masters_of(optimizer), *batch]) as live:
            step(batch)
        assert live.peak <= step.report().plan.peak_bytes


def test_a_resumed_run_goes_on_bit_for_bit():
    model, batch = made()
    how = {"memory": "1GiB", "micro_batches": 1, "master_weights": True}
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    step = TrainStep(model, F.cross_entropy, optimizer, **how)
    for _ in range(3):
        step(batch)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), step.state_dict()))
    for _ in range(3):
        step(batch)
    again, _ = made()
    again.load_state_dict(saved[0])
    other = OPTIMIZERS["adamw"](again.parameters())
    resumed = TrainStep(again, F.cross_entropy, other, **how)
    other.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    for _ in range(3):
        resumed(batch)
    assert all(torch.equal(a, b) for a, b in zip(masters_of(optimizer), masters_of(other), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_where_there_are_none():
    model, batch = made()

    def step(net=model, kind=torch.optim.SGD, **options):
        optimizer = kind(net.parameters(), lr=0.1)
        return TrainStep(net, F.cross_entropy, optimizer, memory="1GiB", master_weights=True, **options)

    with pytest.raises(tg.ConfigError, match="no parameter is in bfloat16 or float16"):
        step(nn.Linear(4, 4))
    with pytest.raises(tg.ConfigError, match="a scaler looks for gradients at these"):
        step(scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(tg.ConfigError, match="master_weights"):
        TrainStep(model, F.cross_entropy, torch.optim.SGD(model.parameters()), memory="1GiB", master_weights=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()
    with pytest.raises(tg.ConfigError, match="the optimizer has stepped already, in half precision"):
        TrainStep(model, F.cross_entropy, optimizer, memory="1GiB", master_weights=True)


def test_weights_that_are_loaded_into_the_model_count():
    model, batch = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = TrainStep(model, F.cross_entropy, optimizer, memory="1GiB", master_weights=True)
    step(batch)
    model.load_state_dict({name: torch.zeros_like(value) for name, value in model.state_dict().items()})
    step(batch)
    assert all(not p.any() for p in model.parameters())


def test_parameters_of_the_loss_and_scalers_that_are_off():
    model, batch = made()
    warmth = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([*model.parameters(), warmth], lr=0.5)

    def loss(output, wanted):
        return F.cross_entropy(output.float() * warmth, wanted)

    off = torch.amp.GradScaler("cpu", enabled=False)
    step = TrainStep(model, loss, optimizer, memory="1GiB", master_weights=True, scaler=off)
    losses = [step(batch).item() for _ in range(5)]
    assert losses[-1] < losses[0]
    assert warmth.item() != 1.0


def test_an_error_leaves_the_optimizer_and_another_step_takes_the_weights_over():
    model, batch = made()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    with pytest.raises(tg.ConfigError, match="noise_scale"):
        TrainStep(model, F.cross_entropy, optimizer, memory="1GiB", master_weights=True, noise_scale=5)
    assert masters_of(optimizer)[0].dtype == torch.bfloat16
    for _ in range(2):
        step = TrainStep(model, F.cross_entropy, optimizer, memory="1GiB", master_weights=True)
        step(batch)
        assert step.report().plan.peak["master weights"] == 4 * sum(p.numel() for p in model.parameters())
    assert all(p.dtype == torch.float32 for p in masters_of(optimizer))
