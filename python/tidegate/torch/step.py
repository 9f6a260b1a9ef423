"""A training step within a budget: planned at its first batch, then run by the plan.

Flow: a batch -> micro-batches -> stages, stored or recomputed -> gradients -> the optimizer.
Memory: parameters, gradients, optimizer, and what the plan stores; `memory` bounds their sum.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from tidegate import training
from tidegate.errors import BudgetError, ConfigError, DataError, StateError
from tidegate.options import integer, known_options, number, refused, text
from tidegate.torch.compress import Compress, Packer, compress_of
from tidegate.torch.graph import Stages
from tidegate.torch.mean import check_mean
from tidegate.torch.profile import cloned, optimizer_bytes, parts_of, profile_of, samples_of
from tidegate.torch.recompute import Runner
from tidegate.torch.state import random_setter, random_state
from tidegate.torch.trace import hooked
from tidegate.training.request import size_of

__all__ = ["StepReport", "TrainStep"]


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
    """

    plan: training.Plan
    half: float | None
    twice: float
    steps: int
    noise_scale: float | None
    whole: list[str]

    def __str__(self) -> str:
        half = "does not fit" if self.half is None else f"takes {self.half:.2f} times as long"
        lines = [str(self.plan), f"With half the memory it {half}; with twice, {self.twice:.2f} times as long."]
        if self.noise_scale is not None:
            lines.append(f"The noise scale of the gradients is {self.noise_scale:.0f} samples.")
        if self.whole:
            lines.append(f"Not taken apart: {', '.join(self.whole)}.")
        return "\n".join(lines)


class Planners:
    """Plans of one batch: what is saved stays as it is, or it is compressed and not recomputed.

    The tables of the planners are as large as those of a small model: they are dropped after each
    plan, and solved again for the next.

    Attributes:
        memory: the budget of the last plan; of a state that was loaded, the plan is that of then
            where there is room for it.
    """

    def __init__(
        self,
        profile: training.Profile,
        packed: training.Profile | None,
        samples: int,
        most: int | None,
        memory: int | None = None,
    ) -> None:
        self.profile, self.packed, self.samples, self._most = profile, packed, samples, most
        self.memory = memory
        self._curve: list[training.Point] | None = None

    def state(self, key: str) -> dict[str, Any]:
        """Return what `of` takes."""
        packed = None if self.packed is None else self.packed.request()
        sizes = {"samples": self.samples, "memory": self.memory}
        return {"key": key, "profile": self.profile.request(), "packed": packed, **sizes}

    @classmethod
    def of(cls, state: Mapping[str, Any], most: int | None) -> Planners:
        """Return the planners of a state."""
        packed = None if state["packed"] is None else training.Profile.from_request(state["packed"])
        samples, memory = integer("samples", state["samples"], 1, 2**32), integer("memory", state["memory"], 0)
        return cls(training.Profile.from_request(state["profile"]), packed, samples, most, memory)

    def _all(self) -> list[tuple[training.Planner, bool]]:
        how: dict[str, Any] = {"batch": self.samples, "micro_batches": self._most}
        packed = [] if self.packed is None else [(training.Planner(self.packed, **how, recompute=False), True)]
        return [(training.Planner(self.profile, **how), False), *packed]

    def plan(self, memory: int) -> tuple[training.Plan, bool]:
        """Return the fastest plan within a budget, and whether it compresses."""
        found: list[tuple[training.Plan, bool]] = []
        refusal: BudgetError | None = None
        planners = self._all()
        for planner, packs in planners:
            try:
                found.append((planner.plan(memory), packs))
            except BudgetError as error:
                refusal = refusal or error
        if refusal is not None and not found:
            raise refusal
        if self._curve is None:
            self._curve = [point for planner, _ in planners for point in planner.curve()]
        self.memory = memory
        return min(found, key=lambda pair: pair[0].time)

    def curve(self) -> list[training.Point]:
        """Return the time of the fastest plan for every budget."""
        if self._curve is None:
            self._curve = [point for planner, _ in self._all() for point in planner.curve()]
        return self._curve


