"""`cache_curve`: what other amounts of memory would give, before training."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from tidegate import _tidegate
from tidegate.disk import DiskCache
from tidegate.errors import ConfigError
from tidegate.loader import Loader

__all__ = ["Curve", "cache_curve"]


class Curve(list[dict[str, Any]]):
    """A point for each amount of memory; `print` it for a table."""

    text: str = ""

    def __str__(self) -> str:
        return self.text or super().__str__()


def cache_curve(
    what: Loader | ArrayLike,
    *,
    memory: Sequence[int | float | str] | int | float | str,
    read: float | None = None,
    rate: float | None = None,
    disk: int | str | DiskCache | None = None,
    sizes: ArrayLike | None = None,
    epoch: int | None = None,
    policy: Literal["min", "fixed", "optimum"] = "min",
    ahead: int = 8 << 20,
) -> Curve:
    """Return hits, bytes to read and the accesses per second that never stall, for each of `memory`.

    Of accesses they are exact; of a loader they are of samples as they are stored: where those pack, more are kept.

    Args:
        what: a loader, of which `memory` are budgets; or the objects (integers from 0) in the order in which they are
            accessed, of which `memory` are bytes of a cache.
        memory: budgets or bytes.
        read: bytes per second that reading gives; of a loader it is measured if not given, of accesses 1 GiB/s.
        rate: samples per second that training takes; the words of a loader's curve say what memory suffices.
        disk: bytes or "200GiB" of a disk cache behind the memory of a loader; by default its own.
        sizes: bytes of each object; 1 if not given. For accesses alone, as what follows.
        epoch: accesses in an epoch; all if not given. The first epoch warms the cache and is not counted, unless it is
            the only one.
        policy: "min" keeps what comes next soonest as far as this epoch and the next tell (Belady 1966), "optimum"
            knows the whole future, "fixed" keeps a fixed share, as a loader does.
        ahead: bytes that may be read ahead.

    Each point has `cache_bytes`, `accesses`, `hits`, `read_bytes` and `stall_free_per_s`; of a loader `memory_bytes`
    and `point`, which is None where an epoch cannot run, and `source_bytes`, those that a disk cache does not have.

    >>> cache_curve([0, 1, 2, 0, 1, 2], memory=[0, 2, 3])[1]["hits"]
    2
    """
    if isinstance(memory, int | float | str):
        memory = [memory]
    if not len(memory):
        raise ConfigError("memory=[]: give at least one amount")
    if isinstance(what, Loader):
        limit = disk.limit if isinstance(disk, DiskCache) else disk
        disk_bytes = None if limit is None else _tidegate.size_bytes(limit)
        text, words = what._inner.cache_curve(list(memory), read, rate, disk_bytes)
        curve = Curve(json.loads(text)["points"])
        for point in curve:
            _unbounded(point["point"])
        curve.text = words
        return curve
    accesses = _numbers("accesses", what)
    count = int(accesses.max()) + 1 if len(accesses) else 0
    bytes_of = np.ones(count, np.uint32) if sizes is None else _numbers("sizes", sizes)
    limits = [m if isinstance(m, int) else _tidegate.size_bytes(m) for m in memory]
    supply = (float(1 << 30) if read is None else read, ahead)
    points = _tidegate.cache_curve(accesses, epoch or len(accesses), bytes_of, policy, supply, limits)
    curve = Curve(json.loads(points))
    for point in curve:
        _unbounded(point)
    return curve


def _unbounded(point: dict[str, Any] | None) -> None:
    """JSON has no infinity: nothing to read means any speed."""
    if point is not None and point["stall_free_per_s"] is None:
        point["stall_free_per_s"] = math.inf


def _numbers(name: str, given: ArrayLike) -> np.ndarray:
    array = np.asarray(given)
    if array.ndim != 1 or array.dtype.kind not in "iu" and array.size:
        raise ConfigError(f"{name} must be one row of integers, not {array.dtype} of shape {array.shape}")
    if array.size and (array.min() < 0 or array.max() >= 1 << 32):
        raise ConfigError(f"{name} must lie between 0 and 2**32 - 1, not {array.min()} to {array.max()}")
    return np.ascontiguousarray(array, np.uint32)
