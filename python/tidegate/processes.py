"""`Pool`: worker processes that call a user's functions over batches in shared memory.

Flow: a finished batch on a transform thread -> `SharedArray`s by pipe -> a process maps them,
calls the functions and copies results into arrays that it requests -> `ArrayView`s by pipe ->
arrays here.
Memory: inputs are slots of the loader; results are charged to the account `user`. Only arrays that
a function allocates itself are copied. A process's interpreter, and what a function allocates
while it runs, are outside of the budget.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
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
from tidegate.errors import BudgetError, ConfigError, Error, InternalError
from tidegate.generators import Seeder
from tidegate.stacking import Shape
from tidegate.transform import Steps

__all__ = ["Pool"]

# Arrays of up to this many bytes travel through the pipe.
SMALL_BYTES = 4096
# Held while a process starts: a fork inherits every open pipe, also ends that another thread is
# about to close.
_starting = threading.Lock()
# How long the consumer waits without movement before missing memory is an error.
STARVED_TIMEOUT_S = 2.0
# How often a transform thread looks for free memory, which nothing signals.
POLL_INTERVAL_S = 0.01


class SharedArray(NamedTuple):
    """An array in shared memory: a file that the process has received, and the place in it."""

    file: int
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class ArrayView(NamedTuple):
    """A view of an array that the process was given, by its number."""

    number: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


class Tensor(NamedTuple):
    """A torch tensor over an array."""

    array: Any


class Columns(NamedTuple):
    """A `Batch`, to be pickled."""

    columns: dict[str, Any]
    attributes: dict[str, Any]


class Rows(NamedTuple):
    """A `Ragged` column, to be pickled."""

    parts: tuple[Any, ...]


def _packed(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Return a result in picklable form, with `leaf` of each array, tensor and the rest."""
    if isinstance(value, Batch):
        attributes = {name: getattr(value, name) for name in Batch.__slots__ if hasattr(value, name)}
        return Columns({name: _packed(column, leaf) for name, column in value.items()}, attributes)
    if isinstance(value, Ragged):
        return Rows((_packed(value.values, leaf), value.offsets, value.shapes, value.text))
    return _mapped(value, lambda part: _packed(part, leaf), leaf)


