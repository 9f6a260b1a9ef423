"""Samplers that are functions of (seed, epoch, position): they resume by a seek and need no list.

Give one as `sampler=` to a `Loader`, whose `seed` it uses. Ids may repeat. The cache knows this
epoch and the next (Belady's rule). Tables are charged to the budget: 8 bytes a sample for weights,
4 for difficulties, 4 for labels (12 in classes of fewer than 65,536 samples), and 576 a class.

>>> import numpy as np
>>> import tidegate as tg
>>> from tidegate import samplers
>>> labels, sampler = np.arange(1000) % 10 == 0, samplers.balanced(np.arange(1000) % 10 == 0)
>>> loader = tg.Loader(tg.synthetic(1000, 8), batch_size=20, memory="16MiB", sampler=sampler)
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
from tidegate.options import as_array, choice, integer, integers, listed, number, refused
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
    """Draw samples evenly, with replacement.

    Args:
        positions: ids in an epoch, an int; by default the number of samples.

    >>> import tidegate as tg
    >>> sampler = replacement(1000)
    >>> len(tg.Loader(tg.synthetic(100, 8), batch_size=10, memory="16MiB", sampler=sampler))
    100
    """
    return Drawn.even(_positions(positions))


def weighted(weights: npt.ArrayLike, positions: int | None = None) -> Drawn:
    """Draw samples by weight, with replacement, as torch's WeightedRandomSampler does.

    The number of samples may exceed 2**24, torch's limit.

    Args:
        weights: one for each sample, finite and not negative, of any sum. float32 and float64 are
            read in place, without a copy.
        positions: ids in an epoch, an int; by default the number of samples.

    >>> import tidegate as tg
    >>> sampler = weighted([0, 1, 0], 100)
    >>> loader = tg.Loader(tg.synthetic(3, 8), batch_size=100, memory="16MiB", sampler=sampler)
    >>> {int(id) for batch in loader for id in batch.ids}
    {1}
    """
    return Drawn.weighted(_numbers("weights", weights), _positions(positions))


def stratified(labels: npt.ArrayLike, *, block: int | None = None) -> Drawn:
    """Give every sample once, with each class's exact share in every block of positions.

    Where the share of a class in a block is not an integer, it is off by a few at most; which
    small classes a batch has differs from batch to batch.

    Args:
        labels: one for each sample, of any type that can be sorted.
        block: positions in a block, 1 to 65,536; by default a global batch. A saved state goes on
            only with the same block.

    >>> import tidegate as tg
    >>> sampler = stratified(["a"] * 75 + ["b"] * 25)
    >>> loader = tg.Loader(tg.synthetic(100, 8), batch_size=20, memory="16MiB", sampler=sampler)
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
    """Draw classes equally often, in every block of positions.

    Args:
        labels: one for each sample, of any type that can be sorted.
        how: "over" (default): an epoch has as many samples of each class as the largest class has;
            those of smaller classes repeat equally often. "under": as many as the smallest class
            has, other ones in each epoch. "effective": by the effective number of samples, between
            the given shares and equal ones (Cui et al. 2019).
        beta: for "effective": 0 keeps the given shares, near 1 makes them equal; by default
            0.9999.
        positions: for "effective": ids in an epoch; by default the number of samples.
        block: positions in a block, 1 to 65,536; by default a global batch.

    >>> import tidegate as tg
    >>> sampler = balanced(["a"] * 90 + ["b"] * 10)
    >>> loader = tg.Loader(tg.synthetic(100, 8), batch_size=20, memory="16MiB", sampler=sampler)
    >>> sum(batch.rows for batch in loader)
    180
    """
    choice("how", how, ("over", "under", "effective"))
    if positions is not None and how != "effective":
        raise ConfigError(f"positions={positions} with how={how!r}: only an epoch of 'effective' can be of any length")
    beta = number("beta", beta, 0.0, 1.0)
    return Drawn.classes(_classes(labels), how, beta, _positions(positions), _block(block))


