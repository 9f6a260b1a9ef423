"""What is wanted of a field: `Image`, `Patch`, `Mask`, `Int`, `Float`, `Text`, `Bytes`, `Json`, `Array`; `Window`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tidegate.errors import ConfigError

__all__ = ["Array", "Bytes", "Field", "Float", "Image", "Int", "Json", "Mask", "Patch", "Text", "Window"]


class Field:
    """The base of all field specs."""

    def spec(self) -> dict[str, Any]:
        """Return the spec as the Rust side reads it."""
        return {"kind": type(self).__name__.lower()}


def _size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


@dataclass(frozen=True)
class Image(Field):
    """Pixels of an encoded image, RGB.

    `size` is a side or (height, width) in pixels; None keeps every picture as it is (a ragged column). `crop` is
    "random" (RandomResizedCrop over `scale` and `ratio`), "center" or None (the whole picture). `flip` mirrors half of
    the samples. `jitter` is a dict of `brightness`, `contrast`, `saturation` and `hue`, as torchvision's ColorJitter.
    Float dtypes are x / 255, then (x - `mean`) / `std`. With `draft`, as in Pillow, JPEGs are decoded at a half, a
    quarter or an eighth of their size where the crop still covers the target: faster for large photographs, and not
    the same pixels. With `load_truncated`, JPEGs that end too early are gray from there on, as libjpeg-turbo has them
    (but for its smoothing of progressive ones), and counted in the report.

    >>> Image(224, crop="random", flip=True).spec()["size"]
    (224, 224)
    """

    size: int | tuple[int, int] | None = None
    crop: Literal["random", "center"] | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool | float = False
    jitter: dict[str, float] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    dtype: str = "uint8"
    layout: Literal["CHW", "HWC"] = "CHW"
    draft: bool = False
    load_truncated: bool = False

    def spec(self) -> dict[str, Any]:
        """Return the spec as the Rust side reads it."""
        flip = 0.5 if self.flip is True else float(self.flip)
        pixels = {
            "dtype": str(self.dtype),
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
            "layout": self.layout,
        }
        return {
            "kind": "image",
            "size": _size(self.size),
            "crop": self.crop or "none",
            "scale": self.scale,
            "ratio": self.ratio,
            "flip": flip,
            "jitter": self.jitter,
            "draft": self.draft,
            "load_truncated": self.load_truncated,
            "pixels": pixels,
        }


@dataclass(frozen=True)
class Mask(Field):
    """Labels of pixels (uint8), cropped and mirrored as the image field `of`, resized to the nearest value.

    Where `of` is a `Patch`, labels of voxels in their stored dtype, each from where the patch's voxel comes from; they
    may have another resolution. `size` stays None.

    >>> Mask("jpg").spec()
    {'kind': 'mask', 'of': 'jpg', 'size': None}
    """

    of: str
    size: int | tuple[int, int] | None = None

    def spec(self) -> dict[str, Any]:
        """Return the spec as the Rust side reads it."""
        return {"kind": "mask", "of": self.of, "size": _size(self.size)}


Axes = Sequence[int]
Range = tuple[float, float]


@dataclass(frozen=True)
class Patch(Field):
    """A patch of a volume: cut, mirrored, turned and deformed, its values changed, in the stored dtype or another.

    Geometry, in voxels and along the axes of the patch (0 is the first; at most three): `crop` delivers the middle, so
    that what is turned or deformed into it was there; `flip` mirrors each of its axes for half of the samples, all with
    True; `rotate` turns its axes into one another by quarters, all rotations alike; `elastic` is (spacing, deviation):
    displacements of that standard deviation at points so many voxels apart, between them cubic B-splines, between
    voxels linear; either may be one number an axis. A `Mask` or `Patch` with `of` has the geometry of that field.

    Values, in this order: x - `mean` over `std` (a number, or one a channel), then drawn evenly from (low, high): the
    standard deviations of Gaussian `noise` and of a `blur` in voxels, a factor of `intensity`, of `contrast` about the
    mean (cut off at what the values were), and an exponent `gamma` between the least and the largest value; statistics
    are those of each channel of the patch. At last `wavelet`, such as ("haar", 2) or ("cdf53", 1), delivers what is
    coarse after so many levels: sides are halved as often, values stay on their scale. All of it is reckoned in
    float32, and rounded and cut off where the dtype is an integer. `p` is how often each happens, one number or
    {name: number}.

    >>> Patch(dtype="float32", std=255, flip=True, gamma=(0.7, 1.5), p={"gamma": 0.3}).spec()["intensity"]["gamma"]
    {'low': 0.7, 'high': 1.5, 'p': 0.3}
    """

    of: str | None = None
    dtype: str | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    crop: Sequence[int] | None = None
    flip: bool | Axes = False
    rotate: bool | Axes = False
    elastic: tuple[float | Sequence[float], float | Sequence[float]] | None = None
    noise: Range | None = None
    blur: Range | None = None
    intensity: Range | None = None
    contrast: Range | None = None
    gamma: Range | None = None
    wavelet: tuple[Literal["haar", "cdf53"], int] | None = None
    p: float | Mapping[str, float] = 1.0

    def spec(self) -> dict[str, Any]:
        """Return the spec as the Rust side reads it."""
        ranges = {name: getattr(self, name) for name in ("noise", "blur", "intensity", "contrast", "gamma")}
        if isinstance(self.p, Mapping) and (unknown := set(self.p) - {*ranges, "elastic"}):
            raise ConfigError(f"p names {sorted(unknown)}; known are elastic, {', '.join(ranges)}")

        def chance(name: str) -> float:
            return float(self.p.get(name, 1.0) if isinstance(self.p, Mapping) else self.p)

        def drawn(name: str, limits: Range | None) -> dict[str, float] | None:
            if limits is None:
                return None
            low, high = _pair(name, limits)
            return {"low": float(low), "high": float(high), "p": chance(name)}

        elastic = None
        if self.elastic is not None:
            spacing, deviation = (_numbers(x) for x in _pair("elastic", self.elastic))
            elastic = {"spacing": spacing, "deviation": deviation, "p": chance("elastic")}
        geometry = {
            "crop": None if self.crop is None else [int(side) for side in self.crop],
            "flip": _axes(self.flip),
            "rotate": _axes(self.rotate),
            "elastic": elastic,
        }
        values = {name: drawn(name, limits) for name, limits in ranges.items()}
        wavelet = self.wavelet and dict(zip(("kind", "levels"), _pair("wavelet", self.wavelet), strict=True))
        return {
            "kind": "patch",
            "of": self.of,
            "geometry": geometry,
            "dtype": self.dtype and str(self.dtype),
            "intensity": {"mean": _numbers(self.mean), "std": _numbers(self.std), **values},
            "wavelet": wavelet,
        }


def _pair(name: str, given: Any) -> tuple[Any, Any]:
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2:
        return given[0], given[1]
    raise ConfigError(f"{name}={given!r}: expected two values, such as {name}=(0.5, 1.5)")


def _axes(axes: bool | Axes) -> bool | list[int]:
    if isinstance(axes, bool):
        return axes
    if any(int(axis) < 0 for axis in axes):
        raise ConfigError(f"{list(axes)}: axes of a patch are counted from 0")
    return [int(axis) for axis in axes]


def _numbers(given: float | Sequence[float] | None) -> list[float]:
    """Return one number, or one for each axis or channel."""
    if given is None:
        return []
    return [float(x) for x in given] if isinstance(given, Sequence) else [float(given)]


class Int(Field):
    """An int64."""


class Float(Field):
    """A float64."""


class Text(Field):
    """UTF-8 text; a `Ragged` column of str."""


class Bytes(Field):
    """Bytes as stored; a `Ragged` column of bytes."""


class Json(Field):
    """A JSON document; a `Ragged` column of str."""


@dataclass(frozen=True)
class Array(Field):
    """An array of a fixed dtype and shape; without a shape a `Ragged` column.

    >>> Array("float32", (3, 4)).spec()
    {'kind': 'array', 'dtype': 'float32', 'shape': [3, 4]}
    """

    dtype: str
    shape: Sequence[int] | None = None

    def spec(self) -> dict[str, Any]:
        """Return the spec as the Rust side reads it."""
        return {"kind": "array", "dtype": str(self.dtype), "shape": None if self.shape is None else list(self.shape)}


@dataclass(frozen=True)
class Window:
    """A shuffle within windows of `samples`, drawn from `canonical_nodes` places of the data at a time.

    Where the number of ranks divides `canonical_nodes`, and that the global batch, each rank has places of its own.
    With `ranges` not whole shards come in random order but ranges of so many samples: batches mix better, and each
    range is a read of its own; `tidegate shuffle-quality` has figures.

    >>> Window(4096, ranges=100)
    Window(samples=4096, canonical_nodes=1, ranges=100)
    """

    samples: int
    canonical_nodes: int = 1
    ranges: int = 0


def specs(fields: Mapping[str, Field] | Sequence[str] | None, schema: dict[str, str]) -> tuple[list[Any], bool]:
    """Return fields as the Rust side reads them, and whether the others are left out."""
    if fields is None:
        return [], False
    if isinstance(fields, str):
        raise ConfigError(f"fields={fields!r}: give a list of names")
    if isinstance(fields, Mapping):
        for name, spec in fields.items():
            if not isinstance(spec, Field):
                raise ConfigError(f"field {name!r}: expected a spec such as tg.Image(224), not {spec!r}")
        return [(name, spec.spec()) for name, spec in fields.items()], False
    unknown = [name for name in fields if name not in schema]
    if unknown:
        raise ConfigError(f"there is no field {unknown[0]!r}; the fields are {', '.join(schema)}")
    specs: list[Any] = []
    for name in fields:
        kind = schema[name]
        if kind in ("image", "pixels"):
            specs.append((name, Image().spec()))
        elif kind in ("bytes", "text", "json", "int", "float"):
            specs.append((name, {"kind": kind}))
        else:
            # An array of one kind or another, as it is stored.
            specs.append((name, {"kind": "array", "dtype": None, "shape": None}))
    return specs, True
