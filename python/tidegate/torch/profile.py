"""The profile of a training step, by running each stage once forward and backward.

Flow: a model, a loss, a batch -> `Stages` -> bytes and times of each -> `training.Profile`.
Memory: what crosses from stage to stage, and one stage forward and backward at a time.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from tidegate.errors import ConfigError
from tidegate.options import integer, refused
from tidegate.torch.compress import Packer
from tidegate.torch.fake import Operations, faked, is_fake, is_meta
from tidegate.torch.graph import Stage, Stages, Values, frozen
from tidegate.torch.kept import Kept, undrawn
from tidegate.torch.live import Live, storage_bytes, storage_key, tensors_in
from tidegate.torch.lower import Lowered
from tidegate.torch.master import KEY
from tidegate.training import Chain, Held, Profile, Skip
from tidegate.training import Stage as PlannedStage

__all__ = ["SCALAR_BYTES", "optimizer_bytes", "parts_of", "profile_model", "profile_of", "samples_of"]

Loss = Callable[..., torch.Tensor]
# What a step does besides to recompute.
Form = Packer | Lowered

# What a step with its optimizer holds for a moment besides: its total, scaled losses, the norm of
# gradients.
SCALAR_BYTES = 4096
# Samples of the step that tells how much of the time does not depend on their number.
FEW = 2
# The most that compression may change the gradients of a stage, relative to their norm.
MOST_APART = 0.1


def parts_of(batch: Any, inputs: Any = None, targets: Any = None) -> tuple[list[Any], list[Any]]:
    """Return what of a batch the model takes, and what the loss takes besides.

    A tuple or list has the model's input first and then what the loss takes. Of a mapping, such as
    a batch of a loader, `inputs` and `targets` are names.
    """
    if isinstance(batch, Mapping):
        if inputs is None or targets is None:
            raise ConfigError(f"the batch has {sorted(map(str, batch))}: say which with inputs= and targets=")
        names = [[given] if isinstance(given, str) else list(given) for given in (inputs, targets)]
        missing = [name for name in names[0] + names[1] if name not in batch]
        if missing:
            raise ConfigError(f"the batch has no {missing[0]!r}: it has {sorted(map(str, batch))}")
        return [batch[name] for name in names[0]], [batch[name] for name in names[1]]
    if isinstance(batch, tuple | list) and len(batch) >= 1:
        if inputs is not None or targets is not None:
            raise ConfigError("inputs= and targets= are names within a batch that is a mapping")
        return [batch[0]], list(batch[1:])
    raise refused("batch", batch, "(input, target), or a mapping of names")


def samples_of(values: Sequence[Any]) -> int:
    """Return how many samples a batch has: the first axis of its tensors."""
    counts = {value.shape[0] for value in values if isinstance(value, torch.Tensor) and value.dim()}
    if len(counts) != 1:
        raise ConfigError(f"the tensors of a batch have {sorted(counts)} samples: they must have one number of them")
    (samples,) = counts
    if samples == 0:
        raise ConfigError("a batch without samples")
    return int(samples)


def cloned(values: Sequence[Any]) -> list[Any]:
    """Return copies of the tensors of a batch, for a profile: what it runs may write to them."""
    return [value.clone() if isinstance(value, torch.Tensor) else value for value in values]


class _Seed(torch.autograd.Function):
    """The identity, whose backward makes the gradient: nothing else holds it then."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        ctx.like = tensor.shape, tensor.dtype, tensor.device
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        shape, dtype, device = ctx.like
        return torch.ones(shape, dtype=dtype, device=device)


