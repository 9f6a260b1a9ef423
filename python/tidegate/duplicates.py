"""`dedup`: which samples of a dataset are the same, or nearly so, and what to draw instead."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from tidegate import _tidegate
from tidegate.source import Source
from tidegate.source import open as open_source

__all__ = ["Duplicates", "dedup"]


class Duplicates(dict[str, Any]):
    """What `dedup` found: `samples`, `clusters`, `compared`, `crowded`, `spilled_bytes`, `failed`, `failures`.

    The duplicates are arrays: `index` and `of`, the sample that is kept in its place, with their `similarity`; `keep`,
    the samples that are kept, for `source.select`; `weights`, one over the size of its cluster for each sample, for
    `samplers.weighted`.
    """

    index: np.ndarray[Any, np.dtype[np.int64]]
    """Each sample that another is kept for, in ascending order."""

    of: np.ndarray[Any, np.dtype[np.int64]]
    """The sample that is kept in its place: the first of its cluster."""

    similarity: np.ndarray[Any, np.dtype[np.float64]]
    """How alike the two are, as far as their signatures tell; of a cluster not all need be alike."""

    keep: np.ndarray[Any, np.dtype[np.int64]]
    """The samples that are kept, in ascending order: `source.select(found.keep)`."""

    weights: np.ndarray[Any, np.dtype[np.float32]]
    """For each sample one over the size of its cluster: so `samplers.weighted` draws every content evenly."""

    def __str__(self) -> str:
        return (
            f"{len(self.index)} of {self['samples']} samples are duplicates of {self['clusters']} others by "
            f"{self['field']}; {self['failed']} failed"
        )


def dedup(
    source: str | os.PathLike[str] | Source,
    *,
    memory: int | float | str | _tidegate.Budget,
    by: Literal["bytes", "pixels", "text", "picture"] = "bytes",
    field: str | None = None,
    threshold: float | None = None,
    spill: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Duplicates:
    """Find duplicates in one pass, within the budget; nothing is deleted.

    Args:
        source: as of `Loader`.
        memory: as of `Loader`; a quarter of it is for keys; what has no room there, and signatures, go to `spill`.
        by: "bytes" as they are stored; "pixels" however they are stored; "text" that shares most of its 5-word
            shingles (MinHash; of long texts the first MiB); "picture" for those that look alike: scaled, stored anew
            or a little brighter, but not mirrored or cropped.
        field: the field that tells; by default the only one that fits, or for bytes the only picture, else all fields
            together.
        threshold: the least similarity of duplicates: of texts the Jaccard similarity of their shingles (0.8), of
            pictures the fraction of equal bits of a perceptual hash (0.879: 31 bits of 256 may differ).
        spill: a folder; by default that of the data's index, or that for temporary files.
        workers, progress: as of `profile`.

    What is just as alike as the threshold says is found with a chance of 0.95; texts a little below it may be found
    too, as their similarity is estimated to a standard deviation of 0.035. Where millions look alike but are not, only
    the last 256 of them are compared with the next: `crowded` counts these.

    >>> import tidegate as tg
    >>> print(tg.dedup(tg.synthetic(100, 64), memory="32MiB"))
    0 of 100 samples are duplicates of 0 others by all fields; 0 failed
    """
    opened = source if isinstance(source, Source) else open_source(os.fspath(source))
    budget = memory if isinstance(memory, _tidegate.Budget) else _tidegate.Budget.process(memory)
    folder = None if spill is None else os.fspath(spill)
    keep, weights, index, of, similarity, rest = _tidegate.dedup(
        opened._inner, by, field, threshold, folder, workers, budget, progress
    )
    found = Duplicates(json.loads(rest))
    del found["duplicates"]
    found.keep, found.weights = keep, weights
    found.index, found.of, found.similarity = index, of, similarity
    return found