def _unpacked(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Return what `_packed` took, with `leaf` of each `ArrayView`, `Tensor` and the rest."""
    if isinstance(value, Columns):
        batch = Batch({name: _unpacked(column, leaf) for name, column in value.columns.items()})
        for name, attribute in value.attributes.items():
            setattr(batch, name, attribute)
        return batch
    if isinstance(value, Rows):
        values, *rest = value.parts
        return Ragged(_unpacked(values, leaf), *rest)
    return _mapped(value, lambda part: _unpacked(part, leaf), leaf)


def _mapped(value: Any, inside: Callable[[Any], Any], leaf: Callable[[Any], Any]) -> Any:
    """Return a container with `inside` of each part, and `leaf` of anything else.

    Only of exact dicts, lists and tuples: a subclass may hold more than its parts, so it is a
    leaf.
    """
    if type(value) is dict:
        return {name: inside(part) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(inside(part) for part in value)
    return leaf(value)


def _check_is_in_a_file(functions: list[Callable[..., Any]]) -> None:
    """Refuse functions of a notebook or a prompt: a process that is not forked cannot find them."""
    main = sys.modules.get("__main__")
    for function in functions:
        if getattr(function, "__module__", None) == "__main__" and not hasattr(main, "__file__"):
            name = getattr(function, "__qualname__", repr(function))
            raise ConfigError(
                f"{name} is defined in a notebook or at a prompt, where a worker process does not find it: put it into "
                "a module, or pass multiprocessing_context='fork'"
            )


class _Process:
    """One worker process, as the transform thread that uses it sees it."""

    def __init__(self, context: Any, steps: Steps, budget: Budget) -> None:
        self.context, self.steps, self.budget = context, steps, budget
        # Held while a batch is transformed, and while the process ends.
        self.lock = threading.Lock()
        self.process: Any = None
        self.start()

    def start(self) -> None:
        if multiprocessing.current_process().daemon:
            raise ConfigError(
                "processes= in a process that may start none (a worker of another loader): make this loader in the "
                "main process, or with processes=0"
            )
        if self.context.get_start_method() != "fork":
            _check_is_in_a_file(self.steps.functions())
        with _starting:
            self.pipe, child_end = self.context.Pipe()
            own_end = self.pipe if self.context.get_start_method() == "fork" else None
            process = self.context.Process(target=_serve, args=(child_end, own_end, self.steps), daemon=True)
            process.name = "tidegate-transform"
            try:
                process.start()
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise ConfigError(
                    f"a transform cannot be sent to a worker process ({error}): define it at the top of a module, or "
                    "pass multiprocessing_context='fork'"
                ) from error
            finally:
                child_end.close()
        self.process, self.sent_files = process, set[int]()

    def transform(
        self, raw: tuple[Any, ...], empty: Callable[[int, list[Shape]], list[Any]], stopping: threading.Event
    ) -> Any:
        if stopping.is_set():
            raise Error("the loader was closed before a worker process transformed a batch")
        if self.process is None:
            self.start()
        shared: list[np.ndarray] = []
        try:
            self.pipe.send(("batch", self.share(raw, shared)))
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
                    self.pipe.send(("arrays", [self.place(array, shared) for array in arrays]))
        except (EOFError, ConnectionError) as error:
            code = self.end(1)
            raise Error(
                f"a worker process died ({code}) while it transformed batch {raw[5]} of epoch {raw[4]} (ids from "
                f"{raw[2][:1]}); look for 'out of memory' in the kernel's log, or run with processes=0 to see the "
                "function fail here"
            ) from error
        except BaseException:
            # The process may still answer for this batch: end it. The next batch gets a new one.
            self.end(0)
            raise
        if kind == "failed":
            raise _received(*content)
        return _unpacked(content, lambda value: _resolved(value, shared))

    def share(self, raw: tuple[Any, ...], shared: list[np.ndarray]) -> tuple[Any, ...]:
        """Return a raw batch of `SharedArray`s, and append its arrays to `shared`."""
        columns, *rest = raw
        places = {
            name: (self.place(column[0], shared), *column[1:])
            if isinstance(column, tuple)
            else self.place(column, shared)
            for name, column in columns.items()
        }
        return (places, *rest)

    def place(self, array: np.ndarray, shared: list[np.ndarray]) -> SharedArray | np.ndarray:
        """Return where an array is in shared memory; send its file to the process once."""
        found = self.budget.place(array.__array_interface__["data"][0])
        if found is None:
            if array.nbytes > SMALL_BYTES:
                raise InternalError("an array is outside of shared memory: please report this")
            return array
        file, file_bytes, offset = found
        if file not in self.sent_files:
            self.pipe.send(("file", (file, file_bytes)))
            multiprocessing.reduction.send_handle(self.pipe, file, self.process.pid)
            self.sent_files.add(file)
        shared.append(array)
        return SharedArray(file, offset, array.shape, array.dtype)

    def end(self, timeout_s: float) -> str:
        """End the process, by force after `timeout_s`, and return how it ended."""
        if self.process is None:
            return "not started"
        with contextlib.suppress(OSError):
            # A message, because closing the pipe is not enough: a sibling that was forked later
            # has this end too.
            self.pipe.send(("end", None))
        self.pipe.close()
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code, self.process = self.process.exitcode, None
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


class Request(enum.Enum):
    """Which request for memory a batch makes next."""

    FIRST = "first"
    LATER = "later"


@dataclasses.dataclass
class _InFlight:
    """What a batch in a worker process has requested so far."""

    next_request: Request = Request.FIRST
    # Bytes of whole pages that it requested after its first request.
    later_bytes: int = 0
    # Memory reserved at its first request for the later ones.
    reserved: np.ndarray | None = None


class ResultMemory:
    """Memory for the results of batches in flight, so that no batch waits for a later one.

    A batch makes its first request only in the order of batches (`turn`). Some batches request
    memory again: `transform` and `batch_transform` both return new arrays. At its first request a
    batch also reserves as many bytes as any batch before it requested later. Until one batch has
    finished, that figure is unknown, and batches take turns as a whole.

    It has no lock: the caller holds one over each call.
    """

    def __init__(self, allocate: Callable[[list[int], str], np.ndarray]) -> None:
        self._allocate = allocate
        self.turn = 0
        # The most that a finished batch requested after its first request; None before one has.
        self._later_bytes: int | None = None
        self._in_flight: dict[int, _InFlight] = {}
        # Batches at or after `turn` that wait for nothing more.
        self._passed: set[int] = set()

    def begin(self, first: int) -> None:
        """Begin an epoch, or go on with one, at the batch of this number."""
        self.turn = first
        self._passed.clear()
        self._in_flight.clear()

    def take(self, index: int, shapes: list[Shape]) -> list[np.ndarray]:
        """Return arrays for a batch. Raises BudgetError; the caller may then repeat it."""
        sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes]
        wanted = sum(_pages(size) for size in sizes)
        batch = self._in_flight.setdefault(index, _InFlight())
        reserved, batch.reserved = batch.reserved, None
        if reserved is not None and wanted <= reserved.nbytes:
            arrays = list(_cut(reserved, shapes, sizes))
        else:
            # A reservation that is too small is freed first.
            del reserved
            arrays = [self._allocate(list(shape), dtype) for shape, dtype in shapes]
        if batch.next_request is Request.LATER:
            batch.later_bytes += wanted
            return arrays
        if self._later_bytes:
            batch.reserved = self._allocate([self._later_bytes], "uint8")
        batch.next_request = Request.LATER
        if self._later_bytes is not None:
            self.pass_turn(index)
        return arrays

    def succeeded(self, index: int) -> None:
        """Learn from a batch that was transformed how much later requests take."""
        batch = self._in_flight.get(index, _InFlight())
        self._later_bytes = max(self._later_bytes or 0, batch.later_bytes)

    def finish(self, index: int) -> None:
        """Forget a batch, whatever became of it, and free what it had reserved."""
        self._in_flight.pop(index, None)
        self.pass_turn(index)

    def pass_turn(self, index: int) -> None:
        """Note that a batch waits for no more memory, and move `turn` past such batches."""
        if index >= self.turn:
            self._passed.add(index)
        while self.turn in self._passed:
            self._passed.remove(self.turn)
            self.turn += 1


class Pool:
    """`count` worker processes that call `steps` over batches; call it from `count` threads.

    Raises ConfigError when a function cannot be sent to a process.
    """

    def __init__(self, steps: Steps, count: int, budget: Budget, context: str | None) -> None:
        self.budget = budget
        self.pid = os.getpid()
        self.stopping = threading.Event()
        # Since when the consumer has been waiting for a batch, as `time.monotonic` counts.
        self.asked: float | None = None
        # Guards `memory` and `computing`, the number of batches that a process is transforming.
        self.changed = threading.Condition()
        self.computing = 0
        self.memory = ResultMemory(budget.empty)
        self.processes = [_Process(multiprocessing.get_context(context), steps, budget) for _ in range(count)]
        self.idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for process in self.processes:
            self.idle.put(process)

    def begin(self, first: int) -> None:
        """Begin an epoch, or go on with one, at the batch of this number."""
        self.stopping.clear()
        with self.changed:
            self.memory.begin(first)

    def stop(self) -> None:
        """Make calls in progress return with an error; their processes end by force."""
        self.stopping.set()

    def __call__(self, raw: tuple[Any, ...]) -> Any:
        index = raw[5]
        process = self.idle.get()
        try:
            with self._counted(1), process.lock:
                result = process.transform(raw, self.empty, self.stopping)
            with self.changed:
                self.memory.succeeded(index)
            return result
        finally:
            with self.changed:
                self.memory.finish(index)
                self.changed.notify_all()
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

    def empty(self, index: int, shapes: list[Shape]) -> list[np.ndarray]:
        """Return arrays of the budget for a batch; wait while anything moves.

        Raises BudgetError when the consumer has waited for `STARVED_TIMEOUT_S` and no process
        computes.
        """
        wanted = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes)
        with self._counted(-1):
            while True:
                with self.changed:
                    if self.memory.turn >= index or self.stopping.is_set():
                        try:
                            arrays = self.memory.take(index, shapes)
                        except BudgetError:
                            if self._starved() or self.stopping.is_set() or wanted > self.budget.cap_bytes:
                                raise
                        else:
                            self.changed.notify_all()
                            return arrays
                    self.changed.wait(POLL_INTERVAL_S)

    def _starved(self) -> bool:
        asked = self.asked
        return asked is not None and time.monotonic() - asked > STARVED_TIMEOUT_S and self.computing == 0

    def close(self) -> None:
        """End the processes."""
        if self.pid == os.getpid():
            self.stop()
            for process in self.processes:
                with process.lock:
                    process.end(1)


def _pages(size: int) -> int:
    """Return the bytes of the whole pages that `size` bytes take."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _cut(reserved: np.ndarray, shapes: list[Shape], sizes: list[int]) -> Iterator[np.ndarray]:
    """Return arrays over reserved memory, each on pages of its own."""
    at = 0
    for (shape, dtype), size in zip(shapes, sizes, strict=True):
        yield reserved[at : at + size].view(dtype).reshape(shape)
        at += _pages(size)


def _resolved(value: Any, shared: list[np.ndarray]) -> Any:
    """Return the array of an `ArrayView`, or the tensor of a `Tensor`, over memory in `shared`."""
    if isinstance(value, Tensor):
        from tidegate.torch import tensor

        return tensor(_resolved(value.array, shared))
    if isinstance(value, ArrayView):
        base = shared[value.number].reshape(-1).view(np.uint8)
        return np.ndarray(value.shape, value.dtype, base, value.offset, value.strides)
    return value


def _received(error: bytes, words: str) -> BaseException:
    """Return the exception that a process sent; its cause has the traceback from there."""
    try:
        raised: BaseException = pickle.loads(error)
    except Exception:
        raised = Error(words.strip().splitlines()[-1])
    raised.__cause__ = RuntimeError(f'in a worker process:\n"""\n{words}"""')
    return raised


class _Received:
    """The shared memory that a worker process has received."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.files: dict[int, mmap.mmap] = {}
        self.arrays: list[np.ndarray] = []

    def receive(self) -> Any:
        """Return the next message that is not a file; map the files that come before it."""
        while True:
            kind, content = self.pipe.recv()
            if kind != "file":
                return kind, content
            number, length = content
            file = multiprocessing.reduction.recv_handle(self.pipe)
            self.files[number] = mmap.mmap(file, length)
            os.close(file)
            with contextlib.suppress(OSError):
                # With huge pages one touch would make 2 MiB resident where 4 KiB are charged. A
                # kernel without huge pages refuses the advice.
                self.files[number].madvise(mmap.MADV_NOHUGEPAGE)

    def view(self, value: Any) -> Any:
        """Return the array of a `SharedArray`; anything else as it is."""
        if not isinstance(value, SharedArray):
            return value
        array = np.ndarray(value.shape, value.dtype, self.files[value.file], value.offset)
        self.arrays.append(array)
        return array

    def raw(self, content: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the raw batch, as the loader has it."""
        columns, *rest = content
        views = {
            name: (self.view(column[0]), *column[1:])
            if isinstance(column, tuple) and not isinstance(column, SharedArray)
            else self.view(column)
            for name, column in columns.items()
        }
        return (views, *rest)

    def empty(self, shapes: list[Shape]) -> list[np.ndarray]:
        """Request arrays of the budget, and wait for them."""
        self.pipe.send(("empty", shapes))
        kind, content = self.receive()
        if kind == "refused":
            raise content
        return [self.view(place) for place in content]

    def placed(self, result: Any) -> Any:
        """Return a result in picklable form, with arrays copied to shared memory where needed."""
        fresh: list[np.ndarray] = []
        placed = _packed(result, lambda value: self.place(value, fresh))
        if fresh:
            targets = self.empty([((array.nbytes,), "uint8") for array in fresh])
            for array, target in zip(fresh, targets, strict=True):
                np.copyto(np.ndarray(array.shape, array.dtype, target), array)
        return placed

    def place(self, value: Any, fresh: list[np.ndarray]) -> Any:
        """Return an array's `ArrayView`; append one outside of shared memory to `fresh`."""
        if type(value) is not np.ndarray:
            if "torch" in sys.modules:
                from tidegate.torch import array_of

                array = array_of(value)
                if array is not None:
                    return Tensor(self.place(array, fresh))
            return value
        if value.dtype.hasobject or value.nbytes <= SMALL_BYTES:
            return value
        start = value.__array_interface__["data"][0]
        last = start + sum((n - 1) * stride for n, stride in zip(value.shape, value.strides, strict=True))
        for number, array in enumerate(self.arrays):
            offset = start - array.__array_interface__["data"][0]
            if min(value.strides) >= 0 and offset >= 0 and last - start + offset + value.itemsize <= array.nbytes:
                return ArrayView(number, offset, value.shape, value.strides, value.dtype)
        fresh.append(value)
        strides = np.ndarray(value.shape, value.dtype).strides
        return ArrayView(len(self.arrays) + len(fresh) - 1, 0, value.shape, strides, value.dtype)


def _serve(pipe: Connection, parents_end: Connection | None, steps: Steps) -> None:
    """Transform batches until the pipe is closed; what a worker process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parents_end is not None:
        # A fork has both ends. With the parent's end open here, the pipe would never report that
        # the parent is gone.
        parents_end.close()
    memory = _Received(pipe)
    steps.seeder = Seeder(steps.functions(), steps.seed)
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
    """Return an exception as bytes; none where it cannot be pickled."""
    try:
        sent = pickle.dumps(error)
        pickle.loads(sent)
    except Exception:
        return b""
    return sent
