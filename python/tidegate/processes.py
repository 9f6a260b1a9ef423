"""Worker processes for a user's functions: batches and results lie in shared memory of the budget.

Flow: a finished batch on a mapping thread -> where its arrays lie, by pipe -> a process that maps them, calls the
functions and lays the arrays of their result into memory that it asks for -> where those lie -> arrays over them here.
Memory: inputs are slots of the loader, results are charged to the account `user`. Nothing is copied but arrays that a
function allocates itself. A process's interpreter, and what a function allocates meanwhile, are its own.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import multiprocessing
import multiprocessing.reduction
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from tidegate._tidegate import Budget
from tidegate.batch import Batch, Ragged
from tidegate.errors import BudgetError, ConfigError, Error
from tidegate.transform import Shape, Steps

__all__ = ["Pool"]

# Arrays below this many bytes travel through the pipe.
SMALL_BYTES = 4096
# A process that is forked has every pipe that is open, also ends that another thread is about to close.
_starting = threading.Lock()
# How long nothing may move before memory that does not come free is an error.
PATIENCE_S = 2.0


class Lent(NamedTuple):
    """An array in shared memory: a file that the process has been given, and where in it."""

    file: int
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Within(NamedTuple):
    """An array that lies in a lent one."""

    number: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


class Tensor(NamedTuple):
    """A torch tensor over an array."""

    array: Any


class Columns(NamedTuple):
    """A `Batch`."""

    columns: dict[str, Any]
    attributes: dict[str, Any]


class Rows(NamedTuple):
    """A `Ragged` column."""

    parts: tuple[Any, ...]


def _walk(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Rebuild what functions return, with `leaf` in place of arrays and tensors and of what stands for them."""
    if isinstance(value, Batch):
        attributes = {name: getattr(value, name) for name in Batch.__slots__ if hasattr(value, name)}
        return Columns({name: _walk(column, leaf) for name, column in value.items()}, attributes)
    if isinstance(value, Columns):
        batch = Batch({name: _walk(column, leaf) for name, column in value.columns.items()})
        for name, attribute in value.attributes.items():
            setattr(batch, name, attribute)
        return batch
    if isinstance(value, Ragged):
        return Rows((_walk(value.values, leaf), value.offsets, value.shapes, value.text))
    if isinstance(value, Rows):
        values, *rest = value.parts
        return Ragged(_walk(values, leaf), *rest)
    if type(value) is dict:
        return {name: _walk(one, leaf) for name, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_walk(one, leaf) for one in value)
    return leaf(value)


