"""Activations that are kept in fewer bytes: bytes as planned, gradients as near as said."""

import contextlib

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from test_train_step import MODELS, made, timed  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import tidegate as tg  # noqa: E402
from tidegate import training  # noqa: E402
from tidegate.torch import Compress, TrainStep  # noqa: E402
from tidegate.torch import compress as forms  # noqa: E402
from tidegate.torch.graph import Stages  # noqa: E402
from tidegate.torch.live import Live  # noqa: E402
from tidegate.torch.plans import Planners  # noqa: E402
from tidegate.torch.profile import profile_of  # noqa: E402
from tidegate.torch.recompute import Runner  # noqa: E402

# The most that gradients are apart, relative to their norm.
APART = {"nearest": 0.008, "stochastic": 0.012, "bf16": 0.004}


def gradients(run, model, known):
    """Return the gradients in one vector, and the bytes of tensors at the peak."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    with Live(known) as live:
        run().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]).double(), live.peak


@pytest.mark.parametrize("name", MODELS)
def test_the_peak_is_as_planned_and_gradients_are_near(name):
    model, loss, (x, y) = made(name)
    known = [*model.parameters(), *model.buffers(), x, y]
    stages = Stages(model, [x])
    exact, plain = gradients(lambda: loss(model(x), y), model, known)
    hows = [Compress(), Compress(rounding="stochastic"), Compress("bf16")]
    # Profiles take time: all forms on one model.
    for how, most in list(zip(hows, APART.values(), strict=True))[: 3 if name == "mlp" else 1]:
        packer = forms.Packer(how, model)
        profile = timed(profile_of(stages, loss, [x], [y], None, 1, packer)[0])
        plan = training.Planner(profile, micro_batches=1, recompute=False).plan("1GiB")
        runner = Runner(stages, loss, plan.schedule)

        def run(runner=runner, packer=packer):
            with packer.hooks():
                return runner([x], [y])

        found, peak = gradients(run, model, known)
        assert ((found - exact).norm() / exact.norm()).item() < most
        # Where two operations of different stages save one tensor, it is there once.
        assert 0.8 < peak / plan.peak_bytes <= 1.01
        assert peak < plain or name == "lstm"


def test_saved_activations_take_a_quarter():
    model, loss, (x, y) = made("mlp")
    stages = Stages(model, [x])
    sizes = [
        sum(stage.saved_bytes for stage in profile_of(stages, loss, [x], [y], None, 1, packer)[0].chain.stages)
        for packer in (forms.Packer(Compress(block=2**20)), forms.Packer(Compress(), model))
    ]
    values = sum(tensor.numel() for tensor in _saved(lambda: loss(model(x), y), model))
    assert sizes[1] == pytest.approx(values * Compress().bytes_of(2560) / 2560, rel=0.02)
    assert 4 * 2560 / Compress().bytes_of(2560) >= 3.8


def _saved(run, model):
    """Return what backward needs of floats, each storage once, parameters excepted."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    found = {}

    def note(tensor):
        if tensor.dtype == torch.float32 and tensor.numel() >= 1024:
            found[tensor.untyped_storage()._cdata] = tensor.detach()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return [tensor for key, tensor in found.items() if key not in weights]