@dataclass
class _Shape:
    """What was planned for batches of one shape of sample, and up to a number of samples."""

    stages: Stages
    planners: Planners
    plan: training.Plan
    packs: bool
    runner: Runner
    checked: bool


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
        micro_batches: the most micro-batches. By default any; under batch normalization they
            change the result, and the default is 1.
        clip_norm: the largest norm of all gradients; by default they are not clipped.
        autocast: a dtype for `torch.autocast`; by default none.
        compress: "int8", "bf16" or a `Compress`: what is saved for backward may be kept in this
            form, where that is faster than to recompute it. Gradients are then not exact. By
            default nothing is.
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
        micro_batches: int | None = None,
        clip_norm: float | None = None,
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        compress: str | Compress | None = None,
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
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
            raise ConfigError("the model has parameters that get their sizes from a batch: run it once before")
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.memory_bytes = size_of(memory)
        self._names = inputs, targets
        _check_optimizer(model, optimizer)
        self._most = None if micro_batches is None else integer("micro_batches", micro_batches, 1, 2**16)
        self._clip = None if clip_norm is None else number("clip_norm", clip_norm, 0)
        self._autocast, self._scaler = autocast, scaler
        self._decay = None if noise_scale is None else number("noise_scale", noise_scale, 0, 1)
        # Its sizes of batches are those of the plan.
        self._noise: tuple[tuple[int, int], training.NoiseScale] | None = None
        form = compress_of(compress)
        self._packer = None if form is None else Packer(form, model)
        self._given = profile
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
        shape = self._planned(inputs, targets, samples)
        self._zero()
        sizes = training.micro_batches(samples, math.ceil(samples / shape.plan.micro_batches[0]))
        total: torch.Tensor | None = None
        small: torch.Tensor | None = None
        at = 0
        for size, weight in zip(sizes, training.weights(sizes), strict=True):
            part = [[_cut(value, samples, at, size) for value in values] for values in (inputs, targets)]
            with self._casting(), self._packing(shape):
                loss = shape.runner(*part)
            loss = loss if len(sizes) == 1 else loss * weight
            total = loss.detach().clone() if total is None else total + loss.detach()
            scaled = self._scaler.scale(loss) if self._scaler else loss
            scaled.backward()  # type: ignore[no-untyped-call, unused-ignore]
            del loss, scaled, part
            at += size
            if self._decay is not None and small is None and len(sizes) > 1:
                small = self._squared_norm() / weight**2
        assert total is not None
        scaling = self._scaler is not None and self._scaler.is_enabled()
        if not scaling and not bool(torch.isfinite(total)):
            self._zero()
            raise DataError(f"the loss of step {self._steps + 1} is {total.item()}: the optimizer has not stepped")
        if small is not None:
            self._note_noise((sizes[0], samples), small)
        self._update()
        self._steps += 1
        return total

    def _squared_norm(self) -> torch.Tensor:
        """Return the squared norm of all gradients, on the device."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.stack(torch._foreach_norm(gradients)).square().sum()

    def _note_noise(self, batches: tuple[int, int], small: torch.Tensor) -> None:
        """Add the norms of a micro-batch and of the batch to the estimate of the noise scale."""
        scale = self._scaler.get_scale() if self._scaler and self._scaler.is_enabled() else 1.0
        squared = (torch.stack([small, self._squared_norm()]) / scale**2).tolist()
        if self._noise is None or self._noise[0] != batches:
            self._noise = batches, training.NoiseScale(*batches, decay=self._decay or 0.0)
        if all(map(math.isfinite, squared)):
            self._noise[1].add(*squared)

    def _zero(self) -> None:
        """Free all gradients, also those of parameters that the optimizer does not have."""
        self.model.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)

    def _update(self) -> None:
        if self._scaler and self._clip is not None:
            self._scaler.unscale_(self.optimizer)
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        if self._scaler:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        else:
            self.optimizer.step()
        self._zero()

    def _packing(self, shape: _Shape) -> contextlib.AbstractContextManager[Any]:
        if self._packer is None or not shape.packs:
            return contextlib.nullcontext()
        return self._packer.hooks()

    def _casting(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, dtype=self._autocast)

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
            known = shape.planners
            planners = Planners(known.profile, known.packed, samples, self._most)
            shape = self._shape(shape.stages, planners, shape.checked)
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
                for profile in (known.profile, known.packed):
                    _check_profile(profile, stages)
                return self._shape(stages, known, checked=False)
            profile = self._given if not self._shapes else None
            if profile is None:
                profile = profile_of(stages, self.loss, inputs, targets, self.optimizer, 3)
            else:
                _check_profile(profile, stages)
                profile = _with_optimizer(profile, self.optimizer)
            packed = None
            if self._packer is not None:
                packed = profile_of(stages, self.loss, inputs, targets, self.optimizer, 3, self._packer)
        planners = Planners(profile, packed, samples_of([*inputs, *targets]), self._most)
        return self._shape(stages, planners, checked=False)

    def _shape(self, stages: Stages, planners: Planners, checked: bool) -> _Shape:
        plan, packs = self._plan(planners)
        return _Shape(stages, planners, plan, packs, Runner(stages, self.loss, plan.schedule), checked)

    def _again(self) -> dict[Any, _Shape]:
        """Return all shapes with new plans; a plan of then counts no more."""
        for shape in self._shapes.values():
            shape.planners.memory = None
        return {key: self._shape(s.stages, s.planners, s.checked) for key, s in self._shapes.items()}

    def _plan(self, planners: Planners) -> tuple[training.Plan, bool]:
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
        return {"compress": compress, "autocast": None if self._autocast is None else str(self._autocast)}

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
        return StepReport(shape.plan, half, (times[1] or now) / now, self._steps, noise, shape.stages.whole)

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
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in owned]
    if missing:
        raise ConfigError(
            f"the optimizer does not have {missing[0]!r}, which is trained: give it all of model.parameters(), or set "
            "requires_grad=False"
        )


def _check_profile(profile: training.Profile | None, stages: Stages) -> None:
    """Refuse a profile of something else."""
    if profile is None:
        return
    if profile.fingerprint != stages.fingerprint or len(profile.chain.stages) != len(stages.stages):
        raise ConfigError("the profile is of another model, or of inputs of another shape: make it again")
    if any(stage.keeps for stage in profile.chain.stages):
        raise ConfigError("the profile has stages with keeps=, which only the planner knows: leave them out")


def _with_optimizer(profile: training.Profile, optimizer: torch.optim.Optimizer) -> training.Profile:
    """Return a profile with the bytes of this optimizer, with which it may not have been made."""
    kept, extra = optimizer_bytes(optimizer)
    held = [part for part in profile.held if part.name != "optimizer"]
    held += [training.Held("optimizer", kept)] if kept else []
    return replace(profile, held=held, optimizer_extra_bytes=extra)


def _state(model: nn.Module) -> dict[str, Any]:
    """Return what of a model a plan follows from, and training may change."""
    found: dict[str, Any] = {f"{name}.requires_grad": p.requires_grad for name, p in model.named_parameters()}
    for name, module in model.named_modules():
        at = name or "the model"
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
    return f"{names[0]} was {before[names[0]]!r} and is {now[names[0]]!r}, which changed" if names else None


def _cut(value: Any, samples: int, at: int, size: int) -> Any:
    """Return some samples of a tensor; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value if size == samples or not value.dim() else value[at : at + size]
    return value
