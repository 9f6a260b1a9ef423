"""`tidegate.torch.TrainStep`: six models within budgets, with the gradients of the plain step."""

import gc

import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import tidegate as tg  # noqa: E402
from tidegate import training  # noqa: E402
from tidegate.torch import TrainStep, profile_model  # noqa: E402
from tidegate.torch.graph import Stages  # noqa: E402
from tidegate.torch.live import Live  # noqa: E402
from tidegate.torch.recompute import Runner  # noqa: E402


class Residual(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        parts = [nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, width)]
        self.inner = nn.Sequential(*parts)

    def forward(self, x):
        return x + self.inner(x)


class Attention(nn.Module):
    """Attention as people write it: `torch.fx` cannot follow a loop over the parts of a tensor."""

    def __init__(self, width, heads, causal):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rest = Residual(width, 4 * width)

    def forward(self, x):
        rows, length, width = x.shape
        parts = (
            part.view(rows, length, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1)
        )
        found = F.scaled_dot_product_attention(*parts, is_causal=self.causal)
        return self.rest(x + self.out(found.transpose(1, 2).reshape(rows, length, width)))


class Tokens(nn.Module):
    def __init__(self, vocabulary, length, width):
        super().__init__()
        self.table, self.places = nn.Embedding(vocabulary, width), nn.Parameter(torch.randn(length, width) * 0.02)

    def forward(self, ids):
        return self.table(ids) + self.places


class Patches(nn.Module):
    def __init__(self, width, side):
        super().__init__()
        self.conv = nn.Conv2d(3, width, side, side)

    def forward(self, x):
        return self.conv(x).flatten(2).transpose(1, 2)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


def twice(a, b):
    parts = [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))


class Unet(nn.Module):
    """One level, and those below it."""

    def __init__(self, width, depth):
        super().__init__()
        self.first, self.depth = twice(width, width), depth
        if depth:
            self.down, self.inner = nn.Conv2d(width, 2 * width, 2, 2), Unet(2 * width, depth - 1)
            self.up, self.last = nn.ConvTranspose2d(2 * width, width, 2, 2), twice(2 * width, width)

    def forward(self, x):
        x = self.first(x)
        return self.last(torch.cat([x, self.up(self.inner(self.down(x)))], 1)) if self.depth else x


class Lstm(nn.Module):
    def __init__(self, vocabulary, width):
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.first, self.second = nn.LSTM(width, width, batch_first=True), nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids):
        x, _ = self.first(self.table(ids))
        x, _ = self.second(x)
        return self.head(x)


def token_loss(output, wanted):
    return F.cross_entropy(output.flatten(0, -2), wanted.flatten())


def made(name):
    """Return a model, its loss and a batch."""
    torch.manual_seed(0)
    labels, ids = torch.randint(10, (16,)), torch.randint(500, (4, 64))
    if name == "mlp":
        model = nn.Sequential(*[Residual(64, 256) for _ in range(12)], nn.Linear(64, 10))
        return model, F.cross_entropy, (torch.randn(256, 64), torch.randint(10, (256,)))
    if name == "resnet18":
        return torchvision.models.resnet18(num_classes=10), F.cross_entropy, (torch.randn(16, 3, 96, 96), labels)
    if name == "unet":
        model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), Unet(12, 3), nn.Conv2d(12, 4, 1))
        return model, F.cross_entropy, (torch.randn(4, 3, 64, 64), torch.randint(4, (4, 64, 64)))
    if name == "vit":
        model = nn.Sequential(Patches(96, 8), *[Attention(96, 3, False) for _ in range(6)], Mean(), nn.Linear(96, 10))
        return model, F.cross_entropy, (torch.randn(16, 3, 64, 64), labels)
    if name == "gpt":
        layers = [Attention(96, 4, True) for _ in range(12)]
        return nn.Sequential(Tokens(500, 64, 96), *layers, nn.Linear(96, 500)), token_loss, (ids, ids)
    return Lstm(500, 128), token_loss, (ids, ids)


def timed(profile):
    """Return a profile whose times are the same on every machine: plans follow from them."""
    for number, stage in enumerate(profile.chain.stages):
        stage.forward_time, stage.backward_time = 1.0 + number % 3, 2.0 + number % 5
    return profile


