"""A training step within a budget: planned at its first batch, then run by the plan.

Flow: a batch -> micro-batches -> stages, stored or recomputed -> gradients -> the optimizer.
Memory: parameters, gradients, optimizer, and what the plan stores; `memory` bounds their sum.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from tidegate import training
from tidegate.errors import BudgetError, ConfigError, DataError, StateError
from tidegate.options import flag, integer, known_options, number, refused, text
from tidegate.torch.attention import SpelledOutAttention, advice
from tidegate.torch.compress import Compress, Packer, compress_of
from tidegate.torch.fake import is_meta
from tidegate.torch.fused import (
    Update,
    fused_profile,
    has_step_hooks,
    own_parameters,
    stepping,
    steps_alone,
    updating,
)
from tidegate.torch.graph import Stages
from tidegate.torch.lower import Lowered, names_of
from tidegate.torch.master import MasterWeights, parameters_of
from tidegate.torch.mean import check_mean
from tidegate.torch.plans import Planners, Way
from tidegate.torch.profile import SCALAR_BYTES, cloned, optimizer_bytes, parts_of, profile_of, samples_of
from tidegate.torch.recompute import Runner
from tidegate.torch.state import random_setter, random_state
from tidegate.torch.trace import hooked
from tidegate.training.request import size_of

__all__ = ["StepReport", "TrainStep"]

LOG = logging.getLogger("tidegate.training")


@dataclass
class StepReport:
    """What a step was planned to take; `print` it for words.

    Attributes:
        plan: the plan that runs.
        half: the time with half the memory, over that of this plan; None where nothing fits.
        twice: the time with twice the memory, over that of this plan.
        steps: steps that were taken.
        noise_scale: samples about which a larger batch no longer pays; None without an estimate.
        whole: modules that could not be taken apart: each is one node.
        compress: the form in which saved activations are kept; None where they stay as they are.
        lowered: names of modules that run in bfloat16.
        attention: modules that keep the scores of their attention, which fused attention does not.
        on_device: whether the model is on a device.
    """

    plan: training.Plan
    half: float | None
    twice: float
    steps: int
    noise_scale: float | None
    whole: list[str]
    compress: str | None
    lowered: list[str]
    attention: list[SpelledOutAttention]
    on_device: bool

    def __str__(self) -> str:
        half = "does not fit" if self.half is None else f"takes {self.half:.2f} times as long"
        lines = [str(self.plan), f"With half the memory it {half}; with twice, {self.twice:.2f} times as long."]
        if self.noise_scale is not None:
            lines.append(f"The noise scale of the gradients is {self.noise_scale:.0f} samples.")
        if self.whole:
            lines.append(f"Not taken apart: {', '.join(self.whole)}.")
        if self.compress is not None:
            lines.append(f"What is saved for backward is kept in the form {self.compress!r}.")
        if self.lowered:
            lines.append(f"In bfloat16: {', '.join(self.lowered)}.")
        if (words := advice(self.attention, self.on_device)) is not None:
            lines.append(words)
        return "\n".join(lines)


@dataclass
class _Shape:
    """What was planned for batches of one shape of sample, and up to a number of samples."""

    stages: Stages
    planners: Planners
    plan: training.Plan
    way: Way
    runner: Runner
    checked: bool

    @functools.cached_property
    def alone(self) -> list[nn.Parameter]:
        """The parameters that are updated in backward, each when its gradient is there."""
        if self.plan.gradients != "fused":
            return []
        return [p for own in own_parameters(self.planners.profile, self.stages) for p in own]


class TrainStep:
    """Takes training steps of a model within a budget of bytes.

    The first batch is profiled: each stage of the model runs by itself, so that this takes little
    memory. The plan then says how many micro-batches a batch is cut into, and which stages run
    forward again in backward. Gradients are bit for bit those of the plain step where the batch is
    one piece, and else the same up to rounding: micro-batches are weighted by their sizes.

    Args:
        model: the module, in the mode in which it trains; not compiled, not wrapped.
        loss: a function of the model's output and the targets, a mean over samples.
        optimizer: of the model's parameters.
        memory: bytes of parameters, gradients, optimizer, activations and the batch: an int, text
            such as "8GiB", or a fraction of the memory limit. What the process takes besides, such
            as the interpreter and the libraries, is not in it.
        inputs: names of what the model takes, where a batch is a mapping.
        targets: names of what the loss takes besides.
        optimizer_in_backward: whether each parameter may be updated as soon as its gradient is
            there, which is then freed. By default it may where that gives the same, bit for bit:
            the optimizer treats parameters one by one, and nothing needs all gradients, as
            `clip_norm` or a scaler does.
        micro_batches: the most micro-batches. By default any; under batch normalization they
            change the result, and the default is 1.
        clip_norm: the largest norm of all gradients; by default they are not clipped.
        autocast: a dtype for `torch.autocast`; by default none.
        compress: "int8", "bf16" or a `Compress`: what is saved for backward may be kept in this
            form, where that is faster than to recompute it. Gradients are then not exact. By
            default nothing is.
        lower_precision: names of modules, or patterns such as "blocks.*", that may run in bfloat16
            where that is faster than to recompute. By default none.
        master_weights: whether parameters in bfloat16 or float16 are updated in float32, in copies
            that take their places in the optimizer; its state has them, and is loaded after this.
            By default False.
        scaler: a `torch.amp.GradScaler`, for float16.
        noise_scale: what an older estimate of the noise scale weighs after each newer one, such as
            0.99; it needs micro-batches. By default nothing is estimated.
        profile: of this model, from `profile_model` with the same optimizer; by default it is made
            from the first batch.

    Raises:
        BudgetError: at the first step, when no plan fits; it names the floor and its parts.
        ConfigError: for a model, loss or batch that cannot be planned.

    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.GELU(), torch.nn.Linear(64, 4))
    >>> optimizer = torch.optim.AdamW(net.parameters())
    >>> step = TrainStep(net, torch.nn.functional.cross_entropy, optimizer, memory="64KiB")
    >>> loss = step((torch.ones(16, 8), torch.zeros(16, dtype=torch.long)))
    >>> step.report().plan.micro_batches
    [16]
    """

    @known_options
    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., torch.Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        memory: int | float | str,
        inputs: str | Sequence[str] | None = None,
        targets: str | Sequence[str] | None = None,
        optimizer_in_backward: bool | None = None,
        micro_batches: int | None = None,
        clip_norm: float | None = None,
        autocast: torch.dtype | None = None,
        master_weights: bool = False,
        scaler: torch.amp.GradScaler | None = None,
        compress: str | Compress | None = None,
        lower_precision: str | Sequence[str] | None = None,
        noise_scale: float | None = None,
        profile: training.Profile | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise refused("model", model, "a torch.nn.Module")
        if not callable(loss):
            raise refused("loss", loss, "a function of the model's output and the targets")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise refused("optimizer", optimizer, "a torch.optim.Optimizer")
        if autocast is not None and not isinstance(autocast, torch.dtype):
            raise refused("autocast", autocast, "a torch.dtype")
        if profile is not None and not isinstance(profile, training.Profile):
            raise refused("profile", profile, "a Profile of tidegate.training")
        if is_meta(model):
            raise ConfigError("the model has no values, so that profile_model can plan it, and nothing can train it")
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
            raise ConfigError("the model has parameters that get their sizes from a batch: run it once before")
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.memory_bytes = size_of(memory)
        self._names = inputs, targets
        _check_optimizer(model, optimizer)
        self._most = None if micro_batches is None else integer("micro_batches", micro_batches, 1, 2**16)
        self._clip = None if clip_norm is None else number("clip_norm", clip_norm, 0)
        self._autocast = autocast
        # One that is not enabled does nothing.
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._fused = self._may_fuse(optimizer_in_backward)
        self._decay = None if noise_scale is None else number("noise_scale", noise_scale, 0, 1)
        # Its sizes of batches are those of the plan.
        self._noise: tuple[tuple[int, int], training.NoiseScale] | None = None
        form = compress_of(compress)
        self._packer = None if form is None else Packer(form, model)
        self._lower = names_of(lower_precision)
        if autocast is not None and (self._lower or profile is not None):
            what = "lower_precision=" if self._lower else "profile="
            raise ConfigError(f"{what} is for a step without autocast=, which lowers all of the model: leave it out")
        if profile is not None and profile.time_unit != "s" and (form is not None or self._lower):
            raise ConfigError(
                f"the profile has times in {profile.time_unit}, and compress= and lower_precision= are measured in "
                "seconds: leave profile= out"
            )
        self._given = profile
        self._masters = self._master_weights(master_weights)
        self._shapes: dict[Any, _Shape] = {}
        # The shape of the last batch.
        self._key: Any = None
        self._state: dict[str, Any] = {}
        # What a state that was loaded has planned, by the shapes of batches.
        self._saved: dict[str, Planners] = {}
        self._steps = 0

    def __call__(self, batch: Any) -> torch.Tensor:
        """Take a step, and return the loss of the batch before it, detached."""
        inputs, targets = parts_of(batch, *self._names)
        samples = samples_of([*inputs, *targets])
        if self._masters is not None:
            self._masters.follow()
        shape = self._planned(inputs, targets, samples)
        self._zero()
        sizes = training.micro_batches(samples, math.ceil(samples / shape.plan.micro_batches[0]))
        total: torch.Tensor | None = None
        small: torch.Tensor | None = None
        alone = shape.alone
        if alone and has_step_hooks(self.optimizer):
            raise ConfigError(
                "the optimizer got hooks since the step was planned, which would run for every parameter: give "
                "optimizer_in_backward=False"
            )
        update = updating(self.optimizer) if self._masters is None else self._masters.updating()
        at = 0
        for size, weight in zip(sizes, training.weights(sizes), strict=True):
            part = [[_cut(value, samples, at, size) for value in values] for values in (inputs, targets)]
            with self._casting(), self._packing(shape):
                loss = shape.runner(*part)
            loss = loss if len(sizes) == 1 else loss * weight
            total = loss.detach().clone() if total is None else total + loss.detach()
            if alone:
                self._check_finite(total)
            scaled = self._scaler.scale(loss) if self._scaler else loss
            with stepping(update, alone):
                scaled.backward()  # type: ignore[no-untyped-call, unused-ignore]
            del loss, scaled, part
            at += size
            if self._decay is not None and small is None and len(sizes) > 1:
                small = self._squared_norm() / weight**2
        assert total is not None
        scaling = self._scaler is not None
        if not scaling and not alone:
            self._check_finite(total)
        if small is not None:
            self._note_noise((sizes[0], samples), small)
        self._update(update)
        self._steps += 1
        return total

    def _check_finite(self, loss: torch.Tensor) -> None:
        """Refuse a loss that is no number, before a parameter changes."""
        if not bool(torch.isfinite(loss)):
            self._zero()
            raise DataError(f"the loss of step {self._steps + 1} is {loss.item()}: the optimizer has not stepped")

    def _master_weights(self, wanted: bool) -> MasterWeights | None:
        if not flag("master_weights", wanted):
            return None
        if self._scaler is not None:
            raise ConfigError("master_weights=True: a scaler looks for gradients at these, and there are none")
        return MasterWeights(self.optimizer)

    def _may_fuse(self, wanted: bool | None) -> bool:
        """Return whether the optimizer may step in backward."""
        if wanted is not None and not flag("optimizer_in_backward", wanted):
            return False
        reason = None
        if self._clip is not None:
            reason = "clip_norm needs the norm of all gradients before the first of them is used"
        elif self._scaler is not None:
            reason = "a scaler skips a step for what the last gradient has"
        elif not steps_alone(self.optimizer):
            kind = type(self.optimizer).__name__
            reason = f"{kind} does not treat parameters one by one, or has hooks for its steps"
        if wanted and reason is not None:
            raise ConfigError(f"optimizer_in_backward=True: {reason}")
        return reason is None

    def _squared_norm(self) -> torch.Tensor:
        """Return the squared norm of all gradients, on the device."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.stack(torch._foreach_norm(gradients)).square().sum()

    def _note_noise(self, batches: tuple[int, int], small: torch.Tensor) -> None:
        """Add the norms of a micro-batch and of the batch to the estimate of the noise scale."""
        scale = self._scaler.get_scale() if self._scaler else 1.0
        squared = (torch.stack([small, self._squared_norm()]) / scale**2).tolist()
        if self._noise is None or self._noise[0] != batches:
            self._noise = batches, training.NoiseScale(*batches, decay=self._decay or 0.0)
        if all(map(math.isfinite, squared)):
            self._noise[1].add(*squared)

    def _zero(self) -> None:
        """Free all gradients, also those of parameters that the optimizer does not have."""
        self.model.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)

    def _update(self, update: Update) -> None:
        if self._scaler and self._clip is not None:
            self._scaler.unscale_(self.optimizer)
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        if self._scaler:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        elif self._masters is not None:
            for parameter in [p for p in parameters_of(self.optimizer) if p.grad is not None]:
                update(parameter)
        else:
            self.optimizer.step()
        self._zero()

    def _packing(self, shape: _Shape) -> contextlib.AbstractContextManager[Any]:
        if self._packer is None or not shape.way.packs:
            return contextlib.nullcontext()
        return self._packer.hooks()

    def _casting(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        device = next(self.model.parameters()).device.type
        # Without a cache, in which copies of all weights would stay until the end of the context.
        return torch.autocast(device, dtype=self._autocast, cache_enabled=False)

    def _planned(self, inputs: list[Any], targets: list[Any], samples: int) -> _Shape:
        """Return what runs a batch; planned at the first of its shape, and at a larger one."""
        state = _state(self.model)
        if not self._shapes:
            self._state = state
        elif (changed := _changed(self._state, state)) is not None:
            raise ConfigError(f"{changed} since the step was planned: make a new TrainStep")
        key = tuple((t.shape[1:], t.dtype, t.device) for t in [*inputs, *targets] if isinstance(t, torch.Tensor))
        shape = self._shapes.get(key) or self._profiled(repr(key), cloned(inputs), cloned(targets))
        if shape.planners.samples < samples:
            shape = self._shape(shape.stages, shape.planners.of_samples(samples), shape.checked)
        if len(shape.plan.micro_batches) > 1 and not shape.checked:
            with self._casting():
                check_mean(self.model, self.loss, inputs, targets, shape.plan.micro_batches[0])
            shape = replace(shape, checked=True)
        self._shapes[key], self._key = shape, key
        return shape

    def _profiled(self, key: str, inputs: list[Any], targets: list[Any]) -> _Shape:
        with self._casting():
            stages = Stages(self.model, inputs)
            known = self._saved.get(key)
            if known is not None:
                for way in known.ways:
                    _check_profile(way.profile, stages)
                return self._shape(stages, known, checked=False)
            ways: list[Way] = []

            def add(form: Packer | Lowered | None = None, **how: bool) -> None:
                profile, cut = profile_of(stages, self.loss, inputs, targets, self.optimizer, 3, form)
                ways.append(Way(profile, **how, whole=cut is not None))
                if cut is not None:
                    ways.append(Way(cut, **how))

            if self._given is None or self._shapes:
                add()
            else:
                _check_profile(self._given, stages)
                ways.append(Way(_with_optimizer(self._given, self.optimizer)))
            if self._packer is not None:
                add(self._packer, packs=True)
            if self._lower:
                add(Lowered(stages, self._lower), lowers=True)
        extra = optimizer_bytes(self.optimizer, alone=True)[1]
        if self._masters is not None:
            # Beside the optimizer's own, there is a gradient in float32.
            extra += self._masters.largest_bytes
            ways = [replace(way, profile=self._masters.added_to(way.profile, extra)) for way in ways]
        if self._fused:
            ways += [replace(way, profile=fused_profile(way.profile, stages, extra), fused=True) for way in ways]
        planners = Planners(ways, samples_of([*inputs, *targets]), self._most)
        return self._shape(stages, planners, checked=False)

    def _shape(self, stages: Stages, planners: Planners, checked: bool) -> _Shape:
        plan, way = self._plan(planners)
        lowered = Lowered(stages, self._lower) if way.lowers else None
        if lowered is not None:
            LOG.info("step %d: in bfloat16: %s", self._steps + 1, ", ".join(self._lower))
        return _Shape(stages, planners, plan, way, Runner(stages, self.loss, plan.schedule, lowered), checked)

    def _again(self) -> dict[Any, _Shape]:
        """Return all shapes with new plans; a plan of then counts no more."""
        for shape in self._shapes.values():
            shape.planners.memory = None
        return {key: self._shape(s.stages, s.planners, s.checked) for key, s in self._shapes.items()}

    def _plan(self, planners: Planners) -> tuple[training.Plan, Way]:
        then = planners.memory
        return planners.plan(self.memory_bytes if then is None else min(then, self.memory_bytes))

    def set_memory(self, memory: int | float | str) -> None:
        """Change the budget between steps: a new plan comes from the profile that is there.

        Raises:
            BudgetError: when no plan fits, after the first step; the budget is then as before.
        """
        before, self.memory_bytes = self.memory_bytes, size_of(memory)
        try:
            self._shapes = self._again()
        except BudgetError:
            self.memory_bytes = before
            raise

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs besides model, optimizer and loader, as JSON-able values.

        These are the profiles, from which the same plans follow, and the states of all generators:
        with the same memory, the run goes on bit for bit.
        """
        return {
            "version": 1,
            "steps": self._steps,
            "forms": self._forms(),
            "rounded": 0 if self._packer is None else self._packer.steps,
            "noise": None if self._noise is None else [*self._noise[0], self._noise[1].state_dict()],
            "shapes": [shape.planners.state(repr(key)) for key, shape in self._shapes.items()],
            "random": random_state(),
        }

    def _forms(self) -> dict[str, Any]:
        """Return what profiles depend on besides the model."""
        compress = None if self._packer is None else asdict(self._packer.how)
        autocast = None if self._autocast is None else str(self._autocast)
        masters = self._masters is not None
        how = {"fused": self._fused, "lower_precision": self._lower, "master_weights": masters}
        return {"compress": compress, "autocast": autocast, **how}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was saved; the generators go on there at once.

        Raises:
            StateError: for what `state_dict` did not give, or of a step with another `compress=` or
                `autocast=`; nothing has changed then.
        """
        self._loaded(state)()

    def _loaded(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return what takes a state over; nothing changes before it is called."""
        try:
            if state["version"] != 1:
                raise StateError(f"the state of a step has version {state['version']!r}: this release reads 1")
            if state["forms"] != self._forms():
                raise StateError(f"the state is of a step with {state['forms']}, and this one has {self._forms()}")
            saved = {text("key", one["key"]): Planners.of(one, self._most) for one in state["shapes"]}
            for way in (way for planners in saved.values() for way in planners.ways):
                if (way.packs and self._packer is None) or (way.lowers and not self._lower):
                    raise StateError("the state has plans that compress, or lower the precision: this step does not")
            steps, rounded = (integer(name, state[name], 0) for name in ("steps", "rounded"))
            noise = None if state["noise"] is None else _noise_of(*state["noise"])
            put = random_setter(state["random"])
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, ConfigError) as error:
            if isinstance(error, StateError):
                raise
            raise StateError(f"this is not the state of a training step ({error!r})") from None

        def take() -> None:
            put()
            self._saved, self._steps, self._shapes, self._key, self._noise = saved, steps, {}, None, noise
            if self._packer is not None:
                self._packer.steps = rounded

        return take

    def report(self) -> StepReport:
        """Return what the step was planned to take, and what other budgets would give."""
        shape = self._last()
        curve = shape.planners.curve()
        times = [
            min((point.time for point in curve if point.memory_bytes <= budget), default=None)
            for budget in (shape.plan.memory_bytes // 2, 2 * shape.plan.memory_bytes)
        ]
        now = shape.plan.time or 1.0
        half = None if times[0] is None else times[0] / now
        noise = None if self._noise is None else self._noise[1].value
        stages = shape.stages
        on_device = any(p.is_cuda for p in self.model.parameters())
        twice = (times[1] or now) / now
        compress = self._packer.how.form if self._packer is not None and shape.way.packs else None
        lowered = self._lower if shape.way.lowers else []
        part = shape.planners.samples / shape.planners.profile.batch
        attention = [replace(one, bytes=int(one.bytes * part)) for one in stages.attention]
        forms = (stages.whole, compress, lowered, attention)
        return StepReport(shape.plan, half, twice, self._steps, noise, *forms, on_device)

    def profile(self) -> training.Profile:
        """Return the profile of the last batch's shape, after the first step."""
        return self._last().planners.profile

    def _last(self) -> _Shape:
        if self._key not in self._shapes:
            raise ConfigError("there is no plan yet: take a step first")
        return self._shapes[self._key]


def _noise_of(small: int, large: int, state: Mapping[str, Any]) -> tuple[tuple[int, int], training.NoiseScale]:
    scale = training.NoiseScale(small, large)
    scale.load_state_dict(state)
    return (small, large), scale


def _check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Check that the optimizer has the parameters that are trained."""
    owned = {id(p) for p in parameters_of(optimizer)}
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in owned]
    if missing:
        raise ConfigError(
            f"the optimizer does not have {missing[0]!r}, which is trained: give it all of model.parameters(), or set "
            "requires_grad=False"
        )


def _check_profile(profile: training.Profile, stages: Stages) -> None:
    """Refuse a profile of something else."""
    if profile.fingerprint != stages.fingerprint or len(profile.chain.stages) != len(stages.stages):
        raise ConfigError("the profile is of another model, or of inputs of another shape: make it again")
    if any(stage.keeps for stage in profile.chain.stages):
        raise ConfigError("the profile has stages with keeps=, which only the planner knows: leave them out")


def _with_optimizer(profile: training.Profile, optimizer: torch.optim.Optimizer) -> training.Profile:
    """Return a profile with the bytes of this optimizer, with which it may not have been made."""
    kept, extra = optimizer_bytes(optimizer)
    held = [part for part in profile.held if part.name not in ("optimizer", "scalars")]
    held += [training.Held("optimizer", kept)] if kept else []
    held.append(training.Held("scalars", SCALAR_BYTES))
    return replace(profile, held=held, optimizer_extra_bytes=extra)


def _state(model: nn.Module) -> dict[str, Any]:
    """Return what of a model a plan follows from, and training may change."""
    found: dict[str, Any] = {f"{name}.requires_grad": p.requires_grad for name, p in model.named_parameters()}
    for name, module in model.named_modules():
        at = name or "the model"
        found[at] = module
        found[f"hooks of {at}"] = hooked(module)
        for key, value in module.__dict__.items():
            if key != "_is_full_backward_hook" and isinstance(value, bool | int | float | str | None):
                found[f"{key} of {at}"] = value
    return found


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Return what has changed, in words."""
    if before.keys() != now.keys():
        return "the model has got or lost modules, parameters or attributes"
    names = [name for name in before if now[name] != before[name]]
    if names and isinstance(now[names[0]], nn.Module):
        return f"{names[0]} is another module"
    return f"{names[0]} was {before[names[0]]!r} and is {now[names[0]]!r}, which changed" if names else None


def _cut(value: Any, samples: int, at: int, size: int) -> Any:
    """Return some samples of a tensor; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value if size == samples or not value.dim() else value[at : at + size]
    return value
