"""`Loader`: batches of arrays from a dataset larger than memory, within one memory budget.

Flow: options -> JSON -> `_tidegate.Loader` -> raw batches -> `Batch`, tensors, or what transforms
return.
Memory: `_tidegate.Loader` plans and holds all of it; this module holds none.
"""

from __future__ import annotations

import atexit
import contextlib
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
from tidegate.deprecation import renamed
from tidegate.disk import DiskCache
from tidegate.errors import ConfigError, Error, SamplerError
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
    """End every epoch in progress: no thread may call Python after the interpreter has ended."""
    for loader in list(_open):
        loader.close()


class Report(dict[str, Any]):
    """What limits a loader, where every byte is, and what failed; made by `Loader.report`.

    `print(report)` shows it in words; `report["charged_bytes"]` and the other keys have the
    figures. Keys end in their unit. `tidegate.Report` is a dict of JSON-able values.

    >>> import tidegate as tg
    >>> report = tg.Loader(tg.synthetic(10, 8), batch_size=4, memory=tg.Budget("16MiB")).report()
    >>> report["budget_bytes"] >> 20
    16
    """

    text: str = ""

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        if "limit" not in self:
            return f"Report({dict.__repr__(self)})"
        mib = [f"{self[name] / 2**20:.1f}" for name in ("charged_bytes", "budget_bytes", "peak_bytes")]
        return (
            f"Report({self['limit']!r}, {mib[0]} of {mib[1]} MiB charged, peak {mib[2]} MiB; "
            f"{len(self)} keys, print it for words)"
        )


