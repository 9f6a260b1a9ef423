"""`cache_curve`: what other amounts of memory would give, computed before training.

Flow: a loader's order, or accesses -> `_tidegate.cache_curve` -> `Curve`.
Memory: copies of the accesses, outside of any budget: for planning, not for training.
"""

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
from tidegate.options import as_array, choice, integer, is_row, number, refused

__all__ = ["Curve", "cache_curve"]


class Curve(list[dict[str, Any]]):
    """A list of one dict for each amount of memory; `print` it for a table."""

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
    """Return cache hits, bytes to read and the sustainable speed for each amount of memory.

    For accesses the figures are exact. For a loader they assume that samples are cached as stored;
    where the cache packs them, more fit.

    Args:
        what: a `Loader`; or the objects (ints from 0) in the order in which they are accessed.
        memory: for a loader, budgets: bytes, text such as "4GiB", or fractions of the memory
            limit; for accesses, sizes of a cache. One, or a list.
        read: reading speed in bytes per second; by default measured for a loader, and 2**30 for
            accesses.
        rate: samples per second that training takes; the words of a loader's curve then say which
            budget suffices. By default unknown.
        disk: a disk cache behind the memory of a loader: bytes, "200GiB", or a `DiskCache`; by
            default the loader's own.
        sizes: for accesses: bytes of each object; by default 1.
        epoch: for accesses: accesses in an epoch; by default all. The first epoch warms the cache
            and does not count, unless it is the only one.
        policy: for accesses: "min" (default) caches what comes next soonest in this epoch and the
            next (Belady 1966), "optimum" knows the whole future, "fixed" caches a fixed share, as
            a loader does.
        ahead: for accesses: bytes that may be read ahead; by default 8 MiB.

    Returns points with `cache_bytes`, `accesses`, `hits`, `read_bytes` and `stall_free_per_s`, the
    accesses per second at which training never waits. For a loader each point has `memory_bytes`,
    `source_bytes` (bytes that the disk cache does not have) and `point`, the former figures, or
    None where the budget is too small for an epoch.

    Raises ConfigError for no amounts, and for objects that are not ints from 0.

    >>> cache_curve([0, 1, 2, 0, 1, 2], memory=[0, 2, 3])[1]["hits"]
    2
    """
    if isinstance(memory, int | float | str):
        memory = [memory]
    if not is_row(memory) or not len(memory):
        raise refused("memory", memory, 'an amount or several, such as ["1GiB", "2GiB"]')
    read = None if read is None else number("read", read, 0.0)
    rate = None if rate is None else number("rate", rate, 0.0)
    choice("policy", policy, ("min", "fixed", "optimum"))
    ahead = integer("ahead", ahead, 0)
    epoch = None if epoch is None else integer("epoch", epoch, 1)
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
    limits = [integer("memory", m, 0) if isinstance(m, int) else _tidegate.size_bytes(m) for m in memory]
    supply = (float(1 << 30) if read is None else read, ahead)
    points = _tidegate.cache_curve(
        accesses, len(accesses) if epoch is None else epoch, bytes_of, policy, supply, limits
    )
    curve = Curve(json.loads(points))
    for point in curve:
        _unbounded(point)
    return curve


def _unbounded(point: dict[str, Any] | None) -> None:
    """Replace null, as JSON has no infinity: with nothing to read, any speed is sustained."""
    if point is not None and point["stall_free_per_s"] is None:
        point["stall_free_per_s"] = math.inf


def _numbers(name: str, given: ArrayLike) -> np.ndarray:
    row = as_array(name, given, what="one row of integers")
    if row.ndim != 1 or row.dtype.kind not in "iu" and row.size:
        raise ConfigError(f"{name} must be one row of integers, not {row.dtype} of shape {row.shape}")
    if row.size and (row.min() < 0 or row.max() >= 1 << 32):
        raise ConfigError(f"{name} must be between 0 and 2**32 - 1, not {row.min()} to {row.max()}")
    return np.ascontiguousarray(row, np.uint32)
