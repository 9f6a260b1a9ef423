"""`volume`: patches of N-d arrays in chunks, of several arrays where they show the same space."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tidegate import _tidegate
from tidegate._tidegate import Budget
from tidegate.errors import ConfigError
from tidegate.source import Source

__all__ = ["Boxes", "Volume", "volume"]

Lengths = Sequence[float]


class Volume(Source):
    """Patches as samples: `volume[i]` gives {name: array}; an id is a place where a patch can begin."""

    def __init__(self, volume: _tidegate.Volume) -> None:
        super().__init__(volume.source())
        self._volume = volume
        self._fields = volume.fields()

    def __getitem__(self, id: int) -> dict[str, Any]:
        sample = super().__getitem__(id)
        return {name: np.frombuffer(sample[name], _dtype(dtype)).reshape(shape) for name, dtype, shape in self._fields}

    def origin(self, id: int) -> tuple[int, ...]:
        """Return where patch `id` begins, in voxels of the first array along the axes of the patch."""
        return tuple(self._volume.origin(id))

    def boxes(
        self,
        array: str,
        *,
        ignore: Sequence[int] = (0,),
        block: int | Sequence[int] | None = None,
        force: bool = False,
        memory: str | int | float | Budget = "1GiB",
    ) -> Boxes:
        """Find where the labels of `array` are, in blocks half as wide as a patch: reads all of it, once.

        What is found is kept beside the array, or in the user's cache folder, for as long as the array's description
        stays the same; `force` looks again. `ignore` are labels that are no classes. `memory` holds a chunk for each
        thread and 56 bytes for each label of each block while it is looked for.
        """
        axes = len(self.origin(0))
        options = {
            "field": array,
            "ignore": [int(label) for label in ignore],
            "block": [block] * axes if isinstance(block, int) else block and [int(side) for side in block],
            "force": force,
        }
        budget = memory if isinstance(memory, Budget) else Budget(memory)
        return Boxes._of(self._volume.boxes(json.dumps(options), budget, os.cpu_count() or 1))

    def nearest(self, origin: Sequence[int]) -> int:
        """Return the id of the patch that begins nearest to `origin`, in voxels of the first array."""
        return self._volume.nearest([int(at) for at in origin])


class Boxes:
    """Boxes in an array, each of a class and a weight: where labels are, or where you know that something is.

    `classes` are integers, `low` and `high` the corners of the boxes in voxels, `high` not included: arrays of shape
    (boxes, axes of the patch). `weights` say how often a box comes beside others of its class. `array` is the field
    of the volume whose voxels these are, by number; the first by default.

    >>> boxes = Boxes([1, 1, 2], [[0, 0, 0], [5, 5, 5], [9, 9, 9]], [[4, 4, 4], [8, 8, 8], [12, 12, 12]])
    >>> boxes.classes
    {1: 2.0, 2: 1.0}
    """

    def __init__(
        self,
        classes: npt.ArrayLike,
        low: npt.ArrayLike,
        high: npt.ArrayLike,
        *,
        weights: npt.ArrayLike | None = None,
        array: int = 0,
    ) -> None:
        labels = np.ascontiguousarray(classes, np.int64).ravel()
        first, end = np.ascontiguousarray(low, np.int64), np.ascontiguousarray(high, np.int64)
        if first.ndim != 2 or first.shape != end.shape or len(first) != len(labels):
            raise ConfigError(
                f"{len(labels)} classes, low of shape {first.shape} and high of shape {end.shape}: give both corners "
                "of each box, as arrays of shape (boxes, axes)"
            )
        if (end <= first).any():
            raise ConfigError(f"box {int((end <= first).any(1).argmax())} has no voxels: high must be above low")
        if len(first) and (np.abs(first).max() >= 2**31 or (end - first).max() >= 2**32):
            raise ConfigError("boxes beyond voxel 2**31 cannot be drawn")
        shares = np.ones(len(labels), np.float32) if weights is None else np.ascontiguousarray(weights, np.float32)
        if shares.shape != labels.shape:
            raise ConfigError(f"{shares.size} weights for {len(labels)} boxes: give one for each")
        sizes = (end - first).astype(np.uint32)
        self._boxes = _tidegate.Boxes(labels, shares, first.astype(np.int32), sizes, array)

    @classmethod
    def _of(cls, inner: _tidegate.Boxes) -> Boxes:
        boxes = cls.__new__(cls)
        boxes._boxes = inner
        return boxes

    def __len__(self) -> int:
        return len(self._boxes)

    def __repr__(self) -> str:
        return f"Boxes({len(self)} of {len(self.classes)} classes)"

    @property
    def classes(self) -> dict[int, float]:
        """{class: sum of the weights of its boxes}: of labels the number of voxels."""
        return {label: weight for label, _, weight in self._boxes.classes()}

    def __getitem__(self, i: int) -> tuple[int, float, tuple[int, ...], tuple[int, ...]]:
        label, weight, spans = self._boxes.get(i)
        return label, weight, tuple(at for at, _ in spans), tuple(at + size for at, size in spans)


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def volume(
    url: str,
    *,
    array: str | Mapping[str, str] = "",
    patch: Sequence[int] | Mapping[str, Sequence[int]],
    scale: int | Lengths | Mapping[str, int | Lengths] | None = None,
    stride: int | Sequence[int] | None = None,
    pad: str | None = None,
) -> Volume:
    """Open arrays of a Zarr store (version 2 or 3, local or remote) as a source of patches.

    `array` is the path of an array or of an OME-NGFF image below `url`, or {field: path} for several; the first says
    where patches lie. `patch` is its shape along the last axes of the first array; axes before them are taken whole.
    The patches of the other arrays cover the same space, as the images' scales and translations say, unless `patch`
    is {field: shape}, which gives each its own around the same centre. `scale` chooses the level of an image: its
    number, or the lengths of its voxels; else it is the finest, and for other arrays the one nearest to the first's.

    `len` counts the places where a patch can begin: every `stride` voxels, by default every voxel at which those of
    all arrays begin. With `pad` ("constant", "edge" or "reflect") patches may go over the border by less than half. The
    dtype is the stored one.

    Raises DataError for what is missing or damaged, ConfigError for arrays that cannot be aligned.
    """
    paths = {"data": array} if isinstance(array, str) else dict(array)
    if not paths:
        raise ConfigError('a volume needs an array, such as array="path" or array={"name": "path"}')
    first = next(iter(paths))
    patches = dict(patch) if isinstance(patch, Mapping) else {first: patch}
    scales = dict(scale) if isinstance(scale, Mapping) else {first: scale}
    for given, what in ((patches, "patch"), (scales, "scale")):
        if unknown := set(given) - set(paths):
            raise ConfigError(f"{what} names {sorted(unknown)}, which are not among the arrays {list(paths)}")
    if first not in patches:
        raise ConfigError(f"patch needs a shape for {first!r}, the first array")
    shape = [int(side) for side in patches.pop(first)]
    options = {
        "arrays": [
            {
                "name": name,
                "path": str(path),
                "scale": _scale(scales.get(name)),
                "patch": [int(side) for side in patches[name]] if name in patches else None,
            }
            for name, path in paths.items()
        ],
        "patch": shape,
        "stride": [stride] * len(shape) if isinstance(stride, int) else stride and [int(step) for step in stride],
        "pad": pad or "none",
    }
    return Volume(_tidegate.volume(str(url), json.dumps(options)))


def _scale(scale: int | Lengths | None) -> int | list[float] | None:
    return scale if scale is None or isinstance(scale, int) else [float(length) for length in scale]