def mixture(
    sizes: Sequence[int],
    proportions: Sequence[float],
    until: Literal["first", "all"] | int = "first",
    *,
    block: int | None = None,
) -> Drawn:
    """Mix sources in exact proportions; each source goes on where it was in the last epoch.

    Args:
        sizes: samples of each source; in the dataset they follow one another in this order.
        proportions: one for each source, of any sum.
        until: an epoch ends when the "first" source (default) has been given once, when "all"
            have, or after this many positions.
        block: positions in which the proportions are exact, 1 to 65,536; by default a global
            batch.

    >>> import tidegate as tg
    >>> sampler = mixture([60, 40], [3, 1])
    >>> loader = tg.Loader(tg.synthetic(100, 8), batch_size=8, memory="16MiB", sampler=sampler)
    >>> [int((batch.ids < 60).sum()) for batch in loader]
    [6, 6, 6, 6, 6, 6, 6, 6, 6, 6]
    """
    if not _whole(until, 0):
        until = choice("until", until, ("first", "all"))  # type: ignore[assignment]
    shares = [float(p) for p in _numbers("proportions", listed(proportions))]
    return Drawn.mixture(integers("sizes", sizes, 0), shares, until, _block(block))


def patches(
    volume: Volume,
    positions: int,
    *,
    boxes: Boxes | None = None,
    classes: Sequence[int] | Mapping[int, float] | None = None,
    window: int | None = None,
    places: int = 8,
) -> Drawn:
    """Draw patches of a volume, with replacement: evenly, or around boxes by class.

    The loader's report says how much a `window` worsens the mixing of batches.

    Args:
        volume: the loader's source.
        positions: patches in an epoch, an int, at least 1.
        boxes: where classes are: from `Volume.boxes`, or `Boxes` that you know. Each patch
            contains the box it is drawn for, or is inside it; boxes of a class are drawn by their
            weights. By default patches are drawn evenly over the volume.
        classes: the classes to draw, equally often, or {class: weight}; by default all.
        window: sorts every `window` positions so that patches near one another follow one another
            and share chunks; an int, by default not sorted.
        places: regions of the window that are visited at once, an int, by default 8. More mix
            batches better and need a larger cache.

    Raises ConfigError for `classes` without `boxes`.
    """
    if classes is not None and boxes is None:
        raise ConfigError('classes without boxes: give boxes=volume.boxes("labels"), which say where classes are')
    named = () if classes is None else classes
    shares = named if isinstance(named, Mapping) else dict.fromkeys(named, 1.0)
    weights = [(integer("classes", label, -(2**63)), number("classes", share, 0.0)) for label, share in shares.items()]
    if not _whole(positions, 1):
        raise ConfigError(f"positions={positions!r}: give an int, at least 1")
    near = None if window is None else (integer("window", window, 1), integer("places", places, 1))
    return Drawn.patches(volume._volume, None if boxes is None else boxes._boxes, weights, positions, near)


def curriculum(
    difficulty: npt.ArrayLike,
    *,
    epochs: float,
    start: float = 0.2,
    pace: Literal["linear", "root"] | int = "linear",
    positions: int | None = None,
) -> Drawn:
    """Draw from the easiest samples first, with replacement, then from more and more of them.

    Args:
        difficulty: one for each sample, such as a loss or a length; finite or infinite.
        epochs: after this many epochs all samples are drawn; a float.
        start: the fraction of samples at the beginning; by default 0.2.
        pace: "linear" (default), "root" (faster at first; Platanios et al. 2019), or a number of
            equal steps.
        positions: ids in an epoch, an int; by default the number of samples.

    >>> import tidegate as tg
    >>> sampler = curriculum(range(100), epochs=4)
    >>> loader = tg.Loader(tg.synthetic(100, 8), batch_size=10, memory="16MiB", sampler=sampler)
    >>> int(next(iter(loader)).ids.max()) < 25
    True
    """
    if not _whole(pace, 1):
        pace = choice("pace", pace, ("linear", "root"))  # type: ignore[assignment]
    start, epochs = number("start", start, 0.0, 1.0), number("epochs", epochs, 0.0)
    return Drawn.curriculum(
        _numbers("difficulty", difficulty).astype(np.float64), start, epochs, pace, _positions(positions)
    )