class Loader:
    """Batches from a dataset, decoded and augmented in Rust, within one hard memory budget.

    Each `iter(loader)` is one epoch, and the next `iter` is the next epoch, unless `set_epoch` or
    a loaded state says otherwise. `len(loader)` is the number of batches in an epoch. The loader
    is a context manager: `close` ends its threads.

    Data:
        source: a path, a pattern such as "shards/*.tar", a URL, or a `Source`.
        fields: {name: spec}, such as {"image": tg.Image(224)}; fields not named are inferred. A
            list of names delivers only those. A `Profile` gives the specs that follow from it:
            images normalized by their own mean and std, arrays of one shape as plain arrays. By
            default all fields, inferred.

    Batches:
        batch_size: samples in a batch of this rank, an int. Give this or `global_batch_size`.
        global_batch_size: samples in the batches of all ranks together, an int. The order then
            stays the same while the number of ranks changes.
        remainder: what happens to the samples after the last full batch: "drop" leaves them out,
            "pad" fills the batch with repeated rows whose `mask` is False, "uneven" makes it
            shorter. By default "uneven" on one rank and "pad" on several.
        drop_last: True is `remainder="drop"`, as in torch; by default False.

    Memory and cache:
        memory: the budget: bytes, text such as "2GiB", a fraction of the memory limit such as 0.5,
            or a `Budget` that several loaders share. Sizes make one process-wide budget, which
            later loaders join.
        prefetch: batches made ahead, beyond the one in use and the one in the making; an int, by
            default 1. More hide slow reads and take more memory.
        cache: what of the samples stays in memory across epochs. "stored" caches their encoded
            bytes, "decoded" the rows made of them, "off" nothing. "auto" (default) measures the
            first samples and takes the one that saves more time. Rows can be cached decoded where
            every epoch makes the same ones: no random crop, flip or jitter, and no ragged column.
            Ranks that share a budget, and loaders with a sampler, cache samples as stored. Batches
            are the same for all four.
        disk: a `DiskCache` for samples from a store or another slow place; by default none.

    Order:
        shuffle: False (default), True (a full shuffle), or `Window(samples)`.
        sampler: the order, instead of `shuffle`; by default none. It is the order of all ranks
            together and must be the same on each. One of:
            a sampler of `tidegate.samplers`: by weight, by class, mixed, easier first;
            an array of ids, which may repeat;
            a function `epoch -> array` of one length; the loader asks for the next epoch too when
            an epoch begins;
            an iterable with a length, such as torch's samplers; the loader calls its `set_epoch`
            if it has one. The loader asks it at most `prefetch` + `processes` + 2 batches ahead.
            A sampler must give the same ids again when a saved state goes on. The cache uses the
            known order (Belady's rule), except for iterables: their future is unknown, so it keeps
            frequently used samples.
        seed: of order and augmentation, an int; by default 0. The same seed gives the same batches
            for any workers, memory and ranks.

    Ranks:
        rank: this process among those that train together, an int from 0.
        world_size: the number of such processes. By default both are those of torch.distributed if
            it is in use, else those that torchrun, MPI or SLURM left in the environment, else 0
            of 1. For all of the data on every rank (a validation set) give 0 and 1.

    Errors:
        on_error: what a sample that cannot be read or decoded does: "raise" (default) raises
            SampleError, "skip" leaves its row out, "replace" draws another sample for it.
        max_failure_rate: the share of an epoch's samples that may fail under "skip" and "replace"
            before DataError ends it; a float, by default 0.01. At least 10 samples may fail.
        stall_seconds: after this many seconds without any movement StalledError says which stage
            waits for what; a float, by default 300.

    Threads and processes:
        workers: decoding threads, an int; by default the cores that this process may use.
        transform: `transform(sample, rng) -> dict`, called for each sample on a worker thread.
            `rng` is a NumPy generator that follows from (seed, epoch, position). The values are
            stacked.
        batch_transform: `batch_transform(batch) -> anything but None`, called for each batch on a
            worker thread; the loader returns its result instead of the batch.
        processes: worker processes that call both transforms, for functions that hold the
            interpreter lock; an int, by default 0 (threads call them). Batches and results travel
            in shared memory of the budget, without a copy. A function must not use its arrays
            after it returns.
        multiprocessing_context: how these processes start: "fork", "spawn" or "forkserver"; by
            default as `multiprocessing` does. The batches of such a loader are in shared memory: a
            process that you fork yourself sees later writes to them.

    Output:
        output: "numpy" (default) or "torch": tensors over the same memory.
        ids: adds the samples' ids to each batch as the column "ids"; by default False.
        profile: profiles the first epoch as it is delivered, see `Loader.profile`; by default
            False.
        keep: the old name of `cache`; its "nothing" is "off".

    Raises ConfigError for options that are not valid, BudgetError for a budget that is too small,
    DataError for data that are missing or damaged.

    >>> import tidegate as tg
    >>> data = tg.synthetic(100, 8)
    >>> loader = tg.Loader(data, batch_size=32, memory="16MiB", shuffle=True, seed=1)
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
        cache: Literal["auto", "stored", "decoded", "off"] = "auto",
        disk: DiskCache | None = None,
        profile: bool = False,
        ids: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        stall_seconds: float = 300.0,
        output: Literal["numpy", "torch"] = "numpy",
        keep: Literal["auto", "stored", "decoded", "nothing"] | None = None,
    ) -> None:
        self.source = source if isinstance(source, Source) else open_source(os.fspath(source))
        if drop_last and remainder not in (None, "drop"):
            raise ConfigError(f"drop_last=True is remainder='drop', but remainder is {remainder!r}")
        rank, world_size = _ranks(rank, world_size)
        if disk is not None and not isinstance(disk, DiskCache):
            raise ConfigError(f'disk={disk!r}: give a cache, as in tg.DiskCache(folder, "100GiB")')
        if keep is not None:
            renamed("Loader(keep=...)", 'Loader(cache=...), and its "nothing" is "off"')
            cache = "off" if keep == "nothing" else keep
        if cache not in ("auto", "stored", "decoded", "off"):
            raise ConfigError(f'cache={cache!r} must be "auto", "stored", "decoded" or "off"')
        wanted = fields.fields() if isinstance(fields, Profile) else fields
        schema = self.source.schema
        fields_, only = specs(wanted, schema)
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
            "keep": "nothing" if cache == "off" else cache,
            "disk": None if disk is None else disk.spec(),
            "rank": rank,
            "world_size": world_size,
            "stall_seconds": stall_seconds,
        }
        mapped = transform is not None or batch_transform is not None
        if processes and not mapped:
            raise ConfigError(f"processes={processes} without a transform or batch_transform to call in them")
        self.budget = memory if isinstance(memory, _tidegate.Budget) else _tidegate.Budget.process(memory)
        self._present: Callable[[tuple[Any, ...]], Batch] | None = _presenter(output, ids)
        self._pool: Pool | None = None
        mapping = None
        if mapped:
            self._present = None
            steps = Steps(transform, batch_transform, seed=seed, torch=output == "torch", ids=ids)
            mapping = self._mapping(steps, processes, multiprocessing_context)
        self._raised: list[BaseException] = []
        given = None if sampler is None else prepared(sampler, len(self.source), self._raised)
        self._inner = _tidegate.Loader(self.source._inner, json.dumps(options), self.budget, mapping, given)
        self._epoch: _tidegate.Epoch | None = None
        self._pid = os.getpid()
        # What `repr` shows; kept here, because `repr` must not wait for the Rust side's lock.
        self._batches_in_epoch = len(self._inner)
        self._position: tuple[int, int] | None = None
        size = f"{batch_size} samples" if batch_size is not None else f"{global_batch_size} samples over all ranks"
        how = "sampler" if sampler is not None else f"shuffle={shuffle}"
        self._shown = [
            f"Loader({self.source._inner.name!r}, {len(self.source)} samples, "
            f"{self._batches_in_epoch} batches of {size})",
            f"fields: {', '.join(_rows(wanted, schema))}",
            f"order: {how}, seed={seed}, rank {rank} of {world_size}",
        ]

    def _mapping(self, steps: Steps, processes: int, context: str | None) -> tuple[Any, Any, Any]:
        """Return the functions that transform a batch, begin an epoch, and end waiting."""
        if not processes:
            return partial(steps, empty=partial(_empty, self.budget)), None, None
        tensors_here = steps.torch and steps.batch_transform is None
        if tensors_here:
            # No worker process needs to import torch: the loader makes the tensors.
            steps.torch = False
        self.budget = self.budget.shared()
        self._pool = pool = Pool(steps, processes, self.budget, context)
        weakref.finalize(self, pool.close)
        return _tensors_of(pool) if tensors_here else pool, pool.begin, pool.stop

    def __len__(self) -> int:
        """Return the number of batches in an epoch; it is the same on every rank."""
        return len(self._inner)

    def __iter__(self) -> Iterator[Any]:
        """Begin the next epoch, and end the one in progress."""
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
                if isinstance(batch, Batch):
                    self._position = batch.epoch, batch.index
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
        """Name what the user's sampler raised as the cause of the SamplerError."""
        try:
            yield
        except SamplerError as error:
            if not self._raised:
                raise
            raise error from self._raised[-1]

    def _end(self, epoch: _tidegate.Epoch | None = None) -> None:
        """End this epoch, or the one in progress: stop its threads and free its memory."""
        epoch = self._epoch if epoch is None else epoch
        if epoch is not None and self._pid == os.getpid():
            if self._pool is not None and epoch is self._epoch:
                # Another thread may be waiting in `next`, and holds the epoch until it returns.
                self._pool.stop()
            epoch.close()
        if epoch is self._epoch:
            self._epoch = None

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise Error(
                "this loader was made before a fork, which does not copy its threads: make the loader in the process "
                "that uses it"
            )

    def set_memory(self, memory: int | float | str) -> None:
        """Change the budget, also in the middle of an epoch.

        Caches shrink first. If that is not enough, the loader makes the batches in progress again
        with less memory, from the next batch on. When this returns, the pages above the new budget
        are back with the kernel, except those of batches that you hold. Batches and their order
        stay the same.

        Args:
            memory: bytes, text such as "2GiB", or a fraction of the memory limit.

        Raises BudgetError for a size that is too small for this loader, and changes nothing then.

        >>> import tidegate as tg
        >>> loader = tg.Loader(tg.synthetic(100, 8), batch_size=32, memory=tg.Budget("16MiB"))
        >>> loader.set_memory("8MiB")
        >>> loader.budget.cap_bytes >> 20
        8
        """
        self._check_process()
        self._inner.set_memory(memory)

    def set_epoch(self, epoch: int) -> None:
        """Make the next `iter` begin this epoch, an int from 0, from its first batch.

        >>> import tidegate as tg
        >>> loader = tg.Loader(tg.synthetic(10, 8), batch_size=10, memory="16MiB")
        >>> loader.set_epoch(5)
        >>> [batch.epoch for batch in loader]
        [5]
        """
        self._inner.set_epoch(epoch)

    def feedback(self, indices: ArrayLike, losses: Any) -> None:
        """Report the loss of each sample to a sampler that uses losses, such as `samplers.hard`.

        It counts from the next epoch on.

        Args:
            indices: `batch.indices`, one axis of integers (not `batch.ids`, which differ for a
                subset).
            losses: a number for each, as an array or a tensor.

        On several ranks, report the same on each, in the same order: see
        `tidegate.torch.gathered`.

        >>> import tidegate as tg
        >>> from tidegate import samplers
        >>> data, sampler = tg.synthetic(100, 8), samplers.hard()
        >>> loader = tg.Loader(data, batch_size=50, memory="16MiB", sampler=sampler)
        >>> for batch in loader:
        ...     loader.feedback(batch.indices, batch.ids == 7)
        >>> max(int((batch.ids == 7).sum()) for batch in loader) > 30
        True
        """
        given = np.asarray(indices)
        if given.ndim != 1 or (given.dtype.kind not in "iu" and given.size):
            raise ConfigError(f"indices must be one row of integers, not {given.dtype} of shape {given.shape}")
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
        """Return the reported losses as bytes, to save next to `state_dict`.

        None if the sampler does not use losses.
        """
        return self._inner.feedback_state()

    def load_feedback_state(self, state: bytes) -> None:
        """Load what `feedback_state` returned; call it before `load_state_dict`."""
        self._inner.load_feedback(state)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the consumer, as JSON-able values.

        It takes at most 1 KiB, plus the list of failed positions. `load_state_dict` goes on there.
        """
        state: dict[str, Any] = json.loads(self._inner.state())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was saved, with any workers, memory or ranks; a seek, not a replay.

        Raises StateError for a state of other data or another order.

        >>> import tidegate as tg
        >>> loader = tg.Loader(tg.synthetic(10, 8), batch_size=4, memory="16MiB")
        >>> _ = next(iter(loader))
        >>> state = loader.state_dict()
        >>> loader.load_state_dict(state)
        >>> [batch["id"].tolist() for batch in loader]
        [[4, 5, 6, 7], [8, 9]]
        """
        self._end()
        self._inner.load_state(json.dumps(dict(state)))
        self._position = None

    def profile(self) -> Profile:
        """Return the profile of the first epoch, so far or to its end; needs `profile=True`.

        It covers what this rank was given: images as they were cropped (uint8, or float32 in CHW),
        and the stored sizes of all fields. `Profile.merge` joins those of several ranks. An epoch
        that is left early begins the profile again.

        Raises ConfigError for a loader without `profile=True`.

        >>> import tidegate as tg
        >>> loader = tg.Loader(tg.synthetic(100, 8), batch_size=50, memory="32MiB", profile=True)
        >>> [batch.rows for batch in loader], loader.profile().summary["samples"]
        ([50, 50], 100)
        """
        found = self._inner.profile()
        if found is None:
            raise ConfigError("this loader has no profile: make it with profile=True")
        return Profile(found)

    def report(self) -> Report:
        """Return what limits the loader, where every byte is, and what failed."""
        text, words = self._inner.report()
        report = Report(json.loads(text))
        report.text = words
        return report

    def close(self) -> None:
        """End the epoch in progress and the worker processes; stop threads and free memory."""
        self._end()
        if self._pool is not None:
            self._pool.close()

    def __repr__(self) -> str:
        if not hasattr(self, "_shown"):
            return "Loader(in the making)"
        cap, charged = self.budget.cap_bytes / 2**20, self.budget.charged_bytes / 2**20
        lines = [*self._shown, f"memory: {cap:.1f} MiB, {charged:.1f} MiB charged"]
        if self._position is not None:
            epoch, index = self._position
            lines.append(f"position: epoch {epoch}, batch {index + 1} of {self._batches_in_epoch}")
        return "\n    ".join(lines)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ConfigError("give both rank and world_size, or neither")
    if rank is not None and world_size is not None:
        if not isinstance(rank, int) or not isinstance(world_size, int) or not 0 <= rank < world_size:
            raise ConfigError(f"rank={rank!r} of world_size={world_size!r}: a rank is an int from 0 to world_size - 1")
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


def _rows(wanted: Mapping[str, Field] | Sequence[str] | None, schema: Mapping[str, str]) -> Iterator[str]:
    """Return what `repr` says of each field that is delivered."""
    if wanted is None or isinstance(wanted, Mapping):
        given = {} if wanted is None else wanted
        for name in dict.fromkeys([*schema, *given]):
            yield f"{name} {given[name].row() if name in given else schema[name]}"
    else:
        for name in wanted:
            yield f"{name} {schema[name]}"


def _shuffle(shuffle: bool | Window) -> dict[str, Any]:
    if isinstance(shuffle, Window):
        return shuffle.spec()
    return {"kind": "full" if shuffle else "none"}


def _presenter(output: str, ids: bool) -> Callable[[tuple[Any, ...]], Batch]:
    if output == "numpy":
        return lambda raw: present(raw, ids)
    if output == "torch":
        from tidegate.torch import tensors

        return lambda raw: tensors(present(raw, ids))
    raise ConfigError(f"output must be 'numpy' or 'torch', not {output!r}")