class _Measured:
    """Measures the stages one after another."""

    def __init__(
        self, stages: Stages, loss: Loss, inputs: Sequence[Any], targets: Sequence[Any], form: Form | None
    ) -> None:
        self.stages, self.loss, self.targets = stages, loss, targets
        self.packer = form if isinstance(form, Packer) else None
        self.lowered = form if isinstance(form, Lowered) else None
        self.values = stages.given(inputs)
        self.held = [*stages.model.parameters(), *stages.model.buffers(), *tensors_in([*inputs, *targets])]
        self.fake = any(is_fake(tensor) for tensor in self.held)
        self.on_device = not self.fake and any(tensor.is_cuda for tensor in self.held)
        self.planned: list[PlannedStage] = []
        # Bytes of each stage's backward at its worst moment.
        self.worst: list[int] = []
        self.maker = {node: i for i, stage in enumerate(stages.stages) for node in stage.nodes}
        # The last stage that uses each parameter.
        self.users: dict[int, PlannedStage] = {}

    def clock(self) -> float:
        if self.on_device:
            torch.cuda.synchronize()
        return time.perf_counter()

    def forward(self, stage: Stage, taken: Values) -> list[Any]:
        """Run a stage; return what it gives, or the loss for the last."""
        values = dict(taken)
        for node in stage.nodes:
            values[node] = self.stages.run(node, values, self.lowered)
        if stage is self.stages.stages[-1]:
            output = self.stages.output(values)
            loss = self.loss(output, *self.targets)
            if not isinstance(loss, torch.Tensor) or loss.dim():
                shape = (
                    f"the shape {tuple(loss.shape)}"
                    if isinstance(loss, torch.Tensor)
                    else f"type {type(loss).__name__}"
                )
                raise ConfigError(f"the loss has {shape}: it must be a tensor of one number")
            return [loss]
        return [values[node] for node in stage.gives]

    def taken(self, stage: Stage) -> Values:
        """Return what a stage takes, as leaves that need gradients where they are numbers."""
        last = stage is self.stages.stages[-1]
        names = dict.fromkeys([*stage.takes, *(self.stages.results if last else [])])
        found: Values = {}
        for node in names:
            if node in self.values:
                value = self.values[node]
                found[node] = _leaf(value, node in self.stages.needs)
        return found

    @contextlib.contextmanager
    def saving(self) -> Iterator[dict[int, int]]:
        """Save as the step will; gives the storages that are kept as they are, and their bytes."""
        if self.packer is None:
            yield {}
        else:
            with self.packer.noting() as left, self.packer.hooks():
                yield left

    def compressed(self, measured: PlannedStage, ends: Sequence[torch.Tensor], left: dict[int, int]) -> None:
        """Count what a stage takes where what is saved is compressed.

        Nothing but what is saved stays: an output is whole from its stage to the last that takes
        it. `ends` are what the stage takes and gives, of which some are kept as they are.
        """
        whole = sum({storage_key(t): storage_bytes(t) for t in tensors_in(list(self.values.values()))}.values())
        measured.saved_bytes += sum(left.get(key, 0) for key in {storage_key(end) for end in ends})
        measured.save_extra_bytes += measured.output_bytes + whole
        measured.forward_extra_bytes += measured.output_bytes + whole
        measured.output_bytes = 0

    def measure(self, stage: Stage, repeats: int) -> None:
        """Note the bytes and times of a stage, and keep what it gives."""
        parameters = self.stages.parameters(stage)
        measured = PlannedStage(name=stage.name)
        self.planned.append(measured)
        with Live(self.held) as live:
            taken = self.taken(stage)
            for tensor in tensors_in(list(taken.values())):
                live.add(tensor)
            live.reset()
            before = live.now
            with torch.no_grad(), frozen(self.stages.modules([stage])):
                given = self.forward(stage, taken)
            outputs = 0 if stage is self.stages.stages[-1] else live.now - before
            measured.output_bytes = outputs
            measured.forward_extra_bytes = max(0, live.peak - before - outputs)
            del given
        self.backward(stage, taken, parameters, measured)
        times = [self.timed(stage, parameters) for _ in range(repeats)]
        measured.forward_time = statistics.median(forward for forward, _ in times)
        measured.backward_time = statistics.median(backward for _, backward in times)
        self.keep(stage)

    def backward(self, stage: Stage, taken: Values, parameters: list[nn.Parameter], measured: PlannedStage) -> None:
        """Measure what a stage saves, and its backward at its worst moment."""
        leaves = [t for t in tensors_in(list(taken.values())) if t.requires_grad]
        if stage is self.stages.stages[-1]:
            # The loss may use any parameter, such as for a penalty on all of them.
            parameters = [p for p in self.stages.model.parameters() if p.requires_grad]
        with Live([*self.held, *leaves]) as live:
            before = live.now
            live.reset()
            with frozen(self.stages.modules([stage])), self.saving() as left:
                given = self.forward(stage, taken)
            measured.save_extra_bytes = max(0, live.peak - live.now)
            measured.saved_bytes = max(0, live.now - before - measured.output_bytes)
            if self.packer is not None:
                self.compressed(measured, [*leaves, *tensors_in(given)], left)
            totals = _totals(given)
            del given
            live.reset()
            grads = torch.autograd.grad(totals, [*leaves, *parameters], allow_unused=True) if totals else ()
            self.worst.append(live.peak - before)
        made = [p for p, grad in zip(parameters, grads[len(leaves) :], strict=False) if grad is not None]
        # A parameter's gradient comes with the last stage that uses it.
        self.users.update(dict.fromkeys(map(id, made), measured))
        nodes = [node for node, value in taken.items() for t in tensors_in(value) if t.requires_grad]
        self.note_gradients(nodes, grads[: len(nodes)])

    def compare(self, stage: Stage, parameters: list[nn.Parameter]) -> None:
        """Refuse a form in which the gradients of a stage are far from its own."""
        taken = self.taken(stage)
        inputs = [*(t for t in tensors_in(list(taken.values())) if t.requires_grad), *parameters]
        found: list[list[torch.Tensor]] = []
        for hooks in (contextlib.nullcontext, self.saving):
            with torch.random.fork_rng(), frozen(self.stages.modules([stage])):
                torch.manual_seed(0)
                with hooks():
                    outputs = _differentiable(self.forward(stage, taken))
                if not outputs or not inputs:
                    return
                seeds = [torch.randn_like(output) for output in outputs]
                grads = torch.autograd.grad(outputs, inputs, seeds, allow_unused=True)
                found.append([grad for grad in grads if grad is not None])
                del outputs, seeds, grads
        norm = math.sqrt(sum(float(g.float().square().sum()) for g in found[0]))
        away = math.sqrt(sum(float((a - b).float().square().sum()) for a, b in zip(*found, strict=True)))
        if not away <= MOST_APART * norm:
            assert self.packer is not None
            percent = f"{100 * away / max(norm, 1e-30):.0f} %"
            raise ConfigError(
                f"compress={self.packer.how.form!r} changes the gradients of {stage.name} by {percent}: its backward "
                "does not take rounded values. Leave compress= out, or take another form"
            )

    def note_gradients(self, nodes: list[fx.Node], grads: Sequence[torch.Tensor | None]) -> None:
        """Note the bytes of the gradients of what a stage takes, by the stage that gives it.

        A gradient may be a part of a larger tensor, as that of a concatenation: the one that lives
        longest has its bytes, and the others none.
        """
        counted = set()
        for node, grad in sorted(zip(nodes, grads, strict=False), key=lambda pair: self.maker.get(pair[0], -1)):
            maker = self.maker.get(node)
            if maker is None or grad is None:
                continue
            key = storage_key(grad)
            self.planned[maker].output_gradient_bytes = 0 if key in counted else storage_bytes(grad)
            counted.add(key)

    def finish(self, chain: Chain) -> None:
        """Set what backward takes besides the gradients, now that all of these are known."""
        for parameter in self.stages.model.parameters():
            if (user := self.users.get(id(parameter))) is not None:
                user.gradient_bytes += parameter.numel() * parameter.element_size()
        last_use = {skip.from_: skip.to for skip in chain.skips}
        for number, (stage, worst) in enumerate(zip(chain.stages, self.worst, strict=True), 1):
            ends = [s for i, s in enumerate(chain.stages, 1) if i < number and last_use.get(i, i + 1) == number]
            last = number == len(chain.stages)
            gradients = sum(_gradient(s) for s in ends) + (0 if last else _gradient(stage)) + stage.gradient_bytes
            stage.backward_extra_bytes = worst - stage.saved_bytes - stage.output_bytes - gradients

    def timed(self, stage: Stage, parameters: list[nn.Parameter]) -> tuple[float, float]:
        taken = self.taken(stage)
        leaves = [t for t in tensors_in(list(taken.values())) if t.requires_grad]
        with self.counting() as clock:
            with frozen(self.stages.modules([stage])), self.saving():
                began = clock()
                given = self.forward(stage, taken)
                between = clock()
            totals = _totals(given)
            del given
            if totals:
                torch.autograd.grad(totals, [*leaves, *parameters], allow_unused=True)
            return between - began, clock() - between

    @contextlib.contextmanager
    def counting(self) -> Iterator[Callable[[], float]]:
        """Give a clock: of seconds, or of floating-point operations where there are no values."""
        if not self.fake:
            yield self.clock
            return
        with Operations() as counted:
            yield lambda: counted.total / 1e12

    def keep(self, stage: Stage) -> None:
        """Keep what later stages take, and drop what none does."""
        if stage is self.stages.stages[-1]:
            return
        taken = self.taken(stage)
        with torch.no_grad(), frozen(self.stages.modules([stage])):
            given = self.forward(stage, taken)
        self.values.update(zip(stage.gives, given, strict=True))
        later = self.stages.stages[self.stages.stages.index(stage) + 1 :]
        needed = {node for other in later for node in other.takes} | set(self.stages.results)
        self.values = {node: value for node, value in self.values.items() if node in needed}