def hard(power: float = 1.0, *, even: float = 0.1, newness: float = 0.5, positions: int | None = None) -> Drawn:
    """Draw samples in proportion to a power of their loss: online hard-example mining.

    `Loader.feedback` reports losses; they count from the next epoch on. Until the first one, an
    epoch gives every sample once. Losses and tables take 28 bytes a sample of the budget. A saved
    state names the losses by a hash; `Loader.feedback_state` returns them.

    Args:
        power: 0 draws evenly, 1 (default) in proportion to the loss.
        even: the fraction that is drawn evenly, so that every sample is seen again; by default
            0.1.
        newness: the weight of a sample's new loss against the mean of its former ones, 0 to 1; 1
            forgets them. By default 0.5.
        positions: ids in an epoch, an int; by default the number of samples.
    """
    return _fed("hard", "power", power, even, newness, positions)


def focal(gamma: float = 2.0, *, even: float = 0.1, newness: float = 0.5, positions: int | None = None) -> Drawn:
    """Draw samples by the focal weight of their cross-entropy, (1 - exp(-loss)) ** gamma.

    Args:
        gamma: by default 2.
        even: as of `hard`.
        newness: as of `hard`.
        positions: as of `hard`.
    """
    return _fed("focal", "gamma", gamma, even, newness, positions)


def importance(gain: float = 1.5, *, even: float = 0.1, newness: float = 0.5, positions: int | None = None) -> Drawn:
    """Draw samples in proportion to their loss, with weights that undo the bias.

    Multiply losses by `batch.weights` before you take their mean, which then estimates the mean
    over all samples. Instead of losses, `Loader.feedback` may be given bounds of the gradients'
    norms. `Loader.report()["feedback"]` has the estimated gain and the effective sample size.

    Args:
        gain: importance sampling is used only while it is estimated to reduce gradient variance as
            much as a batch `gain` times larger would (Katharopoulos and Fleuret 2018). Otherwise
            an epoch gives every sample once, with weight 1. By default 1.5.
        even: as of `hard`.
        newness: as of `hard`.
        positions: as of `hard`.
    """
    return _fed("importance", "gain", gain, even, newness, positions)


def _fed(rule: str, name: str, strength: float, even: float, newness: float, positions: int | None) -> Drawn:
    """Return a sampler that learns from losses."""
    rest = number("even", even, 0.0, 1.0), number("newness", newness, 0.0, 1.0)
    return Drawn.fed(rule, number(name, strength, 0.0), *rest, _positions(positions))


def _whole(given: object, least: int) -> bool:
    return isinstance(given, int | np.integer) and not isinstance(given, bool) and least <= int(given) < 1 << 50


def _positions(positions: int | None) -> int | None:
    if positions is not None and not _whole(positions, 0):
        raise ConfigError(f"positions={positions!r}: give an int from 0 on, or leave it out")
    return positions


def _block(block: int | None) -> int | None:
    if block is not None and not (_whole(block, 1) and block <= 1 << 16):
        raise ConfigError(f"block={block!r}: give a number of positions between 1 and 65536")
    return block


def _numbers(name: str, given: npt.ArrayLike) -> npt.NDArray[Any]:
    row = as_array(name, given)
    if row.ndim != 1 or row.dtype.kind not in "fiub":
        raise ConfigError(f"{name} must be one row of numbers, not {row.dtype} of shape {row.shape}")
    return np.ascontiguousarray(row, np.float32 if row.dtype == np.float32 else np.float64)


def _classes(labels: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """Return labels as integers from 0 without gaps."""
    row = as_array("labels", labels)
    if row.dtype == object and any(label is None for label in row.ravel()):
        raise ConfigError(f"the label of id {[label is None for label in row.ravel()].index(True)} is None")
    if row.ndim != 1:
        raise ConfigError(f"labels must be one row, not of shape {row.shape}")
    if row.dtype.kind == "f" and np.isnan(row).any():
        raise ConfigError(f"the label of id {np.flatnonzero(np.isnan(row))[0]} is NaN")
    whole = row.dtype.kind in "iub" and row.size > 0
    if whole and row.min() >= 0 and row.max() < 1 << 24:
        # Without a sort, which takes longest where there are many labels.
        there = np.bincount(row) > 0
        if there.all():
            return np.ascontiguousarray(row, np.uint32)
        dense: npt.NDArray[np.uint32] = (np.cumsum(there, dtype=np.uint32) - 1)[row].astype(np.uint32)
        return dense
    try:
        ranked: npt.NDArray[np.intp] = np.unique(row, return_inverse=True)[1]
    except TypeError:
        raise refused("labels", labels, "labels that can be sorted, such as ints or text") from None
    return ranked.astype(np.uint32)