class _Process:
    """One worker process, seen from the mapping thread that has it."""

    def __init__(self, context: Any, steps: Steps, budget: Budget) -> None:
        self.context, self.steps, self.budget = context, steps, budget
        # Held while a batch is transformed, and while the process ends.
        self.lock = threading.Lock()
        self.process: Any = None
        self.start()

    def start(self) -> None:
        if multiprocessing.current_process().daemon:
            raise ConfigError("processes= in a process that may have none of its own (a worker of another loader)")
        with _starting:
            self.pipe, theirs = self.context.Pipe()
            ours = self.pipe if self.context.get_start_method() == "fork" else None
            process = self.context.Process(target=_serve, args=(theirs, ours, self.steps), daemon=True)
            process.name = "tidegate-transform"
            try:
                process.start()
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise ConfigError(
                    f"a transform cannot be sent to a worker process ({error}): define it at the top of a module, or "
                    "pass multiprocessing_context='fork'"
                ) from error
            finally:
                theirs.close()
        self.process, self.given = process, set[int]()

    def transform(
        self, raw: tuple[Any, ...], empty: Callable[[int, list[Shape]], list[Any]], stopping: threading.Event
    ) -> Any:
        if stopping.is_set():
            raise Error("the loader was closed before a worker process transformed a batch")
        if self.process is None:
            self.start()
        lent: list[np.ndarray] = []
        try:
            self.pipe.send(("batch", self.lend(raw, lent)))
            while True:
                while not self.pipe.poll(0.1):
                    if stopping.is_set():
                        raise Error("the loader was closed while a worker process transformed a batch")
                    if self.process.exitcode is not None:
                        raise EOFError
                kind, content = self.pipe.recv()
                if kind != "empty":
                    break
                try:
                    arrays = empty(raw[5], content)
                except Exception as error:
                    self.pipe.send(("refused", error))
                else:
                    self.pipe.send(("lent", [self.place(array, lent) for array in arrays]))
        except (EOFError, ConnectionError) as error:
            code = self.end(1)
            raise Error(
                f"a worker process died ({code}) while it transformed batch {raw[5]} of epoch {raw[4]} (ids from "
                f"{raw[2][:1]}); look for 'out of memory' in the kernel's log, or run with processes=0 to see the "
                "function fail here"
            ) from error
        except BaseException:
            # What it would say next belongs to this batch.
            self.end(0)
            raise
        if kind == "failed":
            raise _whole(*content)
        return _walk(content, lambda value: _taken(value, lent))

    def lend(self, raw: tuple[Any, ...], lent: list[np.ndarray]) -> tuple[Any, ...]:
        columns, *rest = raw
        places = {
            name: (self.place(column[0], lent), *column[1:]) if isinstance(column, tuple) else self.place(column, lent)
            for name, column in columns.items()
        }
        return (places, *rest)

    def place(self, array: np.ndarray, lent: list[np.ndarray]) -> Lent | np.ndarray:
        found = self.budget.place(array.__array_interface__["data"][0])
        if found is None:
            if array.nbytes:
                raise Error("an array outside of shared memory: please report this")
            return array
        file, file_bytes, offset = found
        if file not in self.given:
            self.pipe.send(("file", (file, file_bytes)))
            multiprocessing.reduction.send_handle(self.pipe, file, self.process.pid)
            self.given.add(file)
        lent.append(array)
        return Lent(file, offset, array.shape, array.dtype)

    def end(self, patience_s: float) -> str:
        """Let the process end, by force if need be, and return how it ended."""
        if self.process is None:
            return "not started"
        with contextlib.suppress(OSError):
            # By a word, because a sibling that was forked later has this end of the pipe as well.
            self.pipe.send(("end", None))
        self.pipe.close()
        self.process.join(patience_s)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code, self.process = self.process.exitcode, None
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