def _differentiable(value: Any) -> list[torch.Tensor]:
    return [tensor for tensor in tensors_in(value) if tensor.requires_grad]


def _gradient(stage: PlannedStage) -> int:
    return stage.output_bytes if stage.output_gradient_bytes is None else stage.output_gradient_bytes


def _totals(given: list[Any]) -> list[torch.Tensor]:
    """Return a number for each output, from which backward begins; its gradient is made there."""
    seeds = [_Seed.apply(tensor) for tensor in _differentiable(given)]
    return [(torch.view_as_real(seed) if seed.is_complex() else seed).sum() for seed in seeds]


def _leaf(value: Any, needs: bool) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    leaf = value.detach()
    return leaf.requires_grad_() if needs and (value.is_floating_point() or value.is_complex()) else leaf


def optimizer_bytes(optimizer: torch.optim.Optimizer, *, alone: bool = False) -> tuple[int, int]:
    """Return the bytes that an optimizer keeps, and those of its step besides.

    `alone` is for steps on one parameter at a time.

    They follow from a step of the same optimizer on one small parameter of each group: both are in
    proportion to the parameters. Where the optimizer has stepped already, what it keeps is counted.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError("LBFGS evaluates the loss several times in a step: it cannot be planned")
    # Not master weights, which are counted as such.
    states = [{name: value for name, value in state.items() if name != KEY} for state in optimizer.state.values()]
    held = tensors_in(states)
    kept = sum(storage_bytes(t) for t in held if t.numel() > 1)
    sizes = [_group_bytes(type(optimizer), group, alone) for group in optimizer.param_groups
             if any(p.requires_grad for p in group["params"])]  # fmt: skip
    return kept or sum(own for own, _ in sizes), max((extra for _, extra in sizes), default=0)


def _group_bytes(kind: Any, group: dict[str, Any], alone: bool) -> tuple[int, int]:
    """Return the bytes that the optimizer of a group keeps, and those of its step besides."""
    parameters = [p for p in group["params"] if p.requires_grad]
    like = parameters[0]
    # The bytes of a model without values are those of a small one that has some.
    device = "cpu" if like.is_meta else like.device
    trial = nn.Parameter(torch.zeros(64, 64, dtype=like.dtype, device=device))
    trial.grad = torch.ones_like(trial)
    options = {name: value for name, value in group.items() if name != "params"}
    try:
        same = kind([{**options, "params": [trial]}])
        same.step()
    except Exception as error:
        raise ConfigError(
            f"what {kind.__name__} keeps is not known: its step on one parameter fails ({error}); take one step before "
            "the plan"
        ) from None
    size = storage_bytes(trial)
    one = sum(storage_bytes(t) for state in same.state.values() for t in tensors_in(state) if t.numel() > 1)
    trial.grad = torch.ones_like(trial)
    with Live([trial, trial.grad, *tensors_in([*same.state.values()])]) as live:
        before = live.now
        same.step()
    extra = live.peak - before
    foreach = not alone and (group.get("foreach") or (group.get("foreach") is None and like.is_cuda))
    whole = sum(p.numel() * p.element_size() for p in parameters)
    largest = max(p.numel() * p.element_size() for p in parameters)
    return whole * one // size, (whole if foreach else largest) * extra // size


def _of_few(
    stages: Stages, loss: Loss, inputs: Sequence[Any], targets: Sequence[Any], form: Form | None, repeats: int
) -> Chain | None:
    """Return the stages with two samples; None where there are few, or one size."""
    if samples_of(tensors_in([*inputs, *targets])) < 2 * FEW:
        return None
    cut = [[v[:FEW] if isinstance(v, torch.Tensor) and v.dim() else v for v in values] for values in (inputs, targets)]
    measured = _Measured(stages, loss, cut[0], cut[1], form)
    try:
        for stage in stages.stages:
            measured.measure(stage, repeats)
    except Exception:
        # It takes batches of one size only, and says so in its own way: it has no micro-batches.
        return None
    return Chain(measured.planned)


def _cut_profile(profile: Profile, few: Chain | None) -> Profile | None:
    """Return the profile for batches that are cut, where copies of weights are saved too.

    What does not depend on the number of samples is then held all the time. None where nothing is
    known of few samples.
    """
    if few is None:
        return None
    pairs = list(zip(profile.chain.stages, few.stages, strict=True))

    def fixed(name: str) -> list[int]:
        sizes = [(getattr(one, name), getattr(other, name)) for one, other in pairs]
        return [max(0, (profile.batch * b - FEW * a) // (profile.batch - FEW)) for a, b in sizes]

    saved = fixed("saved_bytes")
    # For a moment there are gradients in the precision of the copies too.
    moment = max(max(fixed(f"{which}_extra_bytes")) for which in ("forward", "save", "backward"))
    planned = [
        replace(stage, saved_bytes=stage.saved_bytes - min(size, stage.saved_bytes))
        for (stage, _), size in zip(pairs, saved, strict=True)
    ]
    held = [*profile.held, Held("saved for any batch", sum(saved) + moment)]
    return replace(profile, chain=replace(profile.chain, stages=planned), held=held)


def profile_of(
    stages: Stages,
    loss: Loss,
    inputs: Sequence[Any],
    targets: Sequence[Any],
    optimizer: torch.optim.Optimizer | None,
    repeats: int,
    form: Form | None = None,
) -> tuple[Profile, Profile | None]:
    """Return the profile of stages, and another for batches that are cut where that differs.

    With a form it is that of a step that compresses, or that runs some modules in bfloat16.
    """
    before = {p: p.grad for p in stages.model.parameters()}
    versions = [tensor._version for tensor in tensors_in([*inputs, *targets])]
    own = Kept(loss) if isinstance(loss, nn.Module) else None
    measured = _Measured(stages, loss, inputs, targets, form)
    with undrawn():
        for stage in stages.stages:
            if measured.packer is not None:
                measured.compare(stage, stages.parameters(stage))
            measured.measure(stage, repeats)
        few = None if measured.fake else _of_few(stages, loss, inputs, targets, form, repeats)
    chain = Chain(measured.planned, [Skip(begin, end) for begin, end in stages.skips])
    measured.finish(chain)
    # The part of the time that does not depend on the number of samples; each micro-batch takes it.
    samples = samples_of(tensors_in([*inputs, *targets]))
    time_of_few = 0.0 if few is None else few.plain_time
    overhead = (samples * time_of_few - FEW * chain.plain_time) / max(1, samples - FEW)
    overhead = min(max(0.0, overhead), time_of_few)
    if versions != [tensor._version for tensor in tensors_in([*inputs, *targets])]:
        raise ConfigError("the model or the loss writes to the batch, which a second forward would find changed")
    if own is not None and (change := own.change()) is not None:
        own.restore()
        raise ConfigError(f"the loss cannot be planned, for it runs again in backward: {change}")
    if any(p.grad is not grad for p, grad in before.items()):
        raise ConfigError("the forward of the model sets gradients itself: it cannot be planned")
    parameters = list(stages.model.parameters())
    if not any(p.requires_grad for p in parameters):
        raise ConfigError(f"{type(stages.model).__name__} has no parameters that are trained")
    kept, extra = optimizer_bytes(optimizer) if optimizer else (0, 0)
    held = {
        "parameters": sum({storage_key(p): storage_bytes(p) for p in parameters}.values()),
        "optimizer": kept,
        "buffers": sum({storage_key(b): storage_bytes(b) for b in stages.model.buffers()}.values()),
        "scalars": SCALAR_BYTES if optimizer else 0,
    }
    given = tensors_in([*inputs, *targets])
    profile = Profile(
        batch=samples_of(given),
        chain=chain,
        held=[Held(name, size) for name, size in held.items() if size],
        input_bytes=sum({storage_key(t): storage_bytes(t) for t in given}.values()),
        optimizer_extra_bytes=extra,
        largest_gradient_bytes=max(p.numel() * p.element_size() for p in parameters if p.requires_grad),
        batch_norm=any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in stages.model.modules()),
        overhead_time=overhead,
        time_unit="Tflop" if measured.fake else "s",
        name=type(stages.model).__name__,
        fingerprint=stages.fingerprint,
    )
    # Only autocast saves copies of weights.
    autocast = torch.is_autocast_enabled(parameters[0].device.type) or measured.lowered is not None
    return profile, _cut_profile(profile, few) if autocast else None


def profile_model(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    inputs: str | Sequence[str] | None = None,
    targets: str | Sequence[str] | None = None,
    repeats: int = 3,
) -> Profile:
    """Return the profile of a training step, for `tidegate.training.plan` and `tidegate plan`.

    The model is cut into stages by `torch.fx`; a module that it cannot take apart is one node. Each
    stage runs forward and backward by itself, so that the profile takes little memory. Nothing of
    the model changes: neither gradients, nor buffers, nor the state of random numbers.

    A model that is larger than memory is built under `torch.device("meta")`: it has shapes and no
    values. Its bytes are those of the real one on the CPU, and its times floating-point operations.

    Args:
        model: the module, in the mode in which it trains.
        loss: a function of the model's output and the targets, a mean or a sum over samples.
        batch: (input, target, ...), or a mapping of names.
        optimizer: what updates the parameters; its bytes are then in the profile.
        inputs: names of what the model takes, where the batch is a mapping.
        targets: names of what the loss takes besides.
        repeats: how many times each stage is timed; bytes are the same each time.

    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 4))
    >>> batch = torch.ones(16, 8), torch.zeros(16, dtype=torch.long)
    >>> profile = profile_model(net, torch.nn.functional.cross_entropy, batch)
    >>> profile.chain.stages[0].output_bytes
    2048
    """
    if not isinstance(model, nn.Module):
        raise refused("model", model, "a torch.nn.Module")
    if not callable(loss):
        raise refused("loss", loss, "a function of the model's output and the targets")
    repeats = integer("repeats", repeats, 1, 1000)
    parts = parts_of(batch, inputs, targets)
    if is_meta(model):
        with faked(model, parts) as (same, (given, wanted)):
            return profile_of(Stages(same, given), loss, given, wanted, optimizer, 1)[0]
    given, wanted = map(cloned, parts)
    return profile_of(Stages(model, given), loss, given, wanted, optimizer, repeats)[0]
