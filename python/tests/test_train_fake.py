"""Profiles of models without values: the bytes of the real ones, in seconds for large models."""

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from test_train_step import MODELS, Residual, made, timed  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import tidegate as tg  # noqa: E402
from tidegate import training  # noqa: E402
from tidegate.torch import TrainStep, profile_model  # noqa: E402
from tidegate.torch.live import Live  # noqa: E402


@pytest.mark.parametrize("name", [name for name in MODELS if name != "lstm"])
def test_bytes_are_those_of_the_real_model(name):
    model, loss, batch = made(name)
    optimizer = torch.optim.AdamW(model.parameters())
    real = profile_model(model, loss, batch, optimizer=optimizer, repeats=1)
    meta = copy.deepcopy(model).to("meta")
    found = profile_model(meta, loss, batch, optimizer=torch.optim.AdamW(meta.parameters()))
    assert all(p.is_meta and p.grad is None for p in meta.parameters())
    assert (found.time_unit, found.fingerprint, found.held) == ("Tflop", real.fingerprint, real.held)
    pairs = list(zip(found.chain.stages, real.chain.stages, strict=True))
    for one, other in pairs:
        assert (one.output_bytes, one.gradient_bytes) == (other.output_bytes, other.gradient_bytes)
    ours, theirs = (training.Planner(timed(profile), micro_batches=1) for profile in (found, real))
    assert ours.floor_bytes == pytest.approx(theirs.floor_bytes, rel=0.01)
    assert ours.plan("1GiB").plain_bytes == pytest.approx(theirs.plan("1GiB").plain_bytes, rel=0.01)


def test_times_are_operations_and_a_real_step_can_run_the_plan():
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.Tanh(), nn.Linear(64, 10))
    batch = torch.randn(32, 64), torch.randint(10, (32,))
    with torch.device("meta"):
        meta = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.Tanh(), nn.Linear(64, 10))
    profile = profile_model(meta, F.cross_entropy, batch)
    forward = sum(stage.forward_time for stage in profile.chain.stages) * 1e12
    assert forward == pytest.approx(2 * 32 * (64 * 256 + 256 * 64 + 64 * 10))
    # The first layer has no gradient of its input.
    assert sum(s.backward_time for s in profile.chain.stages) * 1e12 == pytest.approx(2 * forward - 2 * 32 * 64 * 256)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainStep(model, F.cross_entropy, optimizer, memory="1MiB", profile=profile)
    with Live([*model.parameters(), *batch]) as live:
        step(batch)
    assert 0.95 * step.report().plan.peak_bytes <= live.peak + 4096 <= 1.01 * step.report().plan.peak_bytes


class Block(nn.Module):
    """A norm in float32 between blocks in bfloat16, as large models have it."""

    def __init__(self, width):
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.ones(width)), Residual(width, 4 * width).inner

    def forward(self, x):
        wide = x.float()
        normed = self.scale * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
        return x + self.inner(normed)


def test_a_model_of_many_gigabytes_is_cut_between_its_blocks():
    with torch.device("meta"):
        blocks = [Block(4096) for _ in range(48)]
        model = nn.Sequential(nn.Embedding(32000, 4096), *blocks, nn.Linear(4096, 32000)).to(torch.bfloat16)
        ids = torch.zeros(1, 2048, dtype=torch.long)
    profile = profile_model(model, lambda out, wanted: F.cross_entropy(out.flatten(0, 1), wanted.flatten()), (ids, ids))
    assert sum(held.bytes for held in profile.held) > 12 << 30
    assert len(profile.chain.stages) >= 48
    planner = training.Planner(profile, micro_batches=1)
    whole = planner.plan("1TiB").plain_bytes
    plan = planner.plan((planner.floor_bytes + whole) // 2)
    assert 0 < plan.recomputed_stages < 48
    # The first forward of each block runs once more at most: 4/3 of the time of the plain step.
    assert plan.time < plan.plain_time * 4 / 3


def test_what_needs_values_is_named():
    model, loss, batch = made("lstm")
    with pytest.raises(tg.ConfigError, match="kernels of LSTM, GRU and RNN keep more than shapes tell"):
        profile_model(model.to("meta"), loss, batch)

    meta = nn.Sequential(nn.Linear(8, 4)).to("meta")
    rows, labels = torch.randn(4, 8), torch.zeros(4, dtype=torch.long)
    with pytest.raises(tg.ConfigError, match="such as weights of a loss, need values"):
        profile_model(meta, nn.CrossEntropyLoss(weight=torch.ones(4)), (rows, labels))
    with pytest.raises(tg.ConfigError, match="nothing can train it"):
        TrainStep(meta, F.cross_entropy, torch.optim.SGD(meta.parameters(), lr=0.1), memory="1MiB")
    profile = profile_model(meta, F.cross_entropy, (rows, labels))
    real = nn.Sequential(nn.Linear(8, 4))
    with pytest.raises(tg.ConfigError, match="the profile has times in Tflop"):
        TrainStep(real, F.cross_entropy, torch.optim.SGD(real.parameters(), lr=0.1), memory="1MiB", profile=profile,
                  compress="int8")  # fmt: skip

    class Deciding(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    model = nn.Sequential(nn.Linear(8, 8), Deciding()).to("meta")
    with pytest.raises(tg.ConfigError, match="needs values"):
        profile_model(model, F.mse_loss, (torch.randn(4, 8), torch.randn(4, 8)))
