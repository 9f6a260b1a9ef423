"""Samplers that are functions of (seed, epoch, position): no list, so they resume, split over ranks and are planned.

Give one as `sampler=` to a `Loader`, whose `seed` they take. Ids may repeat, and are kept in memory by Belady's rule
over this epoch and the next. Their tables are charged to the budget: 8 bytes a sample for weights, 4 for difficulties,
4 for labels (12 in classes of fewer than 65,536), and 576 a class.

>>> import numpy as np
>>> import tidegate as tg
>>> from tidegate import samplers
>>> labels = np.arange(1000) % 10 == 0
>>> loader = tg.Loader(tg.synthetic(1000, 8), batch_size=20, memory="16MiB", sampler=samplers.balanced(labels))
>>> [int(labels[batch.indices].sum()) for batch in loader][:5]
[10, 10, 10, 10, 10]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tidegate._tidegate import Drawn
from tidegate.errors import ConfigError
from tidegate.volumes import Boxes, Volume

__all__ = [
    "Drawn",
    "balanced",
    "curriculum",
    "focal",
    "hard",
    "importance",
    "mixture",
    "patches",
    "replacement",
    "stratified",
    "weighted",
]


def replacement(positions: int | None = None) -> Drawn:
    """Draw evenly, with replacement; `positions` are those of an epoch, by default as many as there are samples.

    >>> import tidegate as tg
    >>> len(tg.Loader(tg.synthetic(100, 8), batch_size=10, memory="16MiB", sampler=replacement(1000)))
    100
    """
    return Drawn.even(_positions(positions))


def weighted(weights: npt.ArrayLike, positions: int | None = None) -> Drawn:
    """Draw by weights, with replacement, as torch's WeightedRandomSampler, past its 2**24 samples.

    Args:
        weights: one for each sample, finite and not negative, of any sum; single or double precision is read in place.
        positions: ids in an epoch; by default as many as there are samples.

    >>> import tidegate as tg
    >>> loader = tg.Loader(tg.synthetic(3, 8), batch_size=100, memory="16MiB", sampler=weighted([0, 1, 0], 100))
    >>> {int(id) for batch in loader for id in batch.ids}
    {1}
    """
    return Drawn.weighted(_numbers("weights", weights), _positions(positions))


def stratified(labels: npt.ArrayLike, *, block: int | None = None) -> Drawn:
    """Give every sample once, with each class's exact share in every `block` positions.

    Args:
        labels: one for each sample, of any type that can be sorted.
        block: positions, at most 65,536; by default a global batch. A state goes on with the same block alone.

    Where a class's share of a block is not whole it is off by a few at most, and which small classes meet differs from
    batch to batch.

    >>> import tidegate as tg
    >>> labels = ["a"] * 75 + ["b"] * 25
    >>> loader = tg.Loader(tg.synthetic(100, 8), batch_size=20, memory="16MiB", sampler=stratified(labels))
    >>> [int((batch.ids >= 75).sum()) for batch in loader]
    [5, 5, 5, 5, 5]
    """
    return Drawn.classes(_classes(labels), "stratified", 0.0, None, _block(block))


def balanced(
    labels: npt.ArrayLike,
    how: Literal["over", "under", "effective"] = "over",
    *,
    beta: float = 0.9999,
    positions: int | None = None,
    block: int | None = None,
) -> Drawn:
    """Return an order in which classes come equally often in every `block` positions.

    Args:
        labels: one for each sample, of any type that can be sorted.
        how: "over": an epoch has as many of each class as the largest has, repeated equally often; "under": as many as
            the smallest has, in turn from one epoch to the next; "effective": by the effective number of samples,
            between as they are and equal (Cui et al. 2019).
        beta: of "effective": 0 leaves classes as they are, near 1 makes them equal.
        positions: ids in an epoch of "effective"; by default as many as there are samples.
        block: positions; by default a global batch.
    """
    if how not in ("over", "under", "effective"):
        raise ConfigError(f"how={how!r}: give 'over', 'under' or 'effective'")
    if positions is not None and how != "effective":
        raise ConfigError(f"positions={positions} with how={how!r}: only an epoch of 'effective' can be of any length")
    return Drawn.classes(_classes(labels), how, beta, _positions(positions), _block(block))


def mixture(
    sizes: Sequence[int],
    proportions: Sequence[float],
    until: Literal["first", "all"] | int = "first",
    *,
    block: int | None = None,
) -> Drawn:
    """Mix the sources that follow one another in a dataset, in exact proportions; each goes on where it was.

    Args:
        sizes: samples of each source, in the order of their ids.
        proportions: one for each source, of any sum.
        until: an epoch ends when the "first" source has come once, when "all" have, or after so many positions.
        block: positions in which the proportions are exact; by default a global batch.

    >>> import tidegate as tg
    >>> sampler = mixture([60, 40], [3, 1])
    >>> loader = tg.Loader(tg.synthetic(100, 8), batch_size=8, memory="16MiB", sampler=sampler)
    >>> [int((batch.ids < 60).sum()) for batch in loader]
    [6, 6, 6, 6, 6, 6, 6, 6, 6, 6]
    """
    if until not in ("first", "all") and not _whole(until, 0):
        raise ConfigError(f"until={until!r}: give 'first', 'all' or a number of positions")
    return Drawn.mixture([int(n) for n in sizes], [float(p) for p in proportions], until, _block(block))


def patches(
    volume: Volume,
    positions: int,
    *,
    boxes: Boxes | None = None,
    classes: Sequence[int] | Mapping[int, float] | None = None,
    window: int | None = None,
    places: int = 8,
) -> Drawn:
    """Draw patches of a volume, with replacement: evenly, or around boxes so that classes come as often as wanted.

    Args:
        volume: that of the loader.
        positions: patches in an epoch.
        boxes: where classes are, as `Volume.boxes` found them or as you know them: a patch holds the box that it is
            drawn for, or lies in it, and boxes of a class come by their weights.
        classes: those that are wanted, equally often, or {class: weight}; by default all.
        window: positions that are sorted so that patches near one another follow one another, which share chunks.
        places: of the window, gone through at once: more of them mix batches better and want a larger cache.

    The loader's report says how much worse batches of a window mix.
    """
    if classes is not None and boxes is None:
        raise ConfigError('classes without boxes: give boxes=volume.boxes("labels"), which say where classes are')
    shares = classes if isinstance(classes, Mapping) else dict.fromkeys(classes or (), 1.0)
    weights = [(int(label), float(share)) for label, share in shares.items()]
    if not _whole(positions, 1):
        raise ConfigError(f"positions={positions!r}: give a whole number, at least 1")
    near = None if window is None else (int(window), int(places))
    return Drawn.patches(volume._volume, boxes and boxes._boxes, weights, positions, near)


def curriculum(
    difficulty: npt.ArrayLike,
    *,
    epochs: float,
    start: float = 0.2,
    pace: Literal["linear", "root"] | int = "linear",
    positions: int | None = None,
) -> Drawn:
    """Draw from the easiest samples first, with replacement, and from ever more of them until it is all.

    Args:
        difficulty: one for each sample (a loss, a length), finite or infinite.
        epochs: after so many all samples are drawn from.
        start: the fraction of samples at the beginning.
        pace: "linear", "root" (faster at first; Platanios et al. 2019), or a number of equal steps.
        positions: ids in an epoch; by default as many as there are samples.
    """
    if pace not in ("linear", "root") and not _whole(pace, 1):
        raise ConfigError(f"pace={pace!r}: give 'linear', 'root' or a number of steps")
    return Drawn.curriculum(
        _numbers("difficulty", difficulty).astype(np.float64), start, epochs, pace, _positions(positions)
    )


def hard(power: float = 1.0, *, even: float = 0.1, newness: float = 0.5, positions: int | None = None) -> Drawn:
    """Draw samples in proportion to a power of their loss, as `Loader.feedback` told it: online hard-example mining.

    Args:
        power: 0 draws evenly, 1 in proportion to the loss.
        even: the fraction that is drawn evenly, so that no sample is lost sight of.
        newness: what a new loss of a sample counts against the mean of those before; 1 forgets them.
        positions: ids in an epoch; by default as many as there are samples.

    What is fed back counts from the next epoch on. Until a first loss is known, all come once. Losses and their tables
    take 28 bytes a sample of the budget. A state names what was fed back; `Loader.feedback_state` holds it.
    """
    return Drawn.fed("hard", power, even, newness, _positions(positions))


def focal(gamma: float = 2.0, *, even: float = 0.1, newness: float = 0.5, positions: int | None = None) -> Drawn:
    """Draw samples by the focal weight of their cross-entropy, (1 - exp(-loss)) ** gamma; else as `hard`."""
    return Drawn.fed("focal", gamma, even, newness, _positions(positions))


def importance(gain: float = 1.5, *, even: float = 0.1, newness: float = 0.5, positions: int | None = None) -> Drawn:
    """Draw samples in proportion to their loss, or a bound of their gradient's norm, with weights that undo the bias.

    Multiply losses by `batch.weights` before their mean, which is then that of all samples. Only while that is
    estimated to act as batches `gain` times as large (Katharopoulos and Fleuret 2018); else all come once, with weight
    1. `Loader.report()["feedback"]` has the gain and the effective sample size. Else as `hard`.
    """
    return Drawn.fed("importance", gain, even, newness, _positions(positions))


def _whole(given: object, least: int) -> bool:
    return isinstance(given, int | np.integer) and not isinstance(given, bool) and least <= given < 1 << 50


def _positions(positions: int | None) -> int | None:
    if positions is not None and not _whole(positions, 0):
        raise ConfigError(f"positions={positions!r}: give a number from 0 on, or leave it out")
    return positions


def _block(block: int | None) -> int | None:
    if block is not None and not (_whole(block, 1) and block <= 1 << 16):
        raise ConfigError(f"block={block!r}: give a number of positions between 1 and 65536")
    return block


def _numbers(name: str, given: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(given)
    if array.ndim != 1 or array.dtype.kind not in "fiub":
        raise ConfigError(f"{name} must be one row of numbers, not {array.dtype} of shape {array.shape}")
    return np.ascontiguousarray(array, np.float32 if array.dtype == np.float32 else np.float64)


def _classes(labels: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """Return labels as numbers from 0 without gaps."""
    array = np.asarray(labels)
    if array.dtype == object and any(label is None for label in array.ravel()):
        raise ConfigError(f"the label of id {[label is None for label in array.ravel()].index(True)} is None")
    if array.ndim != 1:
        raise ConfigError(f"labels must be one row, not of shape {array.shape}")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ConfigError(f"the label of id {np.flatnonzero(np.isnan(array))[0]} is NaN")
    whole = array.dtype.kind in "iub" and array.size > 0
    if whole and array.min() >= 0 and array.max() < 1 << 24:
        # Without sorting: of many labels that would take longest.
        there = np.bincount(array) > 0
        if there.all():
            return np.ascontiguousarray(array, np.uint32)
        return (np.cumsum(there, dtype=np.uint32) - 1)[array].astype(np.uint32)
    return np.unique(array, return_inverse=True)[1].astype(np.uint32)
