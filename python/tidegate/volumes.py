"""`volume`: patches of N-d arrays in chunks, aligned over several arrays of the same space.

Flow: a Zarr store -> `_tidegate.volume` -> `Volume`, a source of patches; predictions -> a Zarr
array.
Memory: `boxes`, `refine` and `predictions` take budgets of their own; patches are the loader's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tidegate import _tidegate
from tidegate._tidegate import Budget
from tidegate.deprecation import renamed
from tidegate.errors import ConfigError, PatchTooLargeError
from tidegate.options import as_array, choice, integer, integers, is_row, number, numbers, refused, text
from tidegate.source import Recipe, Source, absolute, location

__all__ = ["Boxes", "Predictions", "Volume", "pyramid", "volume"]

Lengths = Sequence[float]


class Volume(Source):
    """Patches of a volume as samples; made by `volume`.

    An id is a place where a patch can begin. `volume[i]` reads patch i: {field: array}.
    """

    def __init__(self, volume: _tidegate.Volume, recipe: Recipe) -> None:
        super().__init__(volume.source(), recipe)
        self._volume = volume
        self._fields = volume.fields()

    def __getitem__(self, id: int) -> dict[str, Any]:
        sample = super().__getitem__(id)
        return {name: np.frombuffer(sample[name], _dtype(dtype)).reshape(shape) for name, dtype, shape in self._fields}

    def origin(self, id: int) -> tuple[int, ...]:
        """Return where patch `id` begins, in voxels of the first array along the patch axes."""
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
        """Find where the labels of an array are, in blocks; reads all of it once.

        The result is cached next to the array, or in the user's cache folder, until the array's
        description changes.

        Args:
            array: the field of the labels.
            ignore: labels that are no classes; by default (0,).
            block: the sides of a block in voxels, an int or one an axis; by default half a patch.
            force: computes the result again; by default False.
            memory: the budget: bytes, text, a fraction or a `Budget`; by default "1GiB". It holds
                a chunk for each thread, and 56 bytes for each label of each block.
        """
        options = {
            "field": array,
            "ignore": integers("ignore", ignore, -(2**63)),
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
        """Find where an array changes: large boxes where it is smooth, small ones where it varies.

        Blocks are joined two by two along each axis while the values of the joined block have a
        standard deviation of at most `tolerance`. The class of a box is how often it was joined.
        Drawing these classes equally often takes patches to where there is something to see. A
        coarse level of an image is enough. Reads the array once.

        Args:
            array: the field.
            tolerance: a standard deviation, in units of the values.
            block: the sides of the smallest block in voxels, an int or one an axis; by default an
                eighth of a patch.
            memory: the budget, as of `boxes`.
        """
        options = {"field": array, "tolerance": number("tolerance", tolerance, 0.0), "block": self._block(block)}
        budget = memory if isinstance(memory, Budget) else Budget(memory)
        return Boxes._of(self._volume.refine(json.dumps(options), budget))

    def _block(self, block: int | Sequence[int] | None) -> list[int] | None:
        if block is None or is_row(block):
            return None if block is None else integers("block", block, 1)
        return [integer("block", block, 1)] * len(self.origin(0))

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
        """Begin a Zarr array of a model's predictions for this volume's patches, or go on with it.

        The array has the voxels of the first array along the axes of the patch; before them
        `channels`. A chunk is written when its last patch has come. A run that was killed goes on
        with the patches that `Predictions.wanted` returns.

        Args:
            folder: where the array is, or will be.
            channels: of the predictions, an int; by default 1.
            argmax: writes the number of the greatest channel instead of the channels; by default
                False.
            dtype: of the array; by default float32, or an integer type with `argmax`.
            chunks: of the array, in voxels; by default those of the first array, or smaller ones.
            blend: the weight of a patch where several overlap: "gaussian" (default) or "linear",
                less towards its border, or "uniform".
            memory: the budget for the sums of chunks that lack patches; others wait in a file.
                Bytes, text, a fraction, or a `Budget` that the loader uses too, of which it takes
                half. By default "1GiB".
            rank: of this process, an int; by default 0.
            world_size: of the processes that predict; by default 1. Each writes its part of the
                chunks, and wants the patches that these need.
        """
        options = {
            "channels": integer("channels", channels, 1),
            "argmax": bool(argmax),
            "dtype": None if dtype is None else str(dtype),
            "chunks": None if chunks is None else integers("chunks", chunks, 1),
            "blend": blend,
            # Half of a shared budget is for the loader.
            "sums_bytes": memory.cap_bytes // 2 if isinstance(memory, Budget) else None,
            "rank": rank,
            "world_size": world_size,
        }
        budget = memory if isinstance(memory, Budget) else Budget(memory)
        patch = tuple(self._fields[0][2][-len(self.origin(0)) :])
        stitch = _tidegate.Stitch(self._volume, folder, json.dumps(options), budget)
        return Predictions(stitch, (integer("channels", channels, 1), *patch))

    def nearest(self, origin: Sequence[int]) -> int:
        """Return the id of the patch nearest to `origin`, in voxels of the first array."""
        return self._volume.nearest(integers("origin", origin, -(2**63)))


class Predictions:
    """A model's predictions for patches, blended into a Zarr array; made by `Volume.predictions`.

    A context manager: leaving it calls `close`.
    """

    def __init__(self, stitch: _tidegate.Stitch, shape: tuple[int, ...]) -> None:
        self._stitch, self._shape = stitch, shape

    def wanted(self) -> npt.NDArray[np.uint64]:
        """Return the ids of the patches that chunks still lack, ascending: a `sampler=`."""
        return self._stitch.wanted()

    def add(self, ids: npt.ArrayLike, predictions: npt.ArrayLike) -> None:
        """Add the predictions of patches; a patch that is added twice counts once.

        Args:
            ids: `batch.ids`.
            predictions: of shape (patches, channels, *patch); with one channel also (patches,
                *patch).

        Raises ConfigError for another shape, and BudgetError where the budget cannot hold the sums
        of one chunk.
        """
        numbers = as_array("predictions", predictions, np.float32)
        which = as_array("ids", ids, np.uint64, "ids of patches").ravel()
        shapes = [(len(which), *self._shape)]
        if self._shape[0] == 1:
            shapes.append((len(which), *self._shape[1:]))
        if numbers.shape not in shapes:
            raise ConfigError(f"predictions of shape {numbers.shape} for {len(which)} patches: expected {shapes[0]}")
        self._stitch.add(which, numbers.ravel())

    @property
    def remaining_chunks(self) -> int:
        """The number of chunks that are not written yet."""
        return self._stitch.state()[0]

    @property
    def left(self) -> int:
        """The old name of `remaining_chunks`."""
        renamed("Predictions.left", "Predictions.remaining_chunks")
        return self.remaining_chunks

    def close(self) -> None:
        """Free the memory. Chunks that lack patches stay unwritten, and wanted."""
        self._stitch.close()

    def __enter__(self) -> Predictions:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        left, lacking, here = self._stitch.state()
        return f"Predictions({left} chunks left, {lacking} lack patches, {here} of them in memory)"


class Boxes:
    """Boxes in an array, each with a class and a weight: where labels are, or where you know them.

    `len(boxes)` is their number; `boxes[i]` is (class, weight, low, high).

    Args:
        classes: an integer for each box.
        low: the first corner of each box in voxels, shape (boxes, axes of the patch).
        high: the corner after the last voxel, same shape.
        weights: how often a box is drawn, relative to others of its class; by default 1.
        array: the number of the field of the volume whose voxels these are; by default 0, the
            first.

    Raises ConfigError for boxes without voxels, and for shapes that do not fit.

    >>> low, high = [[0, 0, 0], [5, 5, 5], [9, 9, 9]], [[4, 4, 4], [8, 8, 8], [12, 12, 12]]
    >>> boxes = Boxes([1, 1, 2], low, high)
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
        labels = as_array("classes", classes, np.int64).ravel()
        first, end = as_array("low", low, np.int64), as_array("high", high, np.int64)
        if first.ndim != 2 or first.shape != end.shape or len(first) != len(labels):
            raise ConfigError(
                f"{len(labels)} classes, low of shape {first.shape} and high of shape {end.shape}: give both corners "
                "of each box, as arrays of shape (boxes, axes)"
            )
        if (end <= first).any():
            raise ConfigError(f"box {int((end <= first).any(1).argmax())} has no voxels: high must be above low")
        if len(first) and (np.abs(first).max() >= 2**31 or (end - first).max() >= 2**32):
            raise ConfigError("boxes must be below voxel 2**31")
        shares = np.ones(len(labels), np.float32) if weights is None else as_array("weights", weights, np.float32)
        if shares.shape != labels.shape:
            raise ConfigError(f"{shares.size} weights for {len(labels)} boxes: give one for each")
        sizes = (end - first).astype(np.uint32)
        self._boxes = _tidegate.Boxes(labels, shares, first.astype(np.int32), sizes, integer("array", array, 0))

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
        """{class: sum of the weights of its boxes}; for labels, the number of voxels."""
        return {label: weight for label, _, weight in self._boxes.classes()}

    def __getitem__(self, i: int) -> tuple[int, float, tuple[int, ...], tuple[int, ...]]:
        label, weight, spans = self._boxes.get(i)
        return label, weight, tuple(at for at, _ in spans), tuple(at + size for at, size in spans)


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def volume(
    url: str | os.PathLike[str],
    *,
    array: str | Mapping[str, str] = "",
    patch: Sequence[int] | Mapping[str, Sequence[int]],
    scale: int | Lengths | Mapping[str, int | Lengths] | None = None,
    stride: int | Sequence[int] | None = None,
    pad: str | None = None,
    missing: Literal["fill", "error"] = "fill",
) -> Volume:
    """Open arrays of a Zarr store (version 2 or 3, local or remote) as a source of patches.

    `len(volume)` is the number of places where a patch can begin. Patches have the stored dtype.

    Args:
        url: a local path or a URL of an object store.
        array: the path of an array or of an OME-NGFF image below `url`, or {field: path} for
            several arrays of the same space; by default "", the store itself. The first one says
            where patches begin.
        patch: the shape of a patch along the last axes of the first array; axes before them are
            taken whole. Patches of the other arrays cover the same space, as scales and
            translations of the images say. {field: shape} gives an array a patch of its own around
            the same centre.
        scale: the level of an image: its number, or the lengths of its voxels, or {field: either}.
            By default the finest level, and for other arrays the one nearest to the first's.
        stride: voxels between places where a patch begins, an int or one an axis; by default every
            voxel at which the patches of all arrays begin.
        pad: "constant", "edge" or "reflect": patches may extend over the border by less than half.
            By default they may not.
        missing: what a chunk is that is not stored: "fill" (default), the array's fill value, or
            "error", which fails the patches that need it. The report counts both.

    Raises DataError for arrays that are missing or damaged, ConfigError for arrays that cannot be
    aligned, PatchTooLargeError for a patch with more voxels than its array.
    """
    if not isinstance(array, str | Mapping):
        raise refused("array", array, "the path of an array, or {field: path}")
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
    shape = integers("patch", patches.pop(first), 1)
    options = {
        "arrays": [
            {
                "name": text("array", name),
                "path": text("array", str(path)),
                "scale": _scale(scales.get(name)),
                "patch": integers("patch", patches[name], 1) if name in patches else None,
            }
            for name, path in paths.items()
        ],
        "patch": shape,
        "stride": _stride(stride, len(shape)),
        "pad": "none" if pad is None else choice("pad", pad, ["constant", "edge", "reflect"]),
        "missing": choice("missing", missing, ["fill", "error"]),
    }
    return _volume(location(url), json.dumps(options))


