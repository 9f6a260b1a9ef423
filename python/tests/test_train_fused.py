"""The optimizer's step in backward: the plain loop's parameters, in less memory."""

import functools

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from test_train_step import made, timed  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402

import tidegate as tg  # noqa: E402
from tidegate import training  # noqa: E402
from tidegate.torch import TrainStep, profile_model  # noqa: E402
from tidegate.torch.fused import own_parameters, steps_alone  # noqa: E402
from tidegate.torch.graph import Stages  # noqa: E402
from tidegate.torch.live import Live  # noqa: E402

OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": functools.partial(torch.optim.AdamW, lr=1e-3, amsgrad=True),
    "foreach": functools.partial(torch.optim.Adam, lr=1e-3, foreach=True),
}
if hasattr(torch.optim, "Adafactor"):
    OPTIMIZERS["adafactor"] = functools.partial(torch.optim.Adafactor, lr=1e-3)


def plain_steps(model, loss, batch, optimizer, scheduler):
    for number in range(3):
        torch.manual_seed(number)
        optimizer.zero_grad(set_to_none=True)
        loss(model(batch[0]), batch[1]).backward()
        optimizer.step()
        scheduler.step()
    return [p.detach().clone() for p in model.parameters()]


def peak_of_steps(step, batch, scheduler):
    """Take the same steps within the budget; return the peak of live tensors."""
    with Live([*step.model.parameters(), *step.model.buffers(), *batch]) as live:
        for number in range(3):
            torch.manual_seed(number)
            step(batch)
            scheduler.step()
    return live.peak


def halved(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)


@pytest.mark.parametrize("name", ["mlp", "gpt", "lstm"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_parameters_are_those_of_the_plain_loop_in_less_memory(name, kind):
    model, loss, batch = made(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = OPTIMIZERS[kind](model.parameters())
    expected = plain_steps(model, loss, batch, optimizer, halved(optimizer))
    model.load_state_dict(state)
    optimizer = OPTIMIZERS[kind](model.parameters())
    scheduler = halved(optimizer)
    profile = timed(profile_model(model, loss, batch, optimizer=optimizer, repeats=1))
    kept = training.Planner(profile, micro_batches=1).floor_bytes
    step = TrainStep(model, loss, optimizer, memory=kept - 1, micro_batches=1, profile=profile)
    most = peak_of_steps(step, batch, scheduler)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected, strict=True))
    plan = step.report().plan
    assert plan.gradients == "fused"
    assert most <= plan.peak_bytes < kept
    # With room for all gradients they stay until the end, as in a plain loop.
    step.set_memory("1GiB")
    assert step.report().plan.gradients == "kept"


class Tied(nn.Module):
    """A table that is also the last layer, whose gradient comes in two parts."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(64, 32)
        self.inner = nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(24)])

    def forward(self, ids):
        return F.linear(self.inner(self.table(ids)), self.table.weight)


def penalty(model, output, wanted):
    """A loss that uses the parameters of a stage too."""
    return F.cross_entropy(output, wanted) + model.inner[2][0].weight.square().mean()


def test_parameters_that_several_stages_use_are_updated_once_backward_is_over():
    torch.manual_seed(0)
    model = Tied()
    loss = functools.partial(penalty, model)
    batch = torch.randint(64, (16,)), torch.randint(64, (16,))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    expected = plain_steps(model, loss, batch, optimizer, halved(optimizer))
    model.load_state_dict(state)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    scheduler = halved(optimizer)
    profile = timed(profile_model(model, loss, batch, optimizer=optimizer, repeats=1))
    kept = training.Planner(profile, micro_batches=1).floor_bytes
    step = TrainStep(model, loss, optimizer, memory=kept - 1, micro_batches=1, profile=profile)
    most = peak_of_steps(step, batch, scheduler)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected, strict=True))
    plan = step.report().plan
    assert (plan.gradients, plan.peak["shared gradients"]) == ("fused", 4 * (64 * 32 + 32 * 32 + 32))
    assert most <= plan.peak_bytes


class Together(torch.optim.SGD):
    """Steps by the norm of all gradients, as some optimizers do."""

    def step(self, closure=None):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm() if gradients else 1.0
        for gradient in gradients:
            gradient /= norm
        return super().step(closure)


def test_where_the_optimizer_cannot_step_in_backward():
    layers = [nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(16)]
    model = nn.Sequential(*layers, nn.Linear(32, 4))
    batch = torch.randn(8, 32), torch.randint(4, (8,))

    def step(kind=torch.optim.SGD, wanted=True, **options):
        optimizer = kind(model.parameters(), lr=0.1)
        how = {"memory": "1MiB", "micro_batches": 1, "optimizer_in_backward": wanted, **options}
        return TrainStep(model, F.cross_entropy, optimizer, **how)

    with pytest.raises(tg.ConfigError, match="clip_norm needs the norm of all gradients"):
        step(clip_norm=1.0)
    with pytest.raises(tg.ConfigError, match="a scaler skips a step"):
        step(scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(tg.ConfigError, match="Together does not treat parameters one by one"):
        step(Together)
    with pytest.raises(tg.ConfigError, match="optimizer_in_backward"):
        step(wanted="yes")
    # By default it is left out there.
    for taken in (step(Together, None), step(wanted=None, clip_norm=1.0), step(wanted=False)):
        taken(batch)
        assert not any(way.fused for way in taken._last().planners.ways)
    taken = step()
    taken(batch)
    floor = min(training.Planner(w.profile, micro_batches=1, fused=w.fused).floor_bytes
                for w in taken._last().planners.ways)  # fmt: skip
    with pytest.raises(tg.BudgetError, match=f"the step takes at least {floor} bytes"):
        taken.set_memory(floor - 1)
    taken.set_memory(floor)
    # A loss that is not a number is seen before a parameter changes.
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(tg.DataError, match="the optimizer has not stepped"):
        taken((batch[0] * float("nan"), batch[1]))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    taken.optimizer.register_step_post_hook(lambda *_: None)
    with pytest.raises(tg.ConfigError, match="would run for every parameter"):
        taken(batch)


class Clipped(torch.optim.SGD):
    """Is made with what its groups do not have."""

    def __init__(self, params, lr=0.1, most=None):
        super().__init__(params, lr=lr)
        self.most = most


class Counting(torch.optim.SGD):
    """Counts steps in its groups."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["taken"] = group.get("taken", 0) + 1
        return super().step(closure)


def test_optimizers_that_are_more_than_their_groups_step_once():
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    drawn = torch.get_rng_state()
    assert steps_alone(torch.optim.AdamW(model.parameters()))
    assert torch.equal(drawn, torch.get_rng_state())
    assert not steps_alone(Clipped(model.parameters(), most=0.5))
    assert not steps_alone(Counting(model.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    halved(optimizer)
    assert steps_alone(optimizer)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    plain.step = lambda closure=None: None
    assert not steps_alone(plain)
    handle = register_optimizer_step_post_hook(lambda *_: None)
    assert not steps_alone(optimizer)
    handle.remove()


def test_two_parameters_of_one_storage_wait_until_backward_is_over():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(24)])
    model[20][0].weight = nn.Parameter(model[3][0].weight.data)
    batch = torch.randn(16, 32), torch.randn(16, 32)
    profile = profile_model(model, F.mse_loss, batch, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    stages = Stages(model, [batch[0]])
    own = {id(p) for stage in own_parameters(profile, stages) for p in stage}
    assert {id(model[3][0].weight), id(model[20][0].weight)} & own == set()
    assert id(model[5][0].weight) in own
