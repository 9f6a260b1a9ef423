"""A training step within a budget: planned at its first batch, then run by the plan.

Flow: a batch -> micro-batches -> stages, stored or recomputed -> gradients -> the optimizer.
Memory: parameters, gradients, optimizer, and what the plan stores; `memory` bounds their sum.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tidegate import training
from tidegate.errors import BudgetError, ConfigError, DataError
from tidegate.options import integer, number, refused
from tidegate.torch.graph import Stages
from tidegate.torch.profile import parts_of, profile_of
from tidegate.torch.recompute import Runner
from tidegate.training.request import size_of

__all__ = ["StepReport", "TrainStep"]

# How far the loss of two halves, weighted by their sizes, may be from the loss of both.
SAME = 1e-3


@dataclass
class StepReport:
    """What a step was planned to take; `print` it for words.

    Attributes:
        plan: the plan that runs.
        half: the time with half the memory, over that of this plan; None where nothing fits.
        twice: the time with twice the memory, over that of this plan.
        steps: steps that were taken.
        whole: modules that could not be taken apart: each is one node.
    """

    plan: training.Plan
    half: float | None
    twice: float
    steps: int
    whole: list[str]

    def __str__(self) -> str:
        half = "does not fit" if self.half is None else f"takes {self.half:.2f} times as long"
        lines = [str(self.plan), f"With half the memory it {half}; with twice, {self.twice:.2f} times as long."]
        if self.whole:
            lines.append(f"Not taken apart: {', '.join(self.whole)}.")
        return "\n".join(lines)


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
        scaler: a `torch.amp.GradScaler`, for float16.
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
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.memory_bytes = size_of(memory)
        self._names = inputs, targets
        self._most = None if micro_batches is None else integer("micro_batches", micro_batches, 1, 2**16)
        self._clip = None if clip_norm is None else number("clip_norm", clip_norm, 0)
        self._autocast, self._scaler = autocast, scaler
        self._stages: Stages | None = None
        self._profile = profile
        self._planner: training.Planner | None = None
        self._planned_for = 0
        self._plan: training.Plan | None = None
        self._runner: Runner | None = None
        self._state: dict[str, tuple[str, bool]] = {}
        self._steps = 0

    def __call__(self, batch: Any) -> torch.Tensor:
        """Take a step, and return the loss of the batch before it, detached."""
        inputs, targets = parts_of(batch, *self._names)
        samples = _samples([*inputs, *targets])
        runner = self._planned(inputs, targets, samples)
        assert self._plan is not None
        self.optimizer.zero_grad(set_to_none=True)
        sizes = training.micro_batches(samples, math.ceil(samples / self._plan.micro_batches[0]))
        total = torch.zeros((), dtype=torch.float32)
        at = 0
        for size, weight in zip(sizes, training.weights(sizes), strict=True):
            part = (
                [_cut(value, samples, at, size) for value in inputs],
                [_cut(value, samples, at, size) for value in targets],
            )
            with self._casting():
                loss = runner(*part)
            if loss.dim():
                raise ConfigError(f"the loss has the shape {tuple(loss.shape)}: it must be one number")
            total = total.to(loss.device) + loss.detach().float() * weight
            scaled = loss if len(sizes) == 1 else loss * weight
            scaled = self._scaler.scale(scaled) if self._scaler else scaled
            scaled.backward()  # type: ignore[no-untyped-call, unused-ignore]
            del loss, scaled, part
            at += size
        if not (self._scaler or bool(torch.isfinite(total))):
            self.optimizer.zero_grad(set_to_none=True)
            raise DataError(f"the loss of step {self._steps + 1} is {total.item()}: the parameters are as before it")
        self._update()
        self._steps += 1
        return total

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
        self.optimizer.zero_grad(set_to_none=True)

    def _casting(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, dtype=self._autocast)

    def _planned(self, inputs: list[Any], targets: list[Any], samples: int) -> Runner:
        """Return what runs a batch; it is planned at the first, and at one that is larger."""
        if self._stages is None:
            self._state = _state(self.model)
            with self._casting():
                self._stages = Stages(self.model, inputs)
                if self._profile is None:
                    self._profile = profile_of(self._stages, self.loss, inputs, targets, self.optimizer, 3)
                elif self._profile.fingerprint != self._stages.fingerprint:
                    raise ConfigError("the profile is of another model: make it again with profile_model")
        if (changed := _changed(self._state, _state(self.model))) is not None:
            raise ConfigError(f"{changed} since the step was planned: make a new TrainStep")
        if self._runner is None or samples > sum(self._plan.micro_batches if self._plan else []):
            self._replan(samples)
            if self._plan and len(self._plan.micro_batches) > 1:
                self._check_mean(inputs, targets, samples)
        assert self._runner is not None
        return self._runner

    def _replan(self, samples: int) -> None:
        assert self._profile is not None
        assert self._stages is not None
        if self._planner is None or samples != self._planned_for:
            self._planner = training.Planner(self._profile, batch=samples, micro_batches=self._most)
            self._planned_for = samples
        self._plan = self._planner.plan(self.memory_bytes)
        self._runner = Runner(self._stages, self.loss, self._plan.schedule)

    def _check_mean(self, inputs: list[Any], targets: list[Any], samples: int) -> None:
        """Check on the model's output that the loss is a mean over samples."""
        few = min(samples, 8)
        first = few - few // 2
        with torch.no_grad(), torch.random.fork_rng(), self._casting():
            was = self.model.training
            self.model.eval()
            output = self.model(*[_cut(value, samples, 0, few) for value in inputs])
            self.model.train(was)
            wanted = [_cut(value, samples, 0, few) for value in targets]
            whole = self.loss(output, *wanted)
            halves = [
                self.loss(_cut(output, few, at, size), *[_cut(value, few, at, size) for value in wanted])
                for at, size in ((0, first), (first, few - first))
                if size
            ]
        mean = sum(loss * size for loss, size in zip(halves, (first, few - first), strict=False)) / few
        if not torch.allclose(whole.float(), torch.as_tensor(mean).float(), rtol=SAME, atol=1e-6):
            raise ConfigError(
                f"the loss of {few} samples is {whole.item():.6g}, and that of its halves, weighted by size, "
                f"{float(mean):.6g}: a batch can be cut only where the loss is a mean over samples. Give "
                "micro_batches=1, or a loss that is"
            )

    def set_memory(self, memory: int | float | str) -> None:
        """Change the budget between steps: a new plan comes from the profile that is there.

        Raises:
            BudgetError: when no plan fits; the budget is then as before.
        """
        before, self.memory_bytes = self.memory_bytes, size_of(memory)
        if self._plan is not None:
            try:
                self._replan(sum(self._plan.micro_batches))
            except BudgetError:
                self.memory_bytes = before
                raise

    def report(self) -> StepReport:
        """Return what the step was planned to take, and what other budgets would give."""
        if self._plan is None or self._planner is None or self._stages is None:
            raise ConfigError("there is no plan yet: take a step first")
        curve = self._planner.curve()
        times = [
            min((point.time for point in curve if point.memory_bytes <= budget), default=None)
            for budget in (self.memory_bytes // 2, 2 * self.memory_bytes)
        ]
        now = self._plan.time or 1.0
        half = None if times[0] is None else times[0] / now
        return StepReport(self._plan, half, (times[1] or now) / now, self._steps, self._stages.whole)

    def profile(self) -> training.Profile:
        """Return the profile, after the first step."""
        if self._profile is None:
            raise ConfigError("there is no profile yet: take a step first")
        return self._profile


def _state(model: nn.Module) -> dict[str, tuple[str, bool]]:
    """Return what of a model a plan follows from, and training may change."""
    modes = {f"mode of {name or 'the model'}": ("training", m.training) for name, m in model.named_modules()}
    frozen = {name: ("requires_grad", p.requires_grad) for name, p in model.named_parameters()}
    return modes | frozen


def _changed(before: dict[str, tuple[str, bool]], now: dict[str, tuple[str, bool]]) -> str | None:
    """Return what has changed, in words."""
    names = [name for name in before if now.get(name) != before[name]]
    if not names and before.keys() == now.keys():
        return None
    if not names:
        return "the model has got other modules or parameters"
    what, value = before[names[0]]
    return f"{names[0]} was {what}={value}, which has changed"


def _samples(values: list[Any]) -> int:
    """Return how many samples a batch has: the first axis of its tensors."""
    counts = {value.shape[0] for value in values if isinstance(value, torch.Tensor) and value.dim()}
    if len(counts) != 1:
        raise ConfigError(f"the tensors of a batch have {sorted(counts)} samples: they must have one number of them")
    (samples,) = counts
    if samples == 0:
        raise ConfigError("a batch without samples")
    return int(samples)


def _cut(value: Any, samples: int, at: int, size: int) -> Any:
    """Return some samples of a tensor, or of the tensors within a value."""
    if isinstance(value, torch.Tensor):
        return value if size == samples or not value.dim() else value[at : at + size]
    if isinstance(value, tuple | list):
        return type(value)(_cut(inner, samples, at, size) for inner in value)
    if isinstance(value, Mapping):
        return {name: _cut(inner, samples, at, size) for name, inner in value.items()}
    return value
