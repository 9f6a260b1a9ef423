"""`Batches`: the iterator of one epoch of a loader.

Flow: `iter(loader)` -> `Batches` -> its first `next` begins the epoch -> batches -> the end.
Memory: that of the epoch, which `_tidegate.Epoch` has; this module holds none.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from tidegate.errors import Error, HeldError

if TYPE_CHECKING:
    from tidegate import _tidegate
    from tidegate.loader import Loader

__all__ = ["Batches"]


class Batches:
    """The batches of one epoch; made by `iter(loader)`.

    The epoch begins with the first `next`, not before: a mere `iter` changes nothing. Where
    another iterator of the same loader begins an epoch, this one raises `Error` when it is asked
    again. It never just ends before its epoch does.

    >>> import tidegate as tg
    >>> loader = tg.Loader(tg.synthetic(10, 8), batch_size=5, memory="16MiB")
    >>> first, second = iter(loader), iter(loader)
    >>> next(first).number, next(first).number, next(second).epoch
    (0, 1, 1)
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._epoch: _tidegate.Epoch | None = None
        # Why there are no more batches; empty at the end of the epoch.
        self._ended: str | None = None

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Any:
        if self._ended is not None:
            if self._ended:
                raise Error(self._ended)
            raise StopIteration
        loader = self._loader
        loader._check_process()
        if self._epoch is None:
            self._epoch = loader._begin()
        self._check_current()
        try:
            batch = loader._next(self._epoch)
        except HeldError:
            # It can go on once batches are dropped.
            raise
        except KeyboardInterrupt:
            if loader._steps is not None:
                # A function that goes on would share the interpreter with what the user does next.
                loader._steps.interrupt(0.0)
            self._end("this epoch was interrupted: iter(loader) begins another")
            raise
        except BaseException:
            self._end("this epoch ended with an error: iter(loader) begins another")
            raise
        if batch is None:
            # Another thread may have ended the epoch meanwhile.
            self._check_current()
            self._end("")
            raise StopIteration
        return batch

    def _check_current(self) -> None:
        if self._loader._epoch is not self._epoch:
            self._ended = (
                "this iteration was cut off: the loader began another epoch, loaded a state or was closed, and it has "
                "one epoch at a time. Use one iterator at a time, or make a second loader"
            )
            raise Error(self._ended)

    def _end(self, why: str) -> None:
        self._ended = why
        if self._epoch is not None:
            self._loader._end(self._epoch)

    def close(self) -> None:
        """End the epoch: stop its threads and free its memory."""
        if self._ended is None:
            self._end("this iterator was closed")

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()