class Pool:
    """`count` worker processes that call `steps` with batches; call it from as many threads.

    Raises ConfigError when a function cannot be sent to a process.
    """

    def __init__(self, steps: Steps, count: int, budget: Budget, context: str | None) -> None:
        self.budget = budget
        self.pid = os.getpid()
        self.stopping = threading.Event()
        # Since when the consumer has been waiting for a batch.
        self.asked: float | None = None
        # Guards what follows: batches being computed, batches that took memory or will take none, and the first of
        # those that did not yet. Memory is first taken in the order of batches, so that none waits for one behind it.
        self.changed = threading.Condition()
        self.computing = 0
        self.served: set[int] = set()
        self.turn = 0
        # What a batch asks for again (`transform` and `batch_transform` both) is held for it when it first asks: as
        # much as any batch has asked for again. Until one has been through, they go one by one.
        self.again_bytes: int | None = None
        self.asked_again: dict[int, int] = {}
        self.held: dict[int, np.ndarray] = {}
        self.processes = [_Process(multiprocessing.get_context(context), steps, budget) for _ in range(count)]
        self.idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for process in self.processes:
            self.idle.put(process)

    def begin(self, first: int) -> None:
        """Begin an epoch, or go on with one, at the batch of this number."""
        self.stopping.clear()
        self.served, self.turn = set(), first
        self.asked_again.clear()
        self.held.clear()

    def stop(self) -> None:
        """End the waiting of calls in progress: their processes end by force."""
        self.stopping.set()

    def __call__(self, raw: tuple[Any, ...]) -> Any:
        process = self.idle.get()
        try:
            with self._counted(1), process.lock:
                result = process.transform(raw, self.empty, self.stopping)
            with self.changed:
                self.again_bytes = max(self.again_bytes or 0, self.asked_again.get(raw[5], 0))
            return result
        finally:
            with self.changed:
                self.held.pop(raw[5], None)
                self.asked_again.pop(raw[5], None)
            self._pass(raw[5])
            self.idle.put(process)

    @contextlib.contextmanager
    def _counted(self, by: int) -> Iterator[None]:
        with self.changed:
            self.computing += by
        try:
            yield
        finally:
            with self.changed:
                self.computing -= by

    def _take(self, index: int, shapes: list[Shape]) -> list[np.ndarray]:
        """Take arrays for a batch, and hold what it will ask for again. Raises BudgetError."""
        sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes]
        wanted = sum(_pages(size) for size in sizes)
        with self.changed:
            first = index not in self.asked_again
            held = self.held.pop(index, None)
            if held is not None and wanted <= held.nbytes:
                arrays = list(_cut(held, shapes, sizes))
            else:
                # What was held comes free here, if it is too little.
                del held
                arrays = [self.budget.empty(list(shape), dtype) for shape, dtype in shapes]
            if not first:
                self.asked_again[index] += wanted
                return arrays
            if self.again_bytes:
                self.held[index] = self.budget.empty([self.again_bytes], "uint8")
            self.asked_again[index] = 0
            if self.again_bytes is not None:
                self._pass(index)
            return arrays

    def _pass(self, index: int) -> None:
        """Note that a batch needs no more to wait for."""
        with self.changed:
            if index >= self.turn:
                self.served.add(index)
            while self.turn in self.served:
                self.served.remove(self.turn)
                self.turn += 1
            self.changed.notify_all()

    def empty(self, index: int, shapes: list[Shape]) -> list[np.ndarray]:
        """Return arrays of the budget for a batch, waiting as long as anything moves. Raises BudgetError."""
        wanted = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes)
        with self._counted(-1):
            while True:
                if self.turn >= index or self.stopping.is_set():
                    try:
                        return self._take(index, shapes)
                    except BudgetError:
                        asked = self.asked
                        starved = asked is not None and time.monotonic() - asked > PATIENCE_S and self.computing == 0
                        if starved or self.stopping.is_set() or wanted > self.budget.cap_bytes:
                            raise
                with self.changed:
                    # Memory comes free without a word.
                    self.changed.wait(0.01)

    def close(self) -> None:
        """End the processes."""
        if self.pid == os.getpid():
            self.stop()
            for process in self.processes:
                with process.lock:
                    process.end(1)


