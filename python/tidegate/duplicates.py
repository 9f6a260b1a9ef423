"""`dedup`: which samples of a dataset are the same, or nearly the same, and what to draw instead.

Flow: a source -> `_tidegate.dedup`, one pass -> `Duplicates`.
Memory: as of the loader that makes the pass; keys and signatures beyond a quarter of the budget go
to the folder `spill`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from tidegate import _tidegate
from tidegate.deprecation import renamed
from tidegate.options import MOST_THREADS, as_path, choice, function, integer, number, refused, text
from tidegate.source import Source, opened

__all__ = ["Duplicates", "dedup"]


class Duplicates(dict[str, Any]):
    """What `dedup` found: counts as a dict, and the duplicates as arrays.

    Keys: `samples`, `clusters`, `compared`, `crowded`, `spilled_bytes`, `failed`, `failures`.
    `print` shows one sentence.
    """

    index: np.ndarray[Any, np.dtype[np.int64]]
    """The duplicates, in ascending order: samples for which `dedup` keeps another one."""

    of: np.ndarray[Any, np.dtype[np.int64]]
    """For each duplicate the sample that is kept instead: the first of its cluster."""

    similarity: np.ndarray[Any, np.dtype[np.float64]]
    """The estimated similarity of the two, 0 to 1. Not all samples of a cluster are similar."""

    keep: np.ndarray[Any, np.dtype[np.int64]]
    """The samples that are kept, in ascending order: for `source.select(found.keep)`."""

    weights: np.ndarray[Any, np.dtype[np.float32]]
    """For each sample 1 / the size of its cluster: with `samplers.weighted`, every content comes
    equally often.
    """

    def __str__(self) -> str:
        return (
            f"{len(self.index)} of {self['samples']} samples are duplicates of {self['clusters']} others by "
            f"{self['field']}; {self['failed']} failed"
        )


def dedup(
    source: str | os.PathLike[str] | Source,
    *,
    memory: int | float | str | _tidegate.Budget,
    by: Literal["bytes", "pixels", "text", "image", "picture"] = "bytes",
    field: str | None = None,
    threshold: float | None = None,
    spill: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Duplicates:
    """Find duplicates in one pass, within the budget; deletes nothing.

    A pair whose similarity equals the threshold is found with probability 0.95. Texts a little
    below it may be found too: their similarity is estimated with a standard deviation of 0.035.
    Where millions of samples share parts of their signature without being similar, a sample is
    compared with the last 256 of them; `crowded` counts these cases.

    Args:
        source: a path, a pattern, a URL or a `Source`.
        memory: the budget, as of `Loader`. A quarter of it holds keys; the rest of the keys, and
            signatures, go to `spill`.
        by: "bytes" (default): equal as stored. "pixels": equal once decoded, however stored.
            "text": most 5-word shingles in common (MinHash; of long texts the first MiB). "image":
            alike when scaled, encoded again or a little brighter, but not when mirrored or
            cropped; "picture" is its old name.
        field: the field to compare; by default the only one that fits, or for "bytes" the only
            image, else all fields together.
        threshold: the least similarity of duplicates: the Jaccard similarity of shingles (by
            default 0.8), or the fraction of equal bits of a perceptual hash of images (by default
            0.879: 31 of 256 bits may differ).
        spill: a folder for keys and signatures; by default the folder of the data's index, or that
            for temporary files.
        workers: decoding threads, an int; by default the cores that this process may use.
        progress: called as `progress(samples done, samples)`.

    >>> import tidegate as tg
    >>> print(tg.dedup(tg.synthetic(100, 64), memory="32MiB"))
    0 of 100 samples are duplicates of 0 others by all fields; 0 failed
    """
    text("by", by, "the name of a criterion")
    if by == "picture":
        renamed('dedup(by="picture")', 'dedup(by="image")')
    else:
        choice("by", by, ("bytes", "pixels", "text", "image"))
    data = opened(source, memory)
    function("progress", progress)
    workers = None if workers is None else integer("workers", workers, 1, MOST_THREADS)
    threshold = None if threshold is None else number("threshold", threshold, 0.0, 1.0)
    if field is not None and not isinstance(field, str):
        raise refused("field", field, "the name of a field")
    budget = memory if isinstance(memory, _tidegate.Budget) else _tidegate.Budget.process(memory)
    folder = None if spill is None else as_path("spill", spill)
    keep, weights, index, of, similarity, rest = _tidegate.dedup(
        data._inner, "picture" if by == "image" else by, field, threshold, folder, workers, budget, progress
    )
    found = Duplicates(json.loads(rest))
    del found["duplicates"]
    found.keep, found.weights = keep, weights
    found.index, found.of, found.similarity = index, of, similarity
    return found
