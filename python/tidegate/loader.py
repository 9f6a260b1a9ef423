"""`Loader`: batches of arrays from a dataset larger than memory, within one budget."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from tidegate import _tidegate
from tidegate.batch import Batch, present
from tidegate.disk import DiskCache
from tidegate.errors import ConfigError, Error
from tidegate.fields import Field, Window, specs
from tidegate.processes import Pool
from tidegate.profiling import Profile
from tidegate.sampler import Sampler, prepared
from tidegate.source import Source
from tidegate.source import open as open_source
from tidegate.transform import Shape, Steps

__all__ = ["Loader", "Report"]


_open: weakref.WeakSet[Loader] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End every epoch in progress: no thread may call Python once the interpreter is gone."""
    for loader in list(_open):
        loader.close()


class Report(dict[str, Any]):
    """What a loader says of itself; `print` it for words, index it for figures."""

    text: str = ""

    def __str__(self) -> str:
        return self.text


class Loader:
    """Batches from a dataset, decoded and augmented in Rust, within one hard memory budget.

    Args:
        source: a path or pattern ("shards/*.tar"), or what `tidegate.open` returned.
        batch_size: samples in a batch of this rank; or `global_batch_size`, over all ranks.
        memory: bytes, "2GiB", a fraction of the limit (0.5), or a `Budget` that several loaders share.
        fields: {name: spec}; a list of names leaves the others out. What is not named is inferred. A `Profile` stands
            for what follows from it: pictures normalized by their own constants, arrays of one shape as such.
        shuffle: False, True, or `Window(samples)`.
        sampler: the order instead of `shuffle`, for all ranks together and the same on each: one of
            `tidegate.samplers` (by weight, by class, mixed, easier first); an array of ids, which may repeat; a
            function `epoch -> array` of one length, which is asked for the next epoch too when one begins; or an
            iterable with a length, such as torch's samplers, whose `set_epoch` is called if there is one. It is asked
            no further ahead than `prefetch` + `processes` + 2 batches, and must give the same ids again when a saved
            state goes on. But of an iterable, what comes next soonest is kept in memory; of that nothing is known, and
            what came often is.
        seed: of order and augmentation; the same seed gives the same batches whatever the workers.
        remainder: "drop", "pad" or "uneven"; `drop_last=True` is "drop".
        workers: decoding threads; by default the cores this process may use.
        on_error: "raise", "skip" or "replace".
        transform: called as `transform(sample, rng)` for each sample on a worker thread; `rng` is a NumPy generator
            that follows from (seed, epoch, position). Returns a dict whose values are stacked.
        batch_transform: called with each batch on a worker thread, off the training thread.
        processes: worker processes that call the two transforms, for functions that hold the interpreter lock. Batches
            reach them through shared memory of the budget, without a copy, and so do their results; the arrays are
            theirs until the function returns.
        multiprocessing_context: how they start ("fork", "spawn", "forkserver"); by default as `multiprocessing` does.
            Batches of such a loader lie in shared memory: a process that you fork yourself sees what is written there
            later.
        keep: "stored" or "decoded": what of samples stays in memory from one epoch to the next. By default whichever
            saves more time, as the first samples tell. Rows can stay decoded where they are the same in each epoch: no
            random crop, flip or colour, and no ragged column. Ranks that share a budget keep samples as stored.
        disk: a `DiskCache` for samples that come from a store or another slow place.
        profile: profiles the first epoch while it is delivered, as it is delivered: see `Loader.profile`.
        ids: adds the samples' ids to the batch as "ids".
        rank, world_size: this process among those that train together; by default what torch.distributed says if it is
            in use, else what torchrun, MPI or SLURM left in the environment, else the only one.
        output: "numpy" or "torch".

    Iterating gives one epoch; the next `iter()` the next one, unless `set_epoch` or a loaded state says otherwise.

    >>> import tidegate as tg
    >>> loader = tg.Loader(tg.synthetic(100, 8), batch_size=32, memory="16MiB", shuffle=True, seed=1)
    >>> [batch.rows for batch in loader]
    [32, 32, 32, 4]
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Source,
        *,
        memory: int | float | str | _tidegate.Budget,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        fields: Mapping[str, Field] | Sequence[str] | Profile | None = None,
        shuffle: bool | Window = False,
        sampler: Sampler | None = None,
        seed: int = 0,
        remainder: Literal["drop", "pad", "uneven"] | None = None,
        drop_last: bool = False,
        workers: int | None = None,
        prefetch: int = 1,
        on_error: Literal["raise", "skip", "replace"] = "raise",
        max_failure_rate: float = 0.01,
        transform: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None,
        batch_transform: Callable[[Batch], Any] | None = None,
        processes: int = 0,
        multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
        keep: Literal["auto", "stored", "decoded", "nothing"] = "auto",
        disk: DiskCache | None = None,
        profile: bool = False,
        ids: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        stall_seconds: float = 300.0,
        output: Literal["numpy", "torch"] = "numpy",
    ) -> None:
        self.source = source if isinstance(source, Source) else open_source(os.fspath(source))
        if drop_last and remainder not in (None, "drop"):
            raise ConfigError(f"drop_last=True is remainder='drop', but remainder is {remainder!r}")
        rank, world_size = _ranks(rank, world_size)
        if disk is not None and not isinstance(disk, DiskCache):
            raise ConfigError(f'disk={disk!r}: give a cache, as in tg.DiskCache(folder, "100GiB")')
        if keep not in ("auto", "stored", "decoded", "nothing"):
            raise ConfigError(f'keep={keep!r} must be "auto", "stored", "decoded" or "nothing"')
        wanted = fields.fields() if isinstance(fields, Profile) else fields
        fields_, only = specs(wanted, self.source.schema)
        options = {
            "batch_size": batch_size,
            "global_batch_size": global_batch_size,
            "fields": fields_,
            "only": only,
            "shuffle": _shuffle(shuffle),
            "seed": seed,
            "remainder": "drop" if drop_last else remainder,
            "workers": workers,
            "prefetch": prefetch,
            "map_threads": processes,
            "on_error": on_error,
            "max_failure_rate": max_failure_rate,
            "profile": profile,
            "keep": keep,
            "disk": disk and disk.spec(),
            "rank": rank,
            "world_size": world_size,
            "stall_seconds": stall_seconds,
        }
        mapped = transform is not None or batch_transform is not None
        if processes and not mapped:
            raise ConfigError(f"processes={processes} without a transform or batch_transform to call in them")
        self.budget = memory if isinstance(memory, _tidegate.Budget) else _tidegate.Budget.process(memory)
        present = _presenter(output, ids)
        self._present = None if mapped else present
        self._pool: Pool | None = None
        hook = begin = stop = None
        if processes:
            # Without a batch_transform, tensors are made here: a process need not import torch.
            there = output == "torch" and batch_transform is not None
            steps = Steps(transform, batch_transform, seed=seed, torch=there, ids=ids)
            self.budget = self.budget.shared()
            self._pool = Pool(steps, processes, self.budget, multiprocessing_context)
            begin, stop = self._pool.begin, self._pool.stop
            weakref.finalize(self, self._pool.close)
            hook = _tensors_of(self._pool) if output == "torch" and not there else self._pool
        elif mapped:
            steps = Steps(transform, batch_transform, seed=seed, torch=output == "torch", ids=ids)
            hook = partial(steps, empty=partial(_empty, self.budget))

        mapping = None if hook is None else (hook, begin, stop)
        self._raised: list[BaseException] = []
        given = None if sampler is None else prepared(sampler, len(self.source), self._raised)
        self._inner = _tidegate.Loader(self.source._inner, json.dumps(options), self.budget, mapping, given)
        self._epoch: _tidegate.Epoch | None = None
        self._pid = os.getpid()

    def __len__(self) -> int:
        """Return the batches in an epoch: the same on every rank."""
        return len(self._inner)

    def __iter__(self) -> Iterator[Any]:
        """Begin the next epoch; an epoch in progress ends."""
        self._check_process()
        self._end()
        self._raised.clear()
        with self._caused():
            epoch = self._epoch = self._inner.epoch()
        _open.add(self)
        return self._batches(epoch)

    def _batches(self, epoch: _tidegate.Epoch) -> Iterator[Any]:
        try:
            while (raw := self._next(epoch)) is not None:
                batch = raw if self._present is None else self._present(raw)
                del raw
                yield batch
                del batch
        finally:
            self._end(epoch)

    def _next(self, epoch: _tidegate.Epoch) -> Any:
        with self._caused():
            if self._pool is None:
                return epoch.next()
            self._pool.asked = time.monotonic()
            try:
                return epoch.next()
            finally:
                self._pool.asked = None

    @contextlib.contextmanager
    def _caused(self) -> Iterator[None]:
        """Name what the user's sampler raised as the cause of the error that it led to."""
        try:
            yield
        except ConfigError as error:
            if not self._raised or not str(error).startswith("the sampler raised"):
                raise
            raise error from self._raised[-1]

    def _end(self, epoch: _tidegate.Epoch | None = None) -> None:
        """End this epoch, or the one in progress: its threads stop and its memory goes back."""
        epoch = epoch or self._epoch
        if epoch is not None and self._pid == os.getpid():
            if self._pool is not None and epoch is self._epoch:
                # Another thread may be waiting in `next`, and the epoch is its until it returns.
                self._pool.stop()
            epoch.close()
        if epoch is self._epoch:
            self._epoch = None

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise Error(
                "this loader was made before a fork, and its threads did not come along: make the loader in the "
                "process that uses it"
            )

    def set_memory(self, memory: int | float | str) -> None:
        """Change the budget, in the middle of an epoch too: bytes, "2GiB", or a fraction of the limit.

        Caches give way first; if that is not enough, what is being made is made anew with less memory, from the next
        batch on. Pages beyond the new budget are returned before this does, but those of batches that you hold. Batches
        and their order stay the same. Raises BudgetError for a size that is too small for this loader, and changes
        nothing then.

        >>> import tidegate as tg
        >>> loader = tg.Loader(tg.synthetic(100, 8), batch_size=32, memory=tg.Budget("16MiB"))
        >>> loader.set_memory("8MiB")
        >>> loader.budget.cap_bytes >> 20
        8
        """
        self._check_process()
        self._inner.set_memory(memory)

    def set_epoch(self, epoch: int) -> None:
        """Make the next epoch this one, from its beginning."""
        self._inner.set_epoch(epoch)

    def feedback(self, indices: ArrayLike, losses: Any) -> None:
        """Say how large the loss of each sample is; it counts from the next epoch on. Needs a sampler that listens.

        `indices` are a batch's (not its ids, which of a subset are those of the whole); `losses` an array or a tensor.
        Of several ranks each must be told the same, in the same order: see `tidegate.torch.gathered`.

        >>> import tidegate as tg
        >>> from tidegate import samplers
        >>> loader = tg.Loader(tg.synthetic(100, 8), batch_size=50, memory="16MiB", sampler=samplers.hard())
        >>> for batch in loader:
        ...     loader.feedback(batch.indices, batch.ids == 7)
        >>> max(int((batch.ids == 7).sum()) for batch in loader) > 30
        True
        """
        given = np.asarray(indices)
        if given.ndim != 1 or (given.dtype.kind not in "iu" and given.size):
            raise ConfigError(f"indices must be one row of whole numbers, not {given.dtype} of shape {given.shape}")
        if given.size and given.min() < 0:
            raise ConfigError(f"there is no sample {given.min()}: indices are numbers from 0 on")
        if hasattr(losses, "detach"):
            losses = losses.detach().float().cpu()
        try:
            of_each = np.ascontiguousarray(losses, np.float32).reshape(-1)
        except (TypeError, ValueError):
            raise ConfigError("losses must be numbers, one for each sample") from None
        self._inner.feedback(np.ascontiguousarray(given, np.uint64), of_each)

    def feedback_state(self) -> bytes | None:
        """Return all that was fed back, to be saved beside `state_dict`; None if the sampler does not listen."""
        return self._inner.feedback_state()

    def load_feedback_state(self, state: bytes) -> None:
        """Take what was fed back to another loader; before `load_state_dict`."""
        self._inner.load_feedback(state)

    def state_dict(self) -> dict[str, Any]:
        """Return where the consumer is, as JSON-able values of at most 1 KiB (and the list of failed positions)."""
        return json.loads(self._inner.state())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was saved, with any workers, memory or ranks. Raises StateError for other data."""
        self._end()
        self._inner.load_state(json.dumps(dict(state)))

    def profile(self) -> Profile:
        """Return what the first epoch has shown of the data, so far or to its end; needs `profile=True`.

        It is of what this rank was given: pictures as they were cropped (uint8, or float32 in CHW), stored sizes of all
        fields. `Profile.merge` puts those of several ranks together. An epoch that is left begins it anew.

        >>> import tidegate as tg
        >>> loader = tg.Loader(tg.synthetic(100, 8), batch_size=50, memory="32MiB", profile=True)
        >>> [batch.rows for batch in loader], loader.profile().summary["samples"]
        ([50, 50], 100)
        """
        found = self._inner.profile()
        if found is None:
            raise ConfigError("this loader profiles nothing: give profile=True")
        return Profile(found)

    def report(self) -> Report:
        """Return what limits the flow, where every byte is, and what failed."""
        text, words = self._inner.report()
        report = Report(json.loads(text))
        report.text = words
        return report

    def close(self) -> None:
        """End the epoch in progress and the worker processes: threads stop and memory goes back."""
        self._end()
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ConfigError("give both rank and world_size, or neither")
    if rank is not None and world_size is not None:
        if not isinstance(rank, int) or not isinstance(world_size, int) or not 0 <= rank < world_size:
            raise ConfigError(
                f"rank={rank!r} of world_size={world_size!r}: a rank is a number from 0 to world_size - 1"
            )
        return rank, world_size
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    found = _tidegate.ranks()
    return found[:2] if found else (0, 1)


def _empty(budget: _tidegate.Budget, shapes: list[Shape]) -> list[Any]:
    return [budget.empty(list(shape), dtype) for shape, dtype in shapes]


def _tensors_of(hook: Callable[[tuple[Any, ...]], Batch]) -> Callable[[tuple[Any, ...]], Batch]:
    from tidegate.torch import tensors

    return lambda raw: tensors(hook(raw))


def _shuffle(shuffle: bool | Window) -> dict[str, Any]:
    if isinstance(shuffle, Window):
        return {"kind": "window", **dataclasses.asdict(shuffle)}
    return {"kind": "full" if shuffle else "none"}


def _presenter(output: str, ids: bool) -> Callable[[tuple[Any, ...]], Batch]:
    if output == "numpy":
        return lambda raw: present(raw, ids)
    if output == "torch":
        from tidegate.torch import tensors

        return lambda raw: tensors(present(raw, ids))
    raise ConfigError(f"output must be 'numpy' or 'torch', not {output!r}")