def _pages(size: int) -> int:
    """Bytes of the whole pages that so many take."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _cut(room: np.ndarray, shapes: list[Shape], sizes: list[int]) -> Iterator[np.ndarray]:
    """Arrays that lie in a room, each on pages of its own."""
    at = 0
    for (shape, dtype), size in zip(shapes, sizes, strict=True):
        yield room[at : at + size].view(dtype).reshape(shape)
        at += _pages(size)


def _taken(value: Any, lent: list[np.ndarray]) -> Any:
    """Return what stands behind a place, over the memory of what was lent."""
    if isinstance(value, Tensor):
        from tidegate.torch import tensor

        return tensor(_taken(value.array, lent))
    if isinstance(value, Within):
        base = lent[value.number].reshape(-1).view(np.uint8)
        return np.ndarray(value.shape, value.dtype, base, value.offset, value.strides)
    return value


def _whole(error: bytes, words: str) -> BaseException:
    """Return the error that a process sent, caused by where it happened there."""
    try:
        raised = pickle.loads(error)
    except Exception:
        raised = Error(words.strip().splitlines()[-1])
    raised.__cause__ = RuntimeError(f'in a worker process:\n"""\n{words}"""')
    return raised


class _Mapped:
    """The memory that a worker process was lent."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.files: dict[int, mmap.mmap] = {}
        self.arrays: list[np.ndarray] = []

    def receive(self) -> Any:
        while True:
            kind, content = self.pipe.recv()
            if kind != "file":
                return kind, content
            number, length = content
            file = multiprocessing.reduction.recv_handle(self.pipe)
            self.files[number] = mmap.mmap(file, length)
            os.close(file)
            with contextlib.suppress(OSError):
                # One touch would make 2 MiB resident where 4 KiB are charged; a kernel without them refuses the advice.
                self.files[number].madvise(mmap.MADV_NOHUGEPAGE)

    def view(self, value: Any) -> Any:
        if not isinstance(value, Lent):
            return value
        array = np.ndarray(value.shape, value.dtype, self.files[value.file], value.offset)
        self.arrays.append(array)
        return array

    def raw(self, content: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return a batch as the loader has it."""
        columns, *rest = content
        views = {
            name: (self.view(column[0]), *column[1:])
            if isinstance(column, tuple) and not isinstance(column, Lent)
            else self.view(column)
            for name, column in columns.items()
        }
        return (views, *rest)

    def empty(self, shapes: list[Shape]) -> list[np.ndarray]:
        """Ask for arrays of the budget."""
        self.pipe.send(("empty", shapes))
        kind, content = self.receive()
        if kind == "refused":
            raise content
        return [self.view(place) for place in content]

    def placed(self, result: Any) -> Any:
        """Return a result whose arrays are places, those that lie elsewhere copied into memory that was asked for."""
        fresh: list[np.ndarray] = []
        placed = _walk(result, lambda value: self.place(value, fresh))
        if fresh:
            targets = self.empty([((array.nbytes,), "uint8") for array in fresh])
            for array, target in zip(fresh, targets, strict=True):
                np.copyto(np.ndarray(array.shape, array.dtype, target), array)
        return placed

    def place(self, value: Any, fresh: list[np.ndarray]) -> Any:
        if type(value) is not np.ndarray:
            if "torch" in sys.modules:
                from tidegate.torch import array_of

                array = array_of(value)
                if array is not None:
                    return Tensor(self.place(array, fresh))
            return value
        if value.dtype.hasobject or value.nbytes < SMALL_BYTES:
            return value
        start = value.__array_interface__["data"][0]
        last = start + sum((n - 1) * stride for n, stride in zip(value.shape, value.strides, strict=True))
        for number, array in enumerate(self.arrays):
            offset = start - array.__array_interface__["data"][0]
            if min(value.strides) >= 0 and offset >= 0 and last - start + offset + value.itemsize <= array.nbytes:
                return Within(number, offset, value.shape, value.strides, value.dtype)
        fresh.append(value)
        strides = np.ndarray(value.shape, value.dtype).strides
        return Within(len(self.arrays) + len(fresh) - 1, 0, value.shape, strides, value.dtype)


def _serve(pipe: Connection, parents_end: Connection | None, steps: Steps) -> None:
    """Transform batches until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parents_end is not None:
        # A fork has both ends; with the other one open it would not see that its parent is gone.
        parents_end.close()
    memory = _Mapped(pipe)
    while True:
        try:
            kind, content = memory.receive()
        except (EOFError, OSError):
            return
        if kind == "end":
            return
        try:
            answer: tuple[str, Any] = ("made", memory.placed(steps(memory.raw(content), memory.empty)))
            sent = pickle.dumps(answer)
        except BaseException as error:
            sent = pickle.dumps(("failed", (_portable(error), traceback.format_exc())))
        del content
        memory.arrays.clear()
        try:
            pipe.send_bytes(sent)
        except OSError:
            return


def _portable(error: BaseException) -> bytes:
    """Return an error as bytes, or nothing where it cannot travel."""
    try:
        sent = pickle.dumps(error)
        pickle.loads(sent)
    except Exception:
        return b""
    return sent
