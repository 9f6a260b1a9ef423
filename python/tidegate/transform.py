"""`Steps`: a user's functions over samples and batches, called off the training thread.

Flow: a raw batch -> `transform` of each sample -> tensors -> `batch_transform` -> the result.
Memory: `stacking` makes the results of samples columns; see there.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tidegate._tidegate import Budget
from tidegate.batch import Batch, present
from tidegate.errors import Error
from tidegate.generators import Seeder, Watch
from tidegate.stacking import Empty, Shape, stacked

__all__ = ["Steps", "arrays", "end_all"]


# How long a call may go on after its epoch before it is ended.
PATIENCE_SECONDS = 5.0


class Stopped(BaseException):
    """What ends a user's function that goes on after its epoch; no `except Exception` takes it."""


Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


# All that there are, for the end of the program.
_all: weakref.WeakSet[Steps] = weakref.WeakSet()


def end_all() -> None:
    """End the calls that are still under way: no thread may run Python after the interpreter."""
    for steps in list(_all):
        if steps.running:
            steps.interrupt(0.0)
    patience = time.monotonic() + 0.5
    while any(steps.running for steps in list(_all)) and time.monotonic() < patience:
        time.sleep(0.001)


class Steps:
    """What happens to a batch before it is delivered: `transform`, tensors, `batch_transform`.

    A call takes the raw batch and a function that returns arrays of the budget. A worker process
    has a copy of the object.
    """

    def __init__(
        self,
        transform: Transform | None,
        batch_transform: Callable[[Batch], Any] | None,
        *,
        seed: int,
        torch: bool,
        extras: Sequence[str],
    ) -> None:
        self.transform, self.batch_transform = transform, batch_transform
        self.seed, self.torch, self.extras = seed, torch, tuple(extras)
        # Seeds the global generators before each call; set in worker processes only.
        self.seeder: Seeder | None = None
        # Whether the epoch is over: looked at before each sample, so that an interrupt need not
        # wait for the rest of a batch.
        self.stopped = False
        # The threads that are in the user's functions, and since when.
        self.running: dict[int, float] = {}
        # What watches the first call, in the training process.
        self.watch: Watch | None = None
        _all.add(self)

    def begin(self, _first: int) -> None:
        """Note that an epoch begins."""
        self.stopped = False

    def stop(self) -> None:
        """Make a call that is under way raise before its next sample."""
        self.stopped = True

    def interrupt(self, patience: float = PATIENCE_SECONDS) -> None:
        """End the calls that have lasted longer, as soon as they run Python code again.

        Those that are only slow may end by themselves: nobody waits for them. Those that have not
        ended when that time is over are ended then.
        """
        if self.watch is not None:
            self.watch.give_up()
        now, calls = time.monotonic(), tuple(self.running.items())
        self._end(tuple(call for call in calls if now - call[1] > patience))
        if patience > 0 and calls:
            later = threading.Timer(patience, self._end, (calls,))
            later.daemon = True
            later.start()

    def _end(self, calls: Sequence[tuple[int, float]]) -> None:
        """End calls: (thread, since when); not others that these threads are in by now."""
        import ctypes

        for thread, began in calls:
            if self.running.get(thread) == began:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Stopped))

    def functions(self) -> list[Callable[..., Any]]:
        """Return the user's functions."""
        return [function for function in (self.transform, self.batch_transform) if function is not None]

    def __call__(self, raw: tuple[Any, ...], empty: Empty) -> Any:
        if self.stopped:
            raise Error("the epoch was stopped")
        thread = threading.get_ident()
        self.running[thread] = time.monotonic()
        try:
            return self._made(raw, empty)
        finally:
            del self.running[thread]

    def _made(self, raw: tuple[Any, ...], empty: Empty) -> Any:
        batch = present(raw, self.extras)
        first = int(batch.positions[0]) if batch.rows else 0
        epoch = batch.epoch
        if self.transform is not None:
            batch = _over_samples(self, batch, empty)
        if self.torch:
            from tidegate.torch import tensors

            batch = tensors(batch)
        if self.batch_transform is None:
            return batch
        if self.seeder is not None:
            self.seeder(1, epoch, first)
        return self.batch_transform(batch)


def arrays(budget: Budget, shapes: list[Shape]) -> list[Any]:
    """Return arrays that are charged to a budget."""
    return [budget.empty(list(shape), dtype) for shape, dtype in shapes]


def _over_samples(steps: Steps, batch: Batch, empty: Empty) -> Batch:
    """Call `transform(sample, rng)` for each row of a batch and stack the results.

    `rng` is a function of (seed, epoch, position), so results do not depend on workers.
    """
    if not batch.rows:
        return batch
    made = Batch(stacked(_results(steps, batch), batch.rows, empty))
    for name in Batch.__slots__:
        setattr(made, name, getattr(batch, name))
    for name in steps.extras:
        made.setdefault(name, batch[name])
    return made


def _results(steps: Steps, batch: Batch) -> Iterator[Any]:
    function, key = steps.transform, [steps.seed & (2**64 - 1), batch.epoch]
    assert function is not None
    for row in range(batch.rows):
        if steps.stopped:
            raise Error("the epoch was stopped")
        position = int(batch.positions[row])
        rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, position, 0]))
        if steps.seeder is not None:
            steps.seeder(0, batch.epoch, position)
        sample = {name: column[row] for name, column in batch.items()}
        if steps.torch:
            from tidegate.torch import sample_tensors

            sample = sample_tensors(sample)
        yield function(sample, rng)
