"""`Loader`: batches of arrays from a dataset larger than memory, within one memory budget.

Flow: options -> JSON -> `_tidegate.Loader` -> raw batches -> `Batch`, tensors, or what transforms
return.
Memory: `_tidegate.Loader` plans and holds all of it; this module holds none.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from tidegate import _tidegate, ranks
from tidegate.batch import Batch
from tidegate.deprecation import renamed
from tidegate.disk import DiskCache
from tidegate.errors import ConfigError, Error, HeldError, SamplerError, warn
from tidegate.fields import Field, Window, specs
from tidegate.generators import Watch
from tidegate.iteration import Batches
from tidegate.loader_options import (
    checked_extras,
    described,
    json_of,
    known_ranks,
    optional,
    presenter,
    rows,
    shuffle_spec,
    warn_of_order,
    warn_of_unnamed,
)
from tidegate.options import MOST_THREADS, as_array, choice, flag, function, integer, known_options, number
from tidegate.processes import Pool
from tidegate.profiling import Profile
from tidegate.report import Report
from tidegate.sampler import Sampler, prepared
from tidegate.source import Source, opened
from tidegate.transform import Steps, arrays, end_all

__all__ = ["Loader", "Report"]


_open: weakref.WeakSet[Loader] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End every epoch in progress: no thread may call Python after the interpreter has ended."""
    for loader in list(_open):
        loader.close()
    end_all()