def test_the_step_compresses_where_that_is_faster(monkeypatch):
    model, loss, batch = made("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainStep(model, loss, optimizer, memory="1GiB", micro_batches=1, compress="int8")
    step(batch)
    # With all memory nothing is compressed.
    assert (step._last().way.packs, step.report().plan.recomputed_stages) == (False, 0)
    ways = step._last().planners.ways[:2]
    for stage in ways[1].profile.chain.stages:
        stage.forward_time = stage.backward_time = 0.0
    assert Planners(ways, 256, 1).plan(step.report().plan.peak_bytes // 2)[1].packs


def test_what_is_kept_as_it_is():
    weight = nn.Parameter(torch.randn(64, 64))
    packer = forms.Packer(Compress())
    x = torch.randn(64, 64, requires_grad=True)
    masked = torch.full((64, 64), float("-inf")).triu(1)
    with packer.hooks():
        y = torch.softmax((x @ weight) + masked, 1) * masked.exp()
        (y.sum() * 2).backward()
    assert torch.isfinite(x.grad).all()
    # What was written to afterwards is an error, as it is without hooks.
    small = torch.ones(8, requires_grad=True)
    with packer.hooks():
        product = small.clone()
        square = product * product
        product.add_(1)
    with pytest.raises(tg.ConfigError, match="written to after forward"):
        square.sum().backward()


def test_on_a_device_codes_are_those_of_the_cpu():
    torch.manual_seed(0)
    values = torch.cat(
        [torch.randn(700), torch.relu(torch.randn(700)), torch.zeros(300), torch.tensor([1000.0, 1001.0])]
    )
    codes, grids = forms.codes_on_device(values, 64, None)
    own, of_cpu = forms.Packer(Compress(block=64))._codes(values)
    assert torch.allclose(grids.flatten(), of_cpu, rtol=1e-6, atol=0)
    assert (codes.flatten()[: values.numel()].int() - own.int()).abs().max() <= 1
    back = forms.values_on_device(codes, grids).flatten()[: values.numel()]
    kept = forms.Packer(Compress(block=64))._packed(values)
    assert torch.allclose(back, forms.Packer(Compress(block=64))._unpack(kept), atol=0.05)
    assert torch.equal(back.sign(), values.sign())
    assert forms.codes_on_device(torch.tensor([1.0, float("nan")] * 600), 256, None) is None
    spread = forms.codes_on_device(values, 64, 1)[0]
    assert torch.equal(spread, forms.codes_on_device(values, 64, 1)[0])
    assert (spread.int() - codes.int()).abs().max() == 1


def test_forms_that_cannot_be():
    model, loss, batch = made("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(tg.ConfigError, match=r"compress='topk' changes the gradients of \S*0 by"):
        TrainStep(model, loss, optimizer, memory="1GiB", compress=Compress("topk"))(batch)
    with pytest.raises(tg.ConfigError, match="compress=4"):
        TrainStep(model, loss, optimizer, memory="1GiB", compress=4)
    with pytest.raises(tg.ConfigError, match="int8"):
        TrainStep(model, loss, optimizer, memory="1GiB", compress="int7")


def test_top_k_keeps_the_largest_values():
    net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    packer = forms.Packer(Compress("topk", ratio=0.25), net)
    x = torch.randn(128, 64)
    with packer.hooks():
        net(x).square().mean().backward()
    kept = packer._packed(x)
    back = packer._unpack(kept)
    assert (back != 0).sum() == 128 * 64 // 4
    assert torch.equal(back[back != 0], x[back != 0])
    assert x.abs()[back == 0].max() <= back.abs()[back != 0].min()
    assert F.cosine_similarity(back.flatten(), x.flatten(), dim=0) > 0.8


def test_where_rounding_changes_gradients_it_is_refused():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(64, 256)

        def forward(self, x):
            logits = self.last(x)
            return logits.masked_fill(torch.arange(256) >= 200, -1e4)

    net = Masked()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    batch = torch.randn(64, 64), torch.randint(200, (64,))
    step = TrainStep(net, F.cross_entropy, optimizer, memory="1GiB", compress="int8")
    with pytest.raises(tg.ConfigError, match=r"compress='int8' changes the gradients of .* by \d+ %"):
        step(batch)
    TrainStep(net, F.cross_entropy, optimizer, memory="1GiB", compress="bf16")(batch)


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish])
def test_signs_are_kept(kind):
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), kind()) for _ in range(6)]
    net, x = nn.Sequential(*layers), torch.randn(8, 16, 16, 16)
    exact, found = [], []
    for into, hooks in ((exact, contextlib.nullcontext), (found, forms.Packer(Compress(), net).hooks)):
        net.zero_grad()
        with hooks():
            value = net(x).square().mean()
        value.backward()
        into.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert (found[0] - exact[0]).norm() < 0.03 * exact[0].norm()


def test_views_of_one_storage_are_told_apart():
    z = torch.randn(64, 64, dtype=torch.complex64)
    a = torch.randn(64, 64, requires_grad=True)
    exact, found = [], []
    for into, hooks in ((exact, contextlib.nullcontext), (found, forms.Packer(Compress()).hooks)):
        a.grad = None
        with hooks():
            value = (z.imag * a + z.conj().imag * a.flip(1)).sum()
        value.backward()
        into.append(a.grad.clone())
    assert torch.allclose(found[0], exact[0], atol=0.05)
    # A view that repeats few values stays one, and vectors stay as they are.
    packer = forms.Packer(Compress())
    assert not packer._pays(torch.randn(1, 64).expand(4096, 64))
    assert not packer._pays(torch.randn(4096))
    assert packer._pays(torch.randn(64, 64))


def test_a_state_of_another_form_is_refused():
    model, loss, batch = made("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainStep(model, loss, optimizer, memory="1GiB", compress="int8")
    step(batch)
    state = step.state_dict()
    for other in (None, "bf16", Compress(block=64)):
        with pytest.raises(tg.StateError, match="the state is of a step with"):
            TrainStep(model, loss, optimizer, memory="1GiB", compress=other).load_state_dict(state)
    same = TrainStep(model, loss, optimizer, memory="1GiB", compress="int8")
    same.load_state_dict(state)
    assert same(batch) > 0
    wrong = [{"steps": "abc"}, {"rounded": float("inf")}, {"shapes": [{}]}, {"version": 2}, {"noise": 3}, {"random": 0}]
    wrong.append({"shapes": [{**state["shapes"][0], "samples": 10**30}]})
    for part in wrong:
        with pytest.raises(tg.StateError):
            same.load_state_dict({**state, **part})
    assert same.report().steps == 2