def one_step(run, model, known):
    """Return the loss, the gradients, and the bytes of tensors at the peak."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    with Live(known) as live:
        loss = run()
        loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters()], live.peak


MODELS = ["mlp", "resnet18", "unet", "vit", "gpt", "lstm"]


@pytest.mark.parametrize("name", MODELS)
def test_the_peak_is_as_planned_and_gradients_are_those_of_the_plain_step(name):
    model, loss, (x, y) = made(name)
    known = [*model.parameters(), *model.buffers(), x, y]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    seed = torch.random.get_rng_state()
    stages = Stages(model, [x])
    profile = timed(profile_model(model, loss, (x, y), repeats=1))
    assert torch.equal(seed, torch.random.get_rng_state())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not [t for t in gc.get_objects() if type(t) is torch.Tensor and t.grad_fn is not None]
    plain_loss, gradients, peak = one_step(lambda: loss(model(x), y), model, known)
    buffers = [buffer.clone() for buffer in model.buffers()]
    planner = training.Planner(profile, micro_batches=1)
    least, most = planner.floor_bytes, planner.curve()[-1].memory_bytes
    assert most == pytest.approx(peak, rel=0.05)
    for part in (0.05, 0.3, 0.6):
        plan = planner.plan(int(least + (most - least) * part))
        assert plan.recomputed_stages > 0
        model.load_state_dict(state)
        runner = Runner(stages, loss, plan.schedule)
        found, others, peak = one_step(lambda runner=runner: runner([x], [y]), model, known)
        assert found == plain_loss
        assert all(torch.equal(a, b) for a, b in zip(others, gradients, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
        assert plan.peak_bytes == pytest.approx(peak, rel=0.05), plan


def test_steps_with_adamw_are_those_of_the_plain_loop_and_stay_within_the_budget():
    model, loss, batch = made("gpt")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    plain = []
    for number in range(3):
        torch.manual_seed(number)
        optimizer.zero_grad(set_to_none=True)
        value = loss(model(batch[0]), batch[1])
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        plain.append(value.item())
    expected = [p.detach().clone() for p in model.parameters()]
    model.load_state_dict(state)
    profile = timed(profile_model(model, loss, batch, optimizer=optimizer, repeats=1))
    curve = training.curve(profile, micro_batches=1)
    memory = (curve[0].memory_bytes + curve[-1].memory_bytes) // 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = TrainStep(model, loss, optimizer, memory=memory, micro_batches=1, clip_norm=0.5, profile=profile)
    known = [*model.parameters(), *model.buffers(), *batch]
    with Live(known) as live:
        found = []
        for number in range(3):
            torch.manual_seed(number)
            found.append(step(batch).item())
    assert found == plain
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected, strict=True))
    report = step.report()
    assert report.plan.recomputed_stages > 0
    assert live.peak <= memory
    assert live.peak == pytest.approx(report.plan.peak_bytes, rel=0.05)
    assert "With half the memory it does not fit" in str(report)
    assert report.twice < 1


def test_micro_batches_give_the_gradients_of_the_whole_batch():
    model, loss, (x, y) = made("mlp")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x, y = x[:250], y[:250]
    value = loss(model(x), y)
    value.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    profile = timed(profile_model(model, loss, (x, y), optimizer=optimizer, repeats=1))
    memory = training.Planner(profile, micro_batches=4).floor_bytes
    how = {"memory": memory, "micro_batches": 4, "profile": profile, "optimizer_in_backward": False}
    step = TrainStep(model, loss, optimizer, **how)
    found = step((x, y))
    parts = step.report().plan.micro_batches
    assert parts == [63, 63, 62, 62]
    assert found.item() == pytest.approx(value.item(), rel=1e-6)
    gradient = before - torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (gradient - expected).norm() / expected.norm() < 1e-5
    # The last batch of an epoch is smaller, and needs no other plan.
    step((x[:7], y[:7]))
    assert step.report().plan.micro_batches == parts
    step.set_memory("1GiB")
    assert step.report().plan.micro_batches == [250]
    with pytest.raises(tg.BudgetError, match="the step takes at least"):
        step.set_memory("1KiB")
    assert step.report().plan.micro_batches == [250]


def test_the_gradient_that_micro_batches_add_is_within_the_budget():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 4))
    batch = torch.randn(512, 64), torch.randint(4, (512,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    profile = timed(profile_model(model, F.cross_entropy, batch, optimizer=optimizer, repeats=1))
    memory = training.Planner(profile).floor_bytes
    how = {"memory": memory, "profile": profile, "optimizer_in_backward": False}
    step = TrainStep(model, F.cross_entropy, optimizer, **how)
    step(batch)
    with Live([*model.parameters(), *batch]) as live:
        step(batch)
    assert len(step.report().plan.micro_batches) > 4
    assert live.peak <= step.report().plan.peak_bytes


def test_a_batch_of_a_loader_and_autocast():
    model, loss, (x, y) = made("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = TrainStep(
        model, loss, optimizer, memory="64MiB", inputs="x", targets="y", autocast=torch.bfloat16,
    )  # fmt: skip
    losses = [step({"x": x, "y": y, "other": 3}).item() for _ in range(8)]
    assert losses[-1] < losses[0]
    assert dict(step.report().plan.peak)["optimizer"] == dict(step.report().plan.peak)["parameters"]
    with pytest.raises(tg.ConfigError, match="say which with inputs= and targets="):
        TrainStep(model, loss, optimizer, memory="64MiB")({"x": x, "y": y})
    with pytest.raises(tg.ConfigError, match="has no 'z'"):
        TrainStep(model, loss, optimizer, memory="64MiB", inputs="z", targets="y")({"x": x, "y": y})


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return x * 2


class Branching(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_what_cannot_be_planned_is_named():
    x, y = torch.randn(32, 8), torch.randint(4, (32,))
    plain = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)

    def first(model, loss=F.cross_entropy, batch=(x, y), memory="1MiB", **more):
        return TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), memory=memory, **more)(batch)

    with pytest.raises(tg.BudgetError, match=r"at least .* parameters"):
        first(plain, memory="1KiB")
    with pytest.raises(tg.ConfigError, match="writes to its buffer '1.seen'"):
        first(nn.Sequential(nn.Linear(8, 4), Counting()))
    hooked = nn.Sequential(nn.Linear(8, 4))
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(tg.ConfigError, match="its hooks run only where it is called"):
        first(hooked)
    with pytest.raises(tg.ConfigError, match="OptimizedModule"):
        first(torch.compile(nn.Sequential(nn.Linear(8, 4))))
    with pytest.raises(tg.ConfigError, match="must be a tensor of one number"):
        first(plain, loss=lambda output, wanted: F.cross_entropy(output, wanted, reduction="none"))
    with pytest.raises(tg.ConfigError, match="samples: they must have one number"):
        first(plain, batch=(x, y[:5]))
    with pytest.raises(tg.DataError, match="the loss of step 1 is nan"):
        first(plain, batch=(x * float("nan"), y))
    with pytest.raises(tg.ConfigError, match="of another model"):
        TrainStep(plain, F.cross_entropy, optimizer, memory="1MiB", profile=training.Profile(32, training.Chain(
            [training.Stage()])))((x, y))  # fmt: skip
    floor = training.Planner(profile_model(plain, F.cross_entropy, (x, y), optimizer=optimizer)).floor_bytes
    with pytest.raises(tg.ConfigError, match="only where the loss is a mean over samples"):
        first(plain, loss=lambda o, w: F.cross_entropy(o, w, reduction="sum"), memory=floor + 2000)
    step = TrainStep(plain, F.cross_entropy, optimizer, memory="1MiB")
    with pytest.raises(tg.ConfigError, match="there is no plan yet"):
        step.report()
    step((x, y))
    plain.eval()
    with pytest.raises(tg.ConfigError, match="training of the model was True and is False, which changed since"):
        step((x, y))
    plain.train()
    plain[0].weight.requires_grad_(False)
    with pytest.raises(tg.ConfigError, match=r"0\.weight.requires_grad was True"):
        step((x, y))
    plain[0].weight.requires_grad_(True)
    step((x, y))
    # What depends on values is one node, and the rest is still cut.
    branching = nn.Sequential(nn.Linear(8, 64), Branching(), nn.Linear(64, 4))
    step = TrainStep(branching, F.cross_entropy, torch.optim.SGD(branching.parameters(), lr=0.1), memory="1MiB")
    step((x, y))
    assert step.report().whole == ["1"]


def test_frozen_and_tied_parameters():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))
    model[2].weight = model[0].weight
    model[2].bias.requires_grad_(False)
    x, y = torch.randn(64, 16), torch.randint(4, (64,))
    F.cross_entropy(model(x), y).backward()
    expected = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    profile = profile_model(model, F.cross_entropy, (x, y), repeats=1)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(stage.gradient_bytes for stage in profile.chain.stages) == 4 * trained
    model.zero_grad(set_to_none=True)
    stages = Stages(model, [x])
    count = len(stages.stages)
    Runner(stages, F.cross_entropy, [list(range(1, count)), count])([x], [y]).backward()
    for p, wanted in zip(model.parameters(), expected, strict=True):
        assert (p.grad is None) if wanted is None else torch.equal(p.grad, wanted)


def test_the_noise_scale_of_a_step_is_that_of_its_gradients():
    """Gradients of one sample are x + noise: the noise scale is the variance over the square."""
    torch.manual_seed(0)
    net = nn.Linear(64, 1, bias=False)
    nn.init.zeros_(net.weight)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    profile = timed(
        profile_model(net, _sum_of, (torch.randn(256, 64), torch.zeros(256)), optimizer=optimizer, repeats=1)
    )
    floor = training.Planner(profile, batch=256).floor_bytes
    step = TrainStep(net, _sum_of, optimizer, memory=floor, profile=profile, noise_scale=1.0)
    mean = torch.full((64,), 0.5)
    for _ in range(600):
        step((torch.randn(256, 64) + mean, torch.zeros(256)))
    report = step.report()
    assert len(report.plan.micro_batches) > 1
    assert report.noise_scale == pytest.approx(64 / (64 * 0.25), rel=0.05)
    state = step.state_dict()["noise"]
    assert state[:2] == [report.plan.micro_batches[0], 256]
    assert "noise scale of the gradients is 4 samples" in str(report)


def _sum_of(output, wanted):
    return (output.squeeze(1) - wanted).mean()


def test_a_profile_takes_little_memory():
    """One stage at a time, also where it is measured how long few samples take."""
    net = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(32)])
    x, y = torch.randn(4, 2048, 64), torch.randn(4, 2048, 64)
    with Live([*net.parameters(), x, y]) as live:
        F.mse_loss(net(x), y).backward()
    plain = live.peak
    net.zero_grad(set_to_none=True)
    with Live([*net.parameters(), x, y]) as live:
        profile_model(net, F.mse_loss, (x, y), repeats=1)
    assert live.peak < plain / 3
