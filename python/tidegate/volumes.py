"""`volume`: patches of N-d arrays in chunks, of several arrays where they show the same space."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tidegate import _tidegate
from tidegate._tidegate import Budget
from tidegate.errors import ConfigError
from tidegate.source import Source

__all__ = ["Boxes", "Predictions", "Volume", "pyramid", "volume"]

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
        options = {
            "field": array,
            "ignore": [int(label) for label in ignore],
            "block": self._block(block),
            "force": force,
        }
        budget = memory if isinstance(memory, Budget) else Budget(memory)
        return Boxes._of(self._volume.boxes(json.dumps(options), budget, os.cpu_count() or 1))

    def refine(
        self,
        array: str,
        *,
        tolerance: float,
        block: int | Sequence[int] | None = None,
        memory: str | int | float | Budget = "1GiB",
    ) -> Boxes:
        """Find where `array` changes, from reading it once: large boxes where it is smooth, small where it varies.

        Blocks (an eighth of a patch) are joined two by two along each axis, as long as the values of what they make
        have a standard deviation of at most `tolerance`; the class of a box is how often it was joined. Classes that
        come equally often bring patches to where there is something to see. A coarse level of an image is enough.
        """
        options = {"field": array, "tolerance": float(tolerance), "block": self._block(block)}
        budget = memory if isinstance(memory, Budget) else Budget(memory)
        return Boxes._of(self._volume.refine(json.dumps(options), budget))

    def _block(self, block: int | Sequence[int] | None) -> list[int] | None:
        if isinstance(block, int):
            return [block] * len(self.origin(0))
        return None if block is None else [int(side) for side in block]

    def predictions(
        self,
        folder: str | os.PathLike[str],
        *,
        channels: int = 1,
        argmax: bool = False,
        dtype: str | None = None,
        chunks: Sequence[int] | None = None,
        blend: Literal["gaussian", "linear", "uniform"] = "gaussian",
        memory: str | int | float | Budget = "1GiB",
        rank: int = 0,
        world_size: int = 1,
    ) -> Predictions:
        """Begin a Zarr array of what a model says of this volume's patches, or go on with it.

        The array lies in `folder` and has the first array's voxels along the axes of the patch; before them `channels`,
        or with `argmax` the number of the largest instead. `blend` says how much a patch counts where several overlap:
        less towards its border, or everywhere alike. A chunk is written when its last patch has come, so that a run
        that was killed goes on with those that `Predictions.wanted` names. `memory` (a size, or half of
        a budget that the loader has too) holds the sums of chunks that lack patches; others wait in a file.

        Of `world_size` processes each writes its part of the chunks, and wants the patches that these need.
        """
        options = {
            "channels": int(channels),
            "argmax": bool(argmax),
            "dtype": dtype and str(dtype),
            "chunks": chunks and [int(side) for side in chunks],
            "blend": blend,
            # Of a budget that others have too, half is theirs.
            "sums_bytes": memory.cap_bytes // 2 if isinstance(memory, Budget) else None,
            "rank": rank,
            "world_size": world_size,
        }
        budget = memory if isinstance(memory, Budget) else Budget(memory)
        patch = tuple(self._fields[0][2][-len(self.origin(0)) :])
        stitch = _tidegate.Stitch(self._volume, folder, json.dumps(options), budget)
        return Predictions(stitch, (int(channels), *patch))

    def nearest(self, origin: Sequence[int]) -> int:
        """Return the id of the patch that begins nearest to `origin`, in voxels of the first array."""
        return self._volume.nearest([int(at) for at in origin])


class Predictions:
    """What a model says of patches, blended into a Zarr array; made by `Volume.predictions`. A context manager."""

    def __init__(self, stitch: _tidegate.Stitch, shape: tuple[int, ...]) -> None:
        self._stitch, self._shape = stitch, shape

    def wanted(self) -> npt.NDArray[np.uint64]:
        """Return the ids of the patches that chunks still lack, ascending: a sampler for the loader."""
        return self._stitch.wanted()

    def add(self, ids: npt.ArrayLike, predictions: npt.ArrayLike) -> None:
        """Add the predictions of patches, of shape (patches, channels, *patch), or without channels where there is one.

        `ids` are those of a batch. A patch that came before counts once. Raises ConfigError for predictions of another
        size, and where the budget has no room for the sums of one chunk.
        """
        numbers = np.ascontiguousarray(predictions, np.float32)
        which = np.ascontiguousarray(ids, np.uint64).ravel()
        shapes = [(len(which), *self._shape)]
        if self._shape[0] == 1:
            shapes.append((len(which), *self._shape[1:]))
        if numbers.shape not in shapes:
            raise ConfigError(f"predictions of shape {numbers.shape} for {len(which)} patches: expected {shapes[0]}")
        self._stitch.add(which, numbers.ravel())

    @property
    def left(self) -> int:
        """Chunks that are still to be written."""
        return self._stitch.state()[0]

    def close(self) -> None:
        """Let go of the memory; chunks that lack patches are not written, and their patches wanted again."""
        self._stitch.close()

    def __enter__(self) -> Predictions:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        left, lacking, here = self._stitch.state()
        return f"Predictions({left} chunks left, {lacking} lack patches, {here} of them in memory)"


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


def pyramid(url: str, *, array: str = "", patch: Sequence[int], **options: Any) -> list[Volume]:
    """Open all levels of an OME-NGFF image, from the coarsest to the finest, each as a volume of patches of one shape.

    For training that begins with what is coarse: an epoch of each, or `samplers.patches` of each for some epochs.
    `options` are those of `volume`. Levels smaller than the patch are left out, unless `pad` says what is beyond them.

    Raises DataError where there is no image, ConfigError where all levels are smaller than the patch.
    """
    levels = []
    for level in reversed(range(len(_tidegate.levels(str(url), array)))):
        try:
            levels.append(volume(url, array=array, patch=patch, scale=level, **options))
        except ConfigError as error:
            if level == 0 or "fewer than the patch" not in str(error):
                raise
    return levels


def _scale(scale: int | Lengths | None) -> int | list[float] | None:
    return scale if scale is None or isinstance(scale, int) else [float(length) for length in scale]
