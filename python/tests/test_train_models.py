"""Models that a plan could train wrongly: each trains as the plain step does, or is refused."""

import copy
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_train_step import token_loss  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import tidegate as tg  # noqa: E402
from tidegate import training  # noqa: E402
from tidegate.torch import TrainStep, profile_model  # noqa: E402
from tidegate.torch.live import Live  # noqa: E402

WIDTH = 32


class Part(nn.Module):
    """A linear layer, and what a test makes of it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)


class NoGrad(Part):
    def forward(self, x):
        with torch.no_grad():
            found = self.layer(x)
        return x + found


class Double(Part):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return x + self.layer(x.float())


class LayerDrop(Part):
    def forward(self, x):
        return x if random.random() < 0.5 else x + self.layer(x)


class TorchDrop(Part):
    def forward(self, x):
        return x if torch.rand(()) < 0.5 else x + self.layer(x)


class ByType(Part):
    def forward(self, x):
        return self.layer(x) * 3 if torch.is_tensor(x) else x


class Stateful(Part):
    def __init__(self):
        super().__init__()
        self.last = None

    def forward(self, x):
        found = self.layer(x) if self.last is None else self.layer(x) + self.last
        self.last = found.detach()
        return found.tanh()


class Scaled(Part):
    def __init__(self):
        super().__init__()
        self.scale = 4.0

    def forward(self, x):
        self.scale *= 0.5
        return self.layer(x) * self.scale


class Reassigned(Part):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.layer(x) + self.mean


class Functional(Part):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("var", torch.ones(WIDTH))

    def forward(self, x):
        return F.batch_norm(self.layer(x), self.mean, self.var, training=True)


class OwnGenerator(Part):
    def __init__(self):
        super().__init__()
        self.draws = np.random.default_rng(0)

    def forward(self, x):
        return F.gelu(self.layer(x * torch.from_numpy(self.draws.integers(2, size=x.shape)).float()))


class Appending(Part):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return self.layer(x)


class InPlace(Part):
    def forward(self, x):
        x = self.layer(x)
        x[:, 0] = 0
        return x.mul_(2).relu_()


class Chunks(Part):
    def forward(self, x):
        a, b = self.layer(x).chunk(2, -1)
        return torch.cat([b.sigmoid() * a, a], -1)


class Fourier(Part):
    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(self.layer(x)) * 2, n=WIDTH)


class Optional(Part):
    def forward(self, x, mask=None):
        x = self.layer(x)
        if mask is not None:
            x = x * mask
        return x


class Anything(Part):
    def forward(self, *given):
        return self.layer(given[0])


def net(*middle):
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(4)]
    return nn.Sequential(*blocks[:2], *middle, *blocks[2:], nn.Dropout(0.2), nn.Linear(WIDTH, 4))


SAME = {
    "no_grad": NoGrad, "autocast": Double, "in place": InPlace, "chunks": Chunks, "fourier": Fourier,
    "batch norm": lambda: nn.BatchNorm1d(WIDTH), "weight norm": lambda: nn.utils.parametrizations.weight_norm(
        nn.Linear(WIDTH, WIDTH)), "optional": Optional, "layer drop": LayerDrop, "torch drop": TorchDrop,
}  # fmt: skip
REFUSED = {
    "by type": ByType, "stateful": Stateful, "scaled": Scaled,
    "reassigned": Reassigned, "functional": Functional, "own generator": OwnGenerator, "appending": Appending,
}  # fmt: skip
X, Y = torch.randn(48, WIDTH, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 4


def stepped(model, take):
    """Return the losses of three steps and the parameters and buffers after them."""
    losses = []
    for number in range(3):
        torch.manual_seed(number)
        random.seed(number)
        losses.append(take(model))
    return losses, [value.clone() for value in model.state_dict().values()]


def plainly(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def take(model):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return stepped(model, take)


def planned(model, memory):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = TrainStep(model, F.cross_entropy, optimizer, memory=memory, micro_batches=1)
    return stepped(model, lambda _: step((X, Y)).item())


@pytest.mark.parametrize("name", SAME)
def test_a_model_has_the_result_of_the_plain_step(name):
    torch.manual_seed(0)
    model = net(SAME[name]())
    losses, values = plainly(copy.deepcopy(model))
    planner = training.Planner(profile_model(model, F.cross_entropy, (X, Y), repeats=1), micro_batches=1)
    # A part that is drawn may take other bytes than it took in the profile.
    for memory in (1 << 30, planner.floor_bytes * 4 // 3):
        found, others = planned(copy.deepcopy(model), memory)
        assert found == losses
        assert all(torch.equal(a, b) for a, b in zip(values, others, strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_would_train_otherwise_is_refused_and_left_as_it_was(name):
    torch.manual_seed(0)
    model = net(REFUSED[name]())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attributes = dict(model[2].__dict__)
    with pytest.raises(tg.ConfigError, match="runs? again"):
        planned(model, 1 << 30)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    own = model[2].__dict__
    assert all(own[key] is value for key, value in attributes.items())
    assert not getattr(model[2], "seen", [])


def test_inputs_and_their_shapes():
    torch.manual_seed(0)
    with pytest.raises(tg.ConfigError, match=r"takes \*args or \*\*kwargs"):
        planned(Anything(), 1 << 30)
    table = nn.Sequential(nn.Embedding(50, WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 50))
    optimizer = torch.optim.AdamW(table.parameters())
    step = TrainStep(table, token_loss, optimizer, memory="1GiB")
    short, long = torch.randint(50, (8, 16)), torch.randint(50, (8, 256))
    for ids in (short, long, short):
        with Live([*table.parameters(), ids]) as live:
            step((ids, ids))
        assert live.peak <= step.report().plan.peak_bytes
        assert step.report().plan.peak["batch"] == 2 * ids.numel() * 8
    profile = profile_model(table, token_loss, (short, short))
    profile.chain.stages[0].keeps.append(training.Keep("int8", 1, 0.0))
    step = TrainStep(table, token_loss, optimizer, memory="1GiB", profile=profile)
    with pytest.raises(tg.ConfigError, match="stages with keeps="):
        step((short, short))
    first = net()
    first.insert(0, nn.ReLU(inplace=True))
    with pytest.raises(tg.ConfigError, match="writes to its input"):
        planned(first, 1 << 30)


def test_where_a_batch_may_be_cut():
    torch.manual_seed(0)

    def step(model=None, loss=F.cross_entropy, batch=(X, Y)):
        model = model or net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        profile = profile_model(model, loss, batch, optimizer=optimizer)
        # Four pieces take least: what stages save is much, and their gradients are little.
        profile.largest_gradient_bytes = 1
        for stage in profile.chain.stages:
            stage.saved_bytes += 10**5
        floor = training.Planner(profile, micro_batches=4).floor_bytes
        taken = TrainStep(model, loss, optimizer, memory=floor, micro_batches=4, profile=profile)
        for _ in range(2):
            with pytest.raises(tg.ConfigError) as error:
                taken(batch)
        assert all(module.training for module in model.modules())
        return str(error.value)

    weights = torch.tensor([1.0, 5.0, 1.0, 1.0])
    mean = "only where the loss is a mean over samples"
    assert mean in step(loss=lambda o, t: F.cross_entropy(o, t, reduction="sum"))
    assert mean in step(loss=nn.CrossEntropyLoss(weight=weights), batch=(X, Y.sort().values))
    padded = torch.where(torch.arange(48) > 30, -100, Y)
    assert mean in step(loss=nn.CrossEntropyLoss(ignore_index=-100), batch=(X, padded))

    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    assert "depends on the other samples" in step(net(Centred()))


def test_what_changes_after_the_plan_is_refused():
    torch.manual_seed(0)

    class Warm(Part):
        def __init__(self):
            super().__init__()
            self.warmth = 1.0

        def forward(self, x):
            return self.layer(x) * self.warmth

    model = net(Warm())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainStep(model, F.cross_entropy, optimizer, memory="1GiB")
    step((X, Y))
    model[2].warmth = 5.0
    with pytest.raises(tg.ConfigError, match=r"warmth of 2 was 1\.0 and is 5\.0, which changed since"):
        step((X, Y))
    model[2].warmth = 1.0
    handle = model[2].register_forward_hook(lambda *_: None)
    with pytest.raises(tg.ConfigError, match="hooks of 2 was False and is True"):
        step((X, Y))
    handle.remove()
    layer, model[2].layer = model[2].layer, nn.Linear(*reversed(model[2].layer.weight.shape))
    with pytest.raises(tg.ConfigError, match=r"2\.layer is another module since"):
        step((X, Y))
    model[2].layer = layer
    step((X, Y))


def test_a_torch_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.3.1+cpu")
    with pytest.raises(tg.ConfigError, match=r"tidegate\.torch\.TrainStep needs torch 2\.4 or newer, and this is 2\.3"):
        tg.torch.TrainStep  # noqa: B018


def test_optimizers():
    torch.manual_seed(0)
    model = net()
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    with pytest.raises(tg.ConfigError, match=r"the optimizer does not have '0\.0\.weight'"):
        TrainStep(model, F.cross_entropy, other, memory="1GiB")
    with pytest.raises(tg.ConfigError, match="LBFGS"):
        TrainStep(model, F.cross_entropy, torch.optim.LBFGS(model.parameters()), memory="1GiB")((X, Y))
    profile = profile_model(model, F.cross_entropy, (X, Y))
    weights = [p for p in model.parameters() if p.dim() > 1]
    biases = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": weights}, {"params": biases, "amsgrad": True}]
    step = TrainStep(model, F.cross_entropy, torch.optim.Adam(groups), memory="1GiB", profile=profile)
    step((X, Y))
    sizes = [sum(p.numel() for p in group) for group in (weights, biases)]
    assert step.report().plan.peak["optimizer"] == 4 * (2 * sizes[0] + 3 * sizes[1])
    known = [*model.parameters(), X, Y, *(t for s in step.optimizer.state.values() for t in s.values())]
    with Live(known) as live:
        step((X, Y))
    assert live.peak <= step.report().plan.peak_bytes


def test_a_double_model_has_a_double_loss():
    torch.manual_seed(0)
    model = net().double()
    loss = TrainStep(model, F.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.1), memory="1GiB")(
        (X.double(), Y)
    )
    assert loss.dtype == torch.float64