class Loader:
    """Batches from a dataset, decoded and augmented in Rust, within one hard memory budget.

    Each `iter(loader)` is one epoch, and the next one is the next epoch, unless `set_epoch`,
    `seek` or a loaded state says otherwise. An epoch begins with the first `next`. An earlier
    iterator raises `Error` from then on: a loader has one epoch at a time. `len(loader)` is the
    number of batches in an epoch. The loader is a context manager: `close` ends its threads.

    Data:
        source: a path, a pattern such as "shards/*.tar", a URL, or a `Source`.
        fields: {name: spec}, such as {"image": tg.Image(224)}. A name such as "jpg;png" joins
            fields of which each sample has one. Fields not named are inferred if every sample has
            them; else they are left out, with a `DataWarning`. A `Profile` gives the specs that
            follow from it: images normalized by their own mean and std, arrays of one shape as
            plain arrays. A list of names is the same as `columns`. By default all fields, inferred.
        columns: the names of the only fields to deliver, which others are not read for; by default
            all. Those that `fields` has no spec of are inferred.

    Batches:
        batch_size: samples in a batch of this rank, an int. Give this or `global_batch_size`.
        global_batch_size: samples in the batches of all ranks together, an int. The order then
            stays the same while the number of ranks changes.
        remainder: what happens to the samples after the last full batch: "uneven" (default)
            divides them evenly among the ranks, in a shorter batch; "pad" fills the batch with
            repeated rows whose `mask` is False; "drop" leaves them out. A rank that gets no sample
            of a shorter batch gets one padded row, so that all ranks have the same batches.
        drop_last: True is `remainder="drop"`, as in torch; by default False.

        extras: attributes of a `Batch` that are added as columns too, some of "ids", "indices",
            "mask", "positions" and "weights"; by default none. Frameworks that move a batch to a
            device keep its columns, and drop its attributes.

    Memory and cache:
        memory: the budget: bytes, text such as "2GiB", a fraction of the memory limit such as 0.5,
            or a `Budget` that several loaders share. Sizes make one process-wide budget, which
            later loaders join.
        prefetch: batches made ahead, beyond the one in use and the one in the making; an int, by
            default 1. More hide slow reads and take more memory.
        held_batches: batches that you keep beyond the one in use, for example to accumulate
            gradients; an int, by default 0. The budget must have room for them.
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
        world_size: the number of such processes. By default both are asked for when an epoch
            begins: of torch.distributed or jax.distributed if one is in use, else of the variables
            of torchrun, MPI or SLURM, else 0 of 1. For all of the data on every rank (a validation
            set) give 0 and 1.

    Errors:
        on_error: what a sample that cannot be read or decoded does: "raise" (default) raises
            SampleError, "skip" leaves its row out, "replace" draws another sample for it. What does
            not fit into the budget is a BudgetError under each; `tg.Image(max_pixels=...)` makes
            images above a bound samples that cannot be decoded.
        max_failure_rate: the share of an epoch's samples that may fail under "skip" and "replace"
            before DataError ends it; a float. By default 0.01, and at least 10 samples.
        stall_seconds: after this many seconds without any movement StalledError says which stage
            waits for what; a float, by default 300.

    Threads and processes:
        workers: decoding threads, an int; by default the cores that this process may use.
        transform: `transform(sample, rng) -> dict`, called for each sample on a worker thread.
            `rng` is a NumPy generator that follows from (seed, epoch, position). Arrays and
            numbers are stacked, to a `Ragged` column where their lengths differ; other values are
            a list. With output="torch" samples are of tensors, and may return tensors. Draw from
            `rng`: on threads the global generators of Python, NumPy and torch are left alone, and
            a transform that draws from them gets a `DataWarning`.
        batch_transform: `batch_transform(batch) -> anything but None`, called for each batch on a
            worker thread; the loader returns its result instead of the batch.
        processes: worker processes that call both transforms, for functions that hold the
            interpreter lock; an int, by default 0 (threads call them). Batches and results travel
            in shared memory of the budget, without a copy. A function must not use its arrays
            after it returns. Before each call the global generators of Python, NumPy and torch
            are seeded from (seed, epoch, position), and objects with `set_random_seed` too.
        multiprocessing_context: how these processes start: "fork", "spawn" or "forkserver"; by
            default as `multiprocessing` does. The batches of such a loader are in shared memory: a
            process that you fork yourself sees later writes to them.

    Output:
        output: "numpy" (default) or "torch": tensors over the same memory.
        profile: profiles the first epoch as it is delivered, see `Loader.profile`; by default
            False.
        keep: the old name of `cache`; its "nothing" is "off".
        ids: the old name of `extras=("ids",)`.

    Raises ConfigError for options that are not valid, BudgetError for a budget that is too small,
    DataError for data that are missing or damaged.

    >>> import tidegate as tg
    >>> data = tg.synthetic(100, 8)
    >>> loader = tg.Loader(data, batch_size=32, memory="16MiB", shuffle=True, seed=1)
    >>> [batch.rows for batch in loader]
    [32, 32, 32, 4]
    """

    @known_options
    def __init__(
        self,
        source: str | os.PathLike[str] | Source,
        *,
        memory: int | float | str | _tidegate.Budget,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        fields: Mapping[str, Field] | Sequence[str] | Profile | None = None,
        columns: Sequence[str] | None = None,
        shuffle: bool | Window = False,
        sampler: Sampler | None = None,
        seed: int = 0,
        remainder: Literal["drop", "pad", "uneven"] | None = None,
        drop_last: bool = False,
        extras: Sequence[str] = (),
        workers: int | None = None,
        prefetch: int = 1,
        held_batches: int = 0,
        on_error: Literal["raise", "skip", "replace"] = "raise",
        max_failure_rate: float | None = None,
        transform: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None,
        batch_transform: Callable[[Batch], Any] | None = None,
        processes: int = 0,
        multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
        cache: Literal["auto", "stored", "decoded", "off"] = "auto",
        disk: DiskCache | None = None,
        profile: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        stall_seconds: float = 300.0,
        output: Literal["numpy", "torch"] = "numpy",
        keep: Literal["auto", "stored", "decoded", "nothing"] | None = None,
        ids: bool = False,
    ) -> None:
        self.source = opened(source, memory)
        if flag("ids", ids):
            renamed("Loader(ids=True)", 'Loader(extras=("ids",))')
            extras = (*extras, "ids")
        if keep is not None:
            renamed("Loader(keep=...)", 'Loader(cache=...), and its "nothing" is "off"')
            kept = choice("keep", keep, ("auto", "stored", "decoded", "nothing"))
            cache = "off" if kept == "nothing" else kept  # type: ignore[assignment]
        rest = None if remainder is None else choice("remainder", remainder, ("drop", "pad", "uneven"))
        if flag("drop_last", drop_last) and rest not in (None, "drop"):
            raise ConfigError(f"drop_last=True is remainder='drop', but remainder is {remainder!r}")
        if disk is not None and not isinstance(disk, DiskCache):
            raise ConfigError(f'disk={disk!r}: give a cache, as in tg.DiskCache(folder, "100GiB")')
        choice("cache", cache, ("auto", "stored", "decoded", "off"))
        choice("output", output, ("numpy", "torch"))
        if multiprocessing_context is not None:
            choice("multiprocessing_context", multiprocessing_context, ("fork", "spawn", "forkserver"))
        function("transform", transform)
        function("batch_transform", batch_transform)
        seed = integer("seed", seed, 0, 2**64 - 1)
        processes = integer("processes", processes, 0)
        wanted = fields.fields() if isinstance(fields, Profile) else fields
        schema = self.source.schema
        fields_, only = specs(wanted, columns, schema)
        self._options = {
            "batch_size": optional(integer, "batch_size", batch_size, 1),
            "global_batch_size": optional(integer, "global_batch_size", global_batch_size, 1),
            "fields": fields_,
            "only": only,
            "shuffle": shuffle_spec(shuffle),
            "seed": seed,
            "remainder": "drop" if drop_last else rest or "uneven",
            "workers": optional(integer, "workers", workers, 1, MOST_THREADS),
            "prefetch": integer("prefetch", prefetch, 0, 4096),
            "held_batches": integer("held_batches", held_batches, 0, 4096),
            "map_threads": processes,
            "on_error": choice("on_error", on_error, ("raise", "skip", "replace")),
            "max_failure_rate": optional(number, "max_failure_rate", max_failure_rate, 0.0, 1.0),
            "profile": flag("profile", profile),
            "keep": "nothing" if cache == "off" else cache,
            "disk": None if disk is None else disk.spec(),
            "stall_seconds": number("stall_seconds", stall_seconds, 0.001),
        }
        mapped = transform is not None or batch_transform is not None
        if processes and not mapped:
            raise ConfigError(f"processes={processes} without a transform or batch_transform to call in them")
        self._extras = checked_extras(extras, self.source, fields_, only)
        self.budget = memory if isinstance(memory, _tidegate.Budget) else _tidegate.Budget.process(memory)
        self._present: Callable[[tuple[Any, ...]], Batch] | None = presenter(output, self._extras)
        self._pool: Pool | None = None
        self._steps: Steps | None = None
        self._map = None
        if mapped:
            self._present = None
            self._steps = Steps(transform, batch_transform, seed=seed, torch=output == "torch", extras=self._extras)
            self._map = self._mapping(self._steps, processes, multiprocessing_context)
        self._raised: list[BaseException] = []
        self._sampler = None if sampler is None else prepared(sampler, len(self.source), self._raised)
        self._epoch: _tidegate.Epoch | None = None
        self._pid = os.getpid()
        self._given_ranks = ranks.given(rank, world_size)
        # What to repeat where other ranks are found before a batch was delivered.
        self._pending: list[Callable[[_tidegate.Loader], None]] = []
        self._delivered = False
        self._make(*(self._given_ranks or known_ranks()))
        self._position: tuple[int, int] | None = None
        size = f"{batch_size} samples" if batch_size is not None else f"{global_batch_size} samples over all ranks"
        how = "sampler" if sampler is not None else f"shuffle={shuffle}"
        left_out = dict(self._inner.unnamed())
        self._shown = (size, ", ".join(rows(wanted, columns, schema, left_out)), f"{how}, seed={seed}")
        warn_of_unnamed(left_out, len(self.source), schema)

    def _make(self, rank: int, world_size: int) -> None:
        """Make the loader of a rank."""
        options = json.dumps({**self._options, "rank": rank, "world_size": world_size})
        self._inner = _tidegate.Loader(self.source._inner, options, self.budget, self._map, self._sampler)
        self._ranks = rank, world_size
        # What `repr` shows; kept here, because `repr` must not wait for the Rust side's lock.
        self._batches_in_epoch = len(self._inner)
        for repeat in self._pending:
            repeat(self._inner)

    def _ask_ranks(self) -> None:
        """Take over the ranks as they are known now, unless they were given.

        Raises ConfigError where batches were delivered to other ranks.
        """
        if self._given_ranks is not None or self._epoch is not None:
            return
        found, known = ranks.found(), self._ranks
        if found == known:
            return
        if self._delivered:
            raise ConfigError(
                f"this loader delivered batches to rank {known[0]} of {known[1]}, and this process is rank {found[0]} "
                f"of {found[1]} now: make another loader, or give rank and world_size"
            )
        # The memory of the old one makes room first.
        del self._inner
        try:
            self._make(*found)
        except BaseException:
            self._make(*known)
            raise

    def _repeatable(self, call: Callable[[_tidegate.Loader], None]) -> None:
        """Do something to the loader, and again if it is made again for other ranks."""
        call(self._inner)
        if not self._delivered:
            self._pending.append(call)

    def _mapping(self, steps: Steps, processes: int, context: str | None) -> tuple[Any, Any, Any, Any]:
        """Return the functions that transform a batch, begin an epoch, end waits, and end work."""
        if not processes:
            steps.watch = watch = Watch(steps.functions())
            empty = partial(arrays, self.budget)
            return lambda raw: watch(partial(steps, raw, empty)), steps.begin, steps.stop, steps.interrupt
        self.budget = self.budget.shared()
        self._pool = pool = Pool(steps, processes, self.budget, context)
        weakref.finalize(self, pool.close)
        return pool, pool.begin, pool.stop, None

    def __len__(self) -> int:
        """Return the number of batches in an epoch; it is the same on every rank."""
        if not self._delivered:
            with contextlib.suppress(ConfigError):
                self._ask_ranks()
        return self._batches_in_epoch

    def __iter__(self) -> Iterator[Any]:
        """Return an iterator of the next epoch, which begins with its first `next`."""
        self._check_process()
        return Batches(self)

    def _begin(self) -> _tidegate.Epoch:
        """Begin the next epoch, and end the one in progress."""
        self._end()
        self._ask_ranks()
        self._raised.clear()
        if not self._delivered:
            self._warn_of_ranks()
        with self._caused():
            self._epoch = self._inner.epoch()
        _open.add(self)
        return self._epoch

    def _warn_of_ranks(self) -> None:
        without = self._inner.ranks_without_a_row() if self._options["remainder"] == "uneven" else 0
        if without:
            warn(
                f"the last batch of an epoch has fewer samples than ranks: {without} of {self._ranks[1]} ranks get one "
                'padded row, whose mask is False. Use the mask in the loss, or pass remainder="drop" or "pad"'
            )

    def _next(self, epoch: _tidegate.Epoch) -> Any:
        """Return the next batch, or what a transform made of it; None at the end."""
        try:
            raw = self._asked(epoch)
        except HeldError:
            # What the interpreter has not collected yet may hold batches.
            gc.collect()
            raw = self._asked(epoch)
        if raw is None:
            return None
        batch = raw if self._present is None else self._present(raw)
        self._delivered = True
        self._pending.clear()
        if isinstance(batch, Batch) and hasattr(batch, "number"):
            self._position = batch.epoch, batch.number
        return batch

    def _asked(self, epoch: _tidegate.Epoch) -> Any:
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
        self._check_thread()
        epoch = self._epoch if epoch is None else epoch
        current = epoch is self._epoch
        if current:
            # First, so that a thread that waits in `next` sees that its epoch was cut off.
            self._epoch = None
        if epoch is not None and self._pid == os.getpid():
            if self._pool is not None and current:
                # Another thread may be waiting in `next`, and holds the epoch until it returns.
                self._pool.stop()
            epoch.close()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise Error(
                "this loader was made before a fork, which does not copy its threads: make the loader in the process "
                "that uses it"
            )
        self._check_thread()

    def _check_thread(self) -> None:
        if self._steps is not None and threading.get_ident() in self._steps.running:
            raise Error(
                "a transform cannot begin, change or close the loader that calls it: do that where the batches are used"
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
        """Make the next epoch this one, an int from 0.

        It begins with its first batch, or where a loaded state of this epoch, or `seek`, says.

        >>> import tidegate as tg
        >>> loader = tg.Loader(tg.synthetic(10, 8), batch_size=10, memory="16MiB")
        >>> loader.set_epoch(5)
        >>> [batch.epoch for batch in loader]
        [5]
        """
        number = integer("epoch", epoch, 0)
        self._repeatable(lambda inner: inner.set_epoch(number))

    def seek(self, epoch: int, batch: int = 0) -> None:
        """Make this the next batch; a seek, not a replay.

        Args:
            epoch: its epoch, an int from 0.
            batch: its number in the epoch, an int from 0; by default 0.

        Raises ConfigError for a batch past the end of an epoch.

        >>> import tidegate as tg
        >>> loader = tg.Loader(tg.synthetic(10, 8), batch_size=4, memory="16MiB")
        >>> loader.seek(3, 2)
        >>> [(batch.epoch, batch.number) for batch in loader]
        [(3, 2)]
        """
        self._check_process()
        self._end()
        self._ask_ranks()
        place = integer("epoch", epoch, 0), integer("batch", batch, 0)
        self._repeatable(lambda inner: inner.seek(*place))
        self._position = None

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
        given = as_array("indices", indices, what="one row of integers")
        if given.ndim != 1 or (given.dtype.kind not in "iu" and given.size):
            raise ConfigError(f"indices must be one row of integers, not {given.dtype} of shape {given.shape}")
        if given.size and given.min() < 0:
            raise ConfigError(f"there is no sample {given.min()}: indices are numbers from 0 on")
        try:
            if hasattr(losses, "detach"):
                losses = losses.detach().float().cpu()
            of_each = np.ascontiguousarray(losses, np.float32).reshape(-1)
        except (AttributeError, TypeError, ValueError):
            raise ConfigError("losses must be numbers, one for each sample") from None
        self._inner.feedback(np.ascontiguousarray(given, np.uint64), of_each)

    def feedback_state(self) -> bytes | None:
        """Return the reported losses as bytes, to save next to `state_dict`.

        None if the sampler does not use losses.
        """
        return self._inner.feedback_state()

    def load_feedback_state(self, state: bytes) -> None:
        """Load what `feedback_state` returned; call it before `load_state_dict`."""
        self._ask_ranks()
        self._repeatable(lambda inner: inner.load_feedback(state))

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the consumer, as JSON-able values.

        It takes at most 1 KiB, plus the list of failed positions. `load_state_dict` goes on there.
        After the last batch of an epoch it is the beginning of the next epoch.
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
        self._ask_ranks()
        saved = json_of(state)
        self._repeatable(lambda inner: inner.load_state(saved))
        warn_of_order(state, self._options, sampled=self._sampler is not None)
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
        return described(self, *self._shown)

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Loader has threads and memory of its process: make one in each process, from the pickled `loader.source`"
        )

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
