"""A loader and a training step under one number.

Flow: one budget -> what the step is planned to take, and what the process takes besides -> the rest
is the loader's; the limit of the process -> another plan, between two steps.
Memory: that of the step and of the loader; this file holds the figures of each step.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tidegate import training
from tidegate.errors import BudgetError, ConfigError, StateError
from tidegate.options import integer, refused
from tidegate.torch import process
from tidegate.torch.limit import Limit
from tidegate.torch.live import Live
from tidegate.torch.plans import Planners, Way
from tidegate.torch.step import StepReport, TrainStep

if TYPE_CHECKING:
    from tidegate.loader import Loader

__all__ = ["ContextReport", "Moment", "TrainingContext", "training_context"]

MIB = 1 << 20
# What kernels and the C library take besides tensors, until it is measured: up to 31 MiB on six
# models (`bench/memory_training.py`).
RESERVE_BYTES = 32 * MIB
# The least that the loader is asked to live with.
LEAST_BYTES = 2 * MIB
# Where there is this many times as much as the step is planned to take, freed blocks may stay.
ROOMY = 1.6
# Steps whose figures are kept.
KEPT_STEPS = 10_000

LOG = logging.getLogger("tidegate.training")


@dataclass
class Moment:
    """What a step took.

    Attributes:
        step: counted from 1.
        memory_bytes: the one number.
        step_bytes: the planned peak of the step.
        loader_bytes: the loader's budget.
        besides_bytes: what is set aside for kernels and the C library.
        measured_bytes: the most that the process took above its base; 0 where the kernel does not
            say.
    """

    step: int
    memory_bytes: int
    step_bytes: int
    loader_bytes: int
    besides_bytes: int
    measured_bytes: int


@dataclass
class ContextReport(StepReport):
    """What the step and the loader take together; `print` it for words.

    Attributes:
        base_bytes: what the process took before: the interpreter, libraries, other data.
        loader_bytes: the loader's budget.
        besides_bytes: what is set aside for kernels and the C library.
        memory_bytes: the one number, above the base.
        measured_bytes: the most that the process took above the base in a step with this number; 0
            where the kernel does not say.
        allocator: what was done about freed memory, in words.
        moments: what each of the last 10,000 steps took.
    """

    base_bytes: int
    loader_bytes: int
    besides_bytes: int
    memory_bytes: int
    measured_bytes: int
    allocator: str
    moments: list[Moment]

    def __str__(self) -> str:
        parts = [("the step", self.plan.peak_bytes), ("the loader", self.loader_bytes), ("besides", self.besides_bytes)]
        words = " + ".join(f"{name} {size / MIB:.1f}" for name, size in parts)
        whole = sum(size for _, size in parts)
        lines = [super().__str__(), f"{words} = {whole / MIB:.1f} of {self.memory_bytes / MIB:.1f} MiB."]
        if self.measured_bytes:
            measured, base = self.measured_bytes / MIB, self.base_bytes / MIB
            lines.append(f"Measured: at most {measured:.1f} MiB above {base:.1f} MiB.")
        return "\n".join([*lines, f"Note: {self.allocator}."])


class TrainingContext(TrainStep):
    """A `TrainStep` that shares its budget with a loader; made by `training_context`."""

    def __init__(
        self,
        loader: Loader,
        model: nn.Module,
        loss: Callable[..., torch.Tensor],
        optimizer: torch.optim.Optimizer,
        memory: int | float | str,
        **options: Any,
    ) -> None:
        tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
        if any(t.device.type != "cpu" for t in tensors):
            raise ConfigError(
                "the model is on a device, whose memory the loader does not use: give TrainStep(memory=) and "
                "Loader(memory=) a budget each"
            )
        super().__init__(model, loss, optimizer, memory=1, **options)
        self.loader = loader
        self._whole = Limit(memory)
        process.give_back()
        self._base = max(0, process.anonymous_bytes() - self._tensor_bytes() - loader.budget.charged_bytes)
        # What was done about freed blocks: nothing, as long as there is room for them.
        self._allocator = process.return_freed_blocks() if process.return_freed_blocks.cache_info().currsize else ""
        # What the loader had, and the share of it that is left to it.
        self._wish = self._share = loader.budget.cap_bytes
        # The peak of the plans that are in use.
        self._peak = 0
        self._besides = RESERVE_BYTES
        # Whether the number has changed since the plans were made.
        self._stale = False
        self._moments: deque[Moment] = deque(maxlen=KEPT_STEPS)
        # Whether the last step only ran plans that were there.
        self._steady = False

    def __call__(self, batch: Any) -> torch.Tensor:
        """Take a step, and return the loss of the batch before it, detached."""
        self._stale |= self._whole.changed()
        if self._stale:
            self._follow()
        else:
            self._set_more_aside()
        shapes = len(self._shapes)
        files = process.begin_peak()
        loss = super().__call__(batch)
        above = 0 if files is None else max(0, process.peak_bytes(files) - self._base)
        self._steady = len(self._shapes) == shapes
        sizes = self.memory_bytes_in_all, self._last().plan.peak_bytes, self.loader.budget.cap_bytes, self._besides
        self._moments.append(Moment(self._steps, *sizes, above))
        return loss

    def _follow(self) -> None:
        """Plan again for another limit; pressure alone does not end a run."""
        while True:
            try:
                self._fit_with_less_aside()
                return
            except BudgetError as error:
                self._forgive(error)

    def _fit_with_less_aside(self) -> None:
        """Plan again with what is set aside, or with less where that does not fit."""
        before = self._besides
        try:
            self._fit()
        except BudgetError:
            if before == RESERVE_BYTES:
                raise
            self._besides = RESERVE_BYTES
            try:
                self._fit()
            except BudgetError:
                self._besides = before
                raise

    def _forgive(self, error: BudgetError) -> None:
        """Give back what pressure took, or raise the error where it took nothing."""
        if not self._whole.forgive():
            raise error
        LOG.warning("step %d: the process waits for memory, and no smaller plan fits (%s)", self._steps + 1, error)

    @property
    def memory_bytes_in_all(self) -> int:
        """The one number: bytes above the base."""
        return max(0, self._whole.bytes - (0 if self._whole.share is None else self._base))

    def _tensor_bytes(self) -> int:
        """Return the bytes of the tensors of the model and the optimizer that are there already."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        found = [*self.model.parameters(), *self.model.buffers(), *(p.grad for p in self.model.parameters()), *states]
        return Live(t for t in found if isinstance(t, torch.Tensor)).now

    def _set_more_aside(self) -> None:
        """Plan again with less, where the last step took more than the number."""
        last = self._moments[-1] if self._moments else None
        if last is None or not self._steady or last.memory_bytes != self.memory_bytes_in_all:
            return
        over = last.measured_bytes - last.memory_bytes
        if over <= 0 or last.besides_bytes != self._besides:
            return
        if not self._allocator:
            self._allocator = process.return_freed_blocks()
            return
        before, self._besides = self._besides, self._besides + over + over // 8
        try:
            self._fit()
        except BudgetError as error:
            # Nothing is lost by going on as before, and a later step may take less.
            self._besides = before
            LOG.warning("step %d: the process takes %.1f MiB too much (%s)", self._steps + 1, over / MIB, error)

    def _planned(self, inputs: list[Any], targets: list[Any], samples: int) -> Any:
        while True:
            try:
                shape = super()._planned(inputs, targets, samples)
                break
            except BudgetError as error:
                self._forgive(error)
        self._give()
        return shape

    def _give(self) -> None:
        """Give the loader its share, and what the step leaves."""
        size = max(self._share, self.memory_bytes_in_all - self._besides - self._peak)
        if self.loader.budget.cap_bytes != size:
            self.loader.set_memory(size)

    def _plan(self, planners: Planners) -> tuple[training.Plan, Way]:
        """Plan within what the loader leaves: it gets its wish, or half of that, and so on."""
        share, then = self._share, planners.memory
        whole = self.memory_bytes_in_all - self._besides
        if then is not None and then + LEAST_BYTES <= whole:
            # The plan of a state that was loaded.
            share = min(share, whole - then)
        while True:
            self.memory_bytes = max(0, whole - share) if then is None else min(then, max(0, whole - share))
            try:
                plan, way = planners.plan(self.memory_bytes)
                break
            except BudgetError as error:
                if share <= LEAST_BYTES:
                    raise BudgetError(
                        f"the step and the loader do not fit {self.memory_bytes_in_all / MIB:.1f} MiB together, of "
                        f"which {self._besides / MIB:.1f} MiB are for kernels and the C library and "
                        f"{share / MIB:.1f} MiB would be the loader's: {error}"
                    ) from None
            share = max(share // 2, LEAST_BYTES)
        self._share, self._peak = share, max(self._peak, plan.peak_bytes)
        if not self._allocator and self._peak * ROOMY > whole - share:
            self._allocator = process.return_freed_blocks()
        return plan, way

    def _fit(self) -> None:
        """Plan again: the number has changed, or more is set aside; an error changes nothing."""
        before = self._share, self._peak, self.memory_bytes
        self._share, self._peak = self._wish, 0
        try:
            shapes = self._again()
            if shapes:
                self._give()
        except BudgetError:
            self._share, self._peak, self.memory_bytes = before
            raise
        self._shapes, self._stale = shapes, False
        process.give_back()
        sizes = [self.memory_bytes_in_all, self._peak, self.loader.budget.cap_bytes, self._besides]
        LOG.info(
            "step %d: %.1f MiB in all, the step %.1f, the loader %.1f, besides %.1f",
            self._steps + 1,
            *(size / MIB for size in sizes),
        )

    def set_memory(self, memory: int | float | str) -> None:
        """Change the one number between steps; the step is planned again, and the loader adapts.

        Raises:
            BudgetError: when no plan fits, after the first step; the number is then as before.
        """
        before, self._whole = self._whole, Limit(memory)
        try:
            self._fit_with_less_aside()
        except BudgetError:
            self._whole = before
            raise

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs besides model and optimizer, the loader's state too."""
        return {**super().state_dict(), "loader": self.loader.state_dict(), "besides": self._besides}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was saved, with the loader.

        Raises:
            StateError: for what `state_dict` did not give; nothing has changed then.
        """
        take = self._loaded(state)
        try:
            besides = integer("besides", state["besides"], RESERVE_BYTES, 2**42)
            self.loader.load_state_dict(state["loader"])
        except (KeyError, ConfigError) as error:
            raise StateError(f"this is not the state of a training context ({error!r})") from None
        take()
        self._besides, self._share, self._peak = besides, self._wish, 0

    def report(self) -> ContextReport:
        """Return what the step and the loader take together."""
        whole = self.memory_bytes_in_all
        return ContextReport(
            **vars(super().report()),
            base_bytes=self._base,
            loader_bytes=self.loader.budget.cap_bytes,
            besides_bytes=self._besides,
            memory_bytes=whole,
            measured_bytes=max((m.measured_bytes for m in self._moments if m.memory_bytes == whole), default=0),
            allocator=self._allocator or "freed blocks stay with the C library, because there is room for them",
            moments=list(self._moments),
        )


@contextlib.contextmanager
def training_context(
    loader: Loader,
    model: nn.Module,
    loss: Callable[..., torch.Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    memory: int | float | str,
    **options: Any,
) -> Iterator[TrainingContext]:
    """Train with one number over loader and step; yields the step.

    Each step is planned so that it leaves the loader its budget, or as much of it as there is; what
    the step does not need is the loader's too. The plan, what the process was measured to take, and
    the loader's budget are in `step.report()`.

    Args:
        loader: it reads the batches; its budget changes within the context, and not beyond it. What
            other loaders hold of the same budget is part of it.
        model: on the CPU, in the mode in which it trains.
        loss: as in `TrainStep`.
        optimizer: of the model's parameters.
        memory: bytes above what the process takes already: an int, or text such as "8GiB". A
            fraction is that part of the memory limit with all that the process takes; it follows
            the limit between steps: a lower one at once, a higher one when it stays.
        **options: those of `TrainStep`, such as `inputs=` and `targets=`.

    Raises:
        BudgetError: at the first step, when the two do not fit together.
        ConfigError: for what cannot be planned, and for a model on a device.

    >>> import numpy, tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".npy") as file:
    ...     numpy.save(file, numpy.ones((64, 8), "float32"))
    ...     file.flush()
    ...     rows = tg.mapped(file.name).rows()
    ...     loader = tg.Loader(rows, batch_size=16, memory="16MiB", output="torch")
    ...     net = torch.nn.Linear(8, 8)
    ...     optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    ...     loss = torch.nn.functional.mse_loss
    ...     how = {"memory": "96MiB", "inputs": "data", "targets": "data"}
    ...     with training_context(loader, net, loss, optimizer, **how) as step:
    ...         losses = [step(batch) for batch in loader]
    >>> len(losses)
    4
    """
    if not isinstance(loader, _loader_class()):
        raise refused("loader", loader, "a tidegate.Loader")
    if loader in _IN_USE:
        raise ConfigError("the loader is in another training_context: a loader has one number")
    before = loader.budget.cap_bytes
    _IN_USE.add(loader)
    try:
        yield TrainingContext(loader, model, loss, optimizer, memory, **options)
    finally:
        _IN_USE.discard(loader)
        if loader.budget.cap_bytes != before:
            loader.set_memory(before)


# Loaders that are in a context.
_IN_USE: weakref.WeakSet[Any] = weakref.WeakSet()


def _loader_class() -> type:
    # Not at the top: a loader imports this package for tensors.
    from tidegate.loader import Loader

    return Loader