def _volume(where: str, options: str) -> Volume:
    return Volume(_tidegate.volume(where, options), Recipe(_volume, (absolute(where), options)))


def pyramid(url: str | os.PathLike[str], *, array: str = "", patch: Sequence[int], **options: Any) -> list[Volume]:
    """Open all levels of an OME-NGFF image, the coarsest first, each as a volume of equal patches.

    For training that begins with what is coarse: one epoch of each, or `samplers.patches` of each
    for some epochs. Levels smaller than the patch are left out, unless `pad` says what is beyond
    them.

    Args:
        url: as of `volume`.
        array: the path of the image below `url`; by default "".
        patch: the shape of a patch.
        options: others of `volume`.

    Raises DataError where there is no image, PatchTooLargeError where all levels are smaller than
    the patch.
    """
    levels = []
    for level in reversed(range(len(_tidegate.levels(location(url), text("array", array))))):
        try:
            levels.append(volume(url, array=array, patch=patch, scale=level, **options))
        except PatchTooLargeError:
            if level == 0:
                raise
    return levels


def _stride(stride: int | Sequence[int] | None, axes: int) -> list[int] | None:
    if stride is None:
        return None
    return integers("stride", stride, 1) if is_row(stride) else [integer("stride", stride, 1)] * axes


def _scale(scale: int | Lengths | None) -> int | list[float] | None:
    if scale is None:
        return None
    if is_row(scale):
        return numbers("scale", scale, len(scale), "the lengths of voxels")
    return integer("scale", scale, 0)
