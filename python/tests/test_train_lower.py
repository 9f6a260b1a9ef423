"""Steps in lower precision: the whole model by autocast, or modules by name; bytes as planned."""

import logging

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from test_train_step import made  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import tidegate as tg  # noqa: E402
from tidegate import training  # noqa: E402
from tidegate.torch import TrainStep, profile_model  # noqa: E402
from tidegate.torch.graph import Stages  # noqa: E402
from tidegate.torch.live import Live  # noqa: E402
from tidegate.torch.lower import Lowered  # noqa: E402


def fixed_times(step):
    """Set times that do not depend on the machine; what is lowered is then the faster one."""
    for way in step._last().planners.ways:
        for stage in way.profile.chain.stages:
            stage.forward_time, stage.backward_time = (0.5, 1.0) if way.lowers else (1.0, 2.0)
        way.profile.overhead_time = 0.1


def peak(step, model, batch):
    with Live([*model.parameters(), *batch]) as live:
        step(batch)
    return live.peak


@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_under_autocast_the_peak_is_as_planned(name):
    model, loss, batch = made(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    how = {"memory": "1GiB", "autocast": torch.bfloat16, "optimizer_in_backward": False}
    step = TrainStep(model, loss, optimizer, **how)
    step(batch)
    fixed_times(step)
    whole = step.report().plan.plain_bytes
    found = []
    for part in (1.0, 0.8, 0.65):
        step.set_memory(int(part * whole))
        plan = step.report().plan
        found.append((len(plan.micro_batches) > 1, plan.recomputed_stages > 0))
        assert 0.95 * plan.peak_bytes <= peak(step, model, batch) <= plan.peak_bytes
    assert found[0] == (False, False)
    assert (True, False) in found or (False, True) in found


def test_copies_of_weights_do_not_become_smaller_with_the_batch():
    torch.manual_seed(0)
    model = layers(256, 8)
    batch = torch.randn(512, 256), torch.randn(512, 256)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    how = {"memory": "1GiB", "autocast": torch.bfloat16, "optimizer_in_backward": False}
    step = TrainStep(model, F.mse_loss, optimizer, **how)
    step(batch)
    for way in step._last().planners.ways:
        for stage in way.profile.chain.stages:
            stage.forward_time, stage.backward_time = 1.0, 0.0
        way.profile.overhead_time = 0.0
    step.set_memory(int(0.7 * step.report().plan.plain_bytes))
    plan = step.report().plan
    assert len(plan.micro_batches) > 1
    assert plan.peak["saved for any batch"] >= 2 * sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert peak(step, model, batch) == pytest.approx(plan.peak_bytes, rel=0.03)


def gradients(model, loss, batch, step=None):
    """Return the gradients of a plain step, or of a step with SGD at a rate of 1."""
    if step is None:
        loss(model(batch[0]), batch[1]).backward()
        found = torch.cat([p.grad.flatten() for p in model.parameters()])
        model.zero_grad()
        return found
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    step(batch)
    return before - torch.cat([p.detach().flatten() for p in model.parameters()])


def layers(width, count):
    return nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(count)])


def test_named_modules_run_in_bfloat16_where_that_makes_a_step_fit(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(*[layers(64, 4) for _ in range(6)])
    batch = torch.randn(512, 64), torch.randn(512, 64)
    exact = gradients(model, F.mse_loss, batch)
    how = {"micro_batches": 1, "lower_precision": ["2", "[34]"], "optimizer_in_backward": False}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = TrainStep(model, F.mse_loss, optimizer, memory="1GiB", **how)
    step(batch)
    fixed_times(step)
    assert "bfloat16" not in str(step.report())
    lowered = step._last().planners.ways[1]
    assert lowered.lowers
    assert lowered.profile.chain.stages != step.profile().chain.stages
    least = training.Planner(lowered.profile, micro_batches=1, recompute=False).floor_bytes
    with caplog.at_level(logging.INFO, logger="tidegate.training"):
        step.set_memory(least)
    assert "in bfloat16: 2, [34]" in caplog.text
    assert "In bfloat16: 2, [34]." in str(step.report())
    dtypes = []

    class Products(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.addmm.default:
                dtypes.append(args[1].dtype)
            return func(*args, **(kwargs or {}))

    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    exact = gradients(model, F.mse_loss, batch)
    with Products():
        found = gradients(model, F.mse_loss, batch, step)
    assert dtypes[:24] == [torch.float32] * 8 + [torch.bfloat16] * 12 + [torch.float32] * 4
    assert 0 < (found - exact).norm() / exact.norm() < 0.02
    assert peak(step, model, batch) <= step.report().plan.peak_bytes <= least
    # With room for it, all is exact again.
    step.set_memory("1GiB")
    exact = gradients(model, F.mse_loss, batch)
    assert torch.allclose(gradients(model, F.mse_loss, batch, step), exact, rtol=1e-4, atol=1e-7)


def test_what_cannot_be_lowered():
    model, loss, batch = made("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(**how):
        return TrainStep(model, loss, optimizer, memory="1GiB", **how)(batch)

    with pytest.raises(tg.ConfigError, match="lower_precision='middle' is the name of no module that runs"):
        step(lower_precision="middle")
    with pytest.raises(tg.ConfigError, match=r"lower_precision= is for a step without autocast="):
        step(lower_precision="0", autocast=torch.bfloat16)
    with pytest.raises(tg.ConfigError, match=r"profile= is for a step without autocast="):
        step(profile=profile_model(model, loss, batch), autocast=torch.bfloat16)
    with pytest.raises(tg.ConfigError, match="the name of a module, or a list of them"):
        step(lower_precision=3)
    double = nn.Sequential(nn.Linear(8, 8).double())
    rows = torch.randn(4, 8).double()
    with pytest.raises(tg.ConfigError, match=r"parameters of torch\.float64"):
        TrainStep(double, F.mse_loss, torch.optim.SGD(double.parameters(), lr=0.1), memory="1MiB",
                  lower_precision="0")((rows, rows))  # fmt: skip


def test_a_module_that_runs_twice_is_lowered_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.out = layers(16, 2), nn.Linear(16, 4)

        def forward(self, x):
            return self.out(self.block(self.block(x)))

    stages = Stages(Twice(), [torch.randn(8, 16)])
    lowered = Lowered(stages, ["block"])
    nodes = [node for stage in stages.stages for node in stage.nodes if node.op == "call_module"]
    assert [node in lowered.nodes for node in nodes] == [True] * 8 + [False]
