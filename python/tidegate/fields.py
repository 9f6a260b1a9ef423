"""What a loader makes of each field: `Image`, `Mask`, `Patch`, `Int` and so on; and `Window`.

Flow: dataclasses -> dicts -> JSON -> `tidegate::Options`.
Memory: holds none.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tidegate.deprecation import renamed
from tidegate.errors import ConfigError
from tidegate.options import choice, dtype_name, flag, integer, integers, is_row, nearest, number, numbers, refused

__all__ = ["Array", "Bytes", "Field", "Float", "Image", "Int", "Json", "Mask", "Patch", "Text", "Window"]


DTYPES = (
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
)


class Field:
    """The base class of all field specs.

    A field that some samples lack needs one of two parameters, which all specs but `Patch` have:
    `default` is what these samples get instead, and `optional=True` adds a bool column
    `NAME.valid` that says which samples have the field. Without a default they get zeros, and an
    empty row in a `Ragged` column.
    """

    def __post_init__(self) -> None:
        """Check what was given, so that an error names the option where it is written."""
        self.spec()

    def spec(self) -> dict[str, Any]:
        """Return the spec as the loader's options have it."""
        return {"kind": type(self).__name__.lower()}

    def row(self) -> str:
        """Return what a row is, in a word or two: what `repr(loader)` shows."""
        return type(self).__name__.lower()


def _lacking(spec: dict[str, Any], default: bytes | None, optional: bool) -> dict[str, Any]:
    """Return a spec for a field that some samples lack; `default` is the row that they get."""
    optional = flag("optional", optional)
    if default is None and not optional:
        return spec
    row = None if default is None else list(default)
    return {"kind": "optional", "of": spec, "default": row, "valid": optional}


def _zeros(default: Any) -> bytes | None:
    """Return the default of a field whose only default is "zeros"."""
    if default is not None:
        choice("default", default, ("zeros",))
    return None if default is None else b""


def _size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if isinstance(size, list | tuple) or (hasattr(size, "shape") and np.ndim(size) == 1):
        if len(size) != 2:
            raise refused("size", size, "a side in pixels, or (height, width): channels are not part of it")
        return integer("size", size[0], 1), integer("size", size[1], 1)
    side = integer("size", size, 1)
    return side, side


def _interval(name: str, given: Any) -> tuple[float, float]:
    low, high = numbers(name, given, 2, f"the least and the greatest, such as {name}=(0.5, 1.0)")
    if not 0 < low <= high:
        raise refused(name, given, "two numbers above 0, the least first")
    return low, high


def _of_channels(name: str, given: Any) -> list[float] | None:
    """Return a number for each of R, G, B; one number counts for all."""
    if given is None:
        return None
    if hasattr(given, "__float__") and not isinstance(given, bool | str) and np.ndim(given) == 0:
        given = [given] * 3
    values = numbers(name, given, 3, "of R, G and B, as fractions of full brightness")
    if max(values) > 2 or (name == "std" and min(values) <= 0):
        hint = (
            f"; divide by 255, as in {name}=[{', '.join(f'{x / 255:.3f}' for x in values)}]" if max(values) > 2 else ""
        )
        raise refused(name, given, f"numbers of pixels in [0, 1]{hint}")
    return values


_JITTERS = ("brightness", "contrast", "saturation", "hue")


def _jitter(given: Any) -> dict[str, float] | None:
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise refused("jitter", given, 'strengths by name, such as jitter={"brightness": 0.4}')
    most = {"hue": 0.5}
    return {
        choice("jitter", name, _JITTERS): number(f"jitter[{name!r}]", strength, 0.0, most.get(name, math.inf))
        for name, strength in given.items()
    }


def _shape(given: Any) -> list[int] | None:
    if given is None:
        return None
    return integers("shape", given, 0, "ints, the sides of an array, such as (3, 4)")


@dataclass(frozen=True)
class Image(Field):
    """Pixels of an encoded image, RGB, decoded and augmented on the workers.

    Args:
        size: the side of the output, or (height, width), in pixels. None (default) keeps the size
            of each image; the column is then `Ragged`.
        crop: "random" (RandomResizedCrop over `scale` and `ratio`), "center", or None (default):
            the whole image is resized. A crop and a jitter need a size.
        scale: the least and greatest area of a random crop, as fractions of the image; by default
            (0.08, 1).
        ratio: the least and greatest width / height of a random crop; by default (3/4, 4/3).
        flip: mirrors left and right: True for half of the samples, or a probability; by default
            False.
        jitter: {"brightness", "contrast", "saturation", "hue": strength}, as torchvision's
            ColorJitter; by default none.
        mean: of R, G, B in [0, 1], or one number for all: float dtypes deliver
            (x / 255 - mean) / std. By default 0.
        std: of R, G, B in [0, 1], or one number for all; by default 1.
        dtype: "uint8" (default), "float32", "float16" or "bfloat16": a name, or a dtype of NumPy
            or torch.
        layout: "CHW" or "HWC"; by default "CHW" for images of one size. Images that keep their
            size are "HWC".
        draft: decodes JPEGs at 1/2, 1/4 or 1/8 of their size where the crop still covers the
            output, as Pillow's `draft`. Faster for large photographs; the pixels differ. By
            default False.
        load_truncated: makes the missing part of a JPEG that ends too early gray, and counts it in
            the report. libjpeg-turbo gives the same pixels, except that it smooths progressive
            JPEGs. By default False: such a sample is an error.
        exif: turns images as their Exif orientation says, as viewers do; by default True. False
            takes the stored pixels, as torchvision and Pillow do.
        gray16: how 16-bit gray becomes 8 bits: "scale" takes the upper eight bits, as OpenCV;
            "clip" makes 256 and more white, as Pillow. By default such an image is an error.
        default: "zeros" for samples that lack the field; needs a size.
        optional: adds `NAME.valid`; by default False.
        max_pixels: an image of more pixels is an error, which `on_error="skip"` leaves out. By
            default there is no bound, and the largest image must fit into the budget.

    >>> Image(224, crop="random", flip=True).spec()["size"]
    (224, 224)
    """

    size: int | tuple[int, int] | None = None
    crop: Literal["random", "center"] | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool | float = False
    jitter: Mapping[str, float] | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    dtype: Any = "uint8"
    layout: Literal["CHW", "HWC"] | None = None
    draft: bool = False
    load_truncated: bool = False
    exif: bool = True
    gray16: Literal["scale", "clip"] | None = None
    default: Literal["zeros"] | None = None
    optional: bool = False
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        """Check what was given; a crop, a jitter and a default need a size."""
        super().__post_init__()
        if self.size is not None:
            return
        for name, needs in (("crop", self.crop), ("jitter", self.jitter), ("default", self.default)):
            if needs is not None:
                raise ConfigError(f"{name}={needs!r} needs a size, as in tg.Image(224, {name}=...)")
        if self.layout == "CHW":
            raise ConfigError('layout="CHW" needs a size: images that keep their size are height x width x 3')

    def row(self) -> str:
        """Return what a row is, in a word or two: what `repr(loader)` shows."""
        size = _size(self.size)
        if size is None:
            return f"{self.dtype} of any size"
        return f"{self.dtype}{[*size, 3] if self.layout == 'HWC' else [3, *size]}"

    def spec(self) -> dict[str, Any]:
        """Return the spec as the loader's options have it."""
        flip = float(self.flip) / 2 if isinstance(self.flip, bool) else number("flip", self.flip, 0.0, 1.0)
        pixels = {
            "dtype": dtype_name("dtype", self.dtype, ("uint8", "float32", "float16", "bfloat16")),
            "mean": _of_channels("mean", self.mean),
            "std": _of_channels("std", self.std),
            "layout": "CHW" if self.layout is None else choice("layout", self.layout, ("CHW", "HWC")),
        }
        spec = {
            "kind": "image",
            "size": _size(self.size),
            "crop": "none" if self.crop is None else choice("crop", self.crop, ("random", "center")),
            "scale": _interval("scale", self.scale),
            "ratio": _interval("ratio", self.ratio),
            "flip": flip,
            "jitter": _jitter(self.jitter),
            "draft": flag("draft", self.draft),
            "load_truncated": flag("load_truncated", self.load_truncated),
            "max_pixels": None if self.max_pixels is None else integer("max_pixels", self.max_pixels, 1, 2**32),
            "exif": flag("exif", self.exif),
            "gray16": None if self.gray16 is None else choice("gray16", self.gray16, ("scale", "clip")),
            "pixels": pixels,
        }
        return _lacking(spec, _zeros(self.default), self.optional)


@dataclass(frozen=True)
class Mask(Field):
    """Labels of pixels (uint8), cropped and mirrored as an image, resized to the nearest value.

    Args:
        of: the field whose geometry it shares. Where that is a `Patch`, these are labels of voxels
            in their stored dtype, each taken from the place that the patch's voxel comes from; the
            labels may have another resolution.
        size: the side, or (height, width), in pixels; by default that of the image. Leave it None
            for a `Patch`.
        exif: whether the mask was drawn on the image as its Exif orientation shows it (True), or on
            the stored pixels (False). By default the sizes tell; where they do not, such as for
            square images, the sample is an error.
        default: the label, 0 to 255, of samples that lack the mask.
        optional: adds `NAME.valid`; by default False.

    >>> Mask("jpg", default=255).spec()["default"]
    [255]
    """

    of: str
    size: int | tuple[int, int] | None = None
    exif: bool | None = None
    default: int | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        """Check what was given."""
        if not isinstance(self.of, str):
            raise refused("of", self.of, 'the name of the field whose geometry it shares, as in tg.Mask(of="jpg")')
        self.spec()

    def row(self) -> str:
        """Return what a row is, in a word or two: what `repr(loader)` shows."""
        return f"mask of {self.of}"

    def spec(self) -> dict[str, Any]:
        """Return the spec as the loader's options have it."""
        exif = None if self.exif is None else flag("exif", self.exif)
        spec = {"kind": "mask", "of": self.of, "size": _size(self.size), "exif": exif}
        default = None if self.default is None else bytes([integer("default", self.default, 0, 255)])
        return _lacking(spec, default, self.optional)


Axes = Sequence[int]
Range = tuple[float, float]


@dataclass(frozen=True)
class Patch(Field):
    """A patch of a volume, augmented on the workers in Rust.

    Axes are those of the patch, counted from 0, at most three; lengths are voxels. A range is
    (low, high), drawn evenly for each sample. Values are computed in float32, then rounded and
    clipped where `dtype` is an integer type. Statistics are those of each channel of the patch.

    Args:
        of: a field whose geometry this one shares; by default it has its own.
        dtype: of the output; by default the stored one.
        mean: subtracted from values: a number, or one a channel; by default 0.
        std: divides values after that: a number, or one a channel; by default 1.
        crop: the shape to deliver, from the middle: voxels that a rotation or a deformation brings
            in are then real. By default the whole patch.
        flip: axes to mirror, each for half of the samples; True for all. By default none.
        rotate: axes to turn into one another by quarters, all rotations equally likely; True for
            all. By default none.
        elastic: (spacing, deviation): displacements of standard deviation `deviation` at points
            `spacing` voxels apart, with cubic B-splines between the points and linear
            interpolation between voxels. Each is a number, or one an axis. By default none.
        noise: a range of standard deviations of Gaussian noise, in units of the values.
        blur: a range of standard deviations of a Gaussian blur, in voxels.
        intensity: a range of factors.
        contrast: a range of factors about the mean; values are clipped to their former range.
        gamma: a range of exponents between the least and the greatest value.
        wavelet: ("haar" or "cdf53", levels): delivers the coarse part of a wavelet transform.
            Each level halves the sides; values keep their scale. By default none.
        p: how often `elastic`, `noise`, `blur`, `intensity`, `contrast` and `gamma` happen: a
            probability for all, or {name: probability}; by default 1.

    Values change in the order of the parameters: `mean` and `std`, noise, blur, intensity,
    contrast, gamma, wavelet.

    >>> patch = Patch(dtype="float32", std=255, flip=True, gamma=(0.7, 1.5), p={"gamma": 0.3})
    >>> patch.spec()["intensity"]["gamma"]
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
        """Return the spec as the loader's options have it."""
        ranges = {name: getattr(self, name) for name in ("noise", "blur", "intensity", "contrast", "gamma")}
        if isinstance(self.p, Mapping) and (unknown := set(self.p) - {*ranges, "elastic"}):
            raise ConfigError(f"p names {sorted(unknown)}; known are elastic, {', '.join(ranges)}")

        def chance(name: str) -> float:
            return number("p", self.p.get(name, 1.0) if isinstance(self.p, Mapping) else self.p, 0.0, 1.0)

        def drawn(name: str, limits: Range | None) -> dict[str, float] | None:
            if limits is None:
                return None
            low, high = _pair(name, limits)
            return {"low": _real(name, low), "high": _real(name, high), "p": chance(name)}

        elastic = None
        if self.elastic is not None:
            spacing, deviation = (_numbers("elastic", x) for x in _pair("elastic", self.elastic))
            elastic = {"spacing": spacing, "deviation": deviation, "p": chance("elastic")}
        geometry = {
            "crop": None if self.crop is None else integers("crop", self.crop, 1),
            "flip": _axes("flip", self.flip),
            "rotate": _axes("rotate", self.rotate),
            "elastic": elastic,
        }
        values = {name: drawn(name, limits) for name, limits in ranges.items()}
        wavelet = None
        if self.wavelet is not None:
            wavelet = dict(zip(("kind", "levels"), _pair("wavelet", self.wavelet), strict=True))
        return {
            "kind": "patch",
            "of": self.of,
            "geometry": geometry,
            "dtype": None if self.dtype is None else str(self.dtype),
            "intensity": {"mean": _numbers("mean", self.mean), "std": _numbers("std", self.std), **values},
            "wavelet": wavelet,
        }


def _pair(name: str, given: Any) -> tuple[Any, Any]:
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2:
        return given[0], given[1]
    raise ConfigError(f"{name}={given!r}: expected two values, such as {name}=(0.5, 1.5)")


def _axes(name: str, axes: bool | Axes) -> bool | list[int]:
    return axes if isinstance(axes, bool) else integers(name, axes, 0, "axes of a patch, counted from 0")


def _numbers(name: str, given: float | Sequence[float] | None) -> list[float]:
    """Return one number, or one for each axis or channel."""
    if given is None:
        return []
    if is_row(given):
        return numbers(name, given, len(given), "one for each axis or channel")
    return [number(name, given, -math.inf)]


@dataclass(frozen=True)
class Int(Field):
    """An integer: an int64 column.

    Args:
        default: an int for samples that lack the field.
        optional: adds `NAME.valid`; by default False.
    """

    default: int | None = None
    optional: bool = False

    def spec(self) -> dict[str, Any]:
        """Return the spec as the loader's options have it."""
        default = self.default
        if default is not None:
            default = integer("default", default, -(2**63), 2**63 - 1)
        row = None if default is None else default.to_bytes(8, "little", signed=True)
        return _lacking({"kind": "int"}, row, self.optional)


@dataclass(frozen=True)
class Float(Field):
    """A number: a float64 column.

    Args:
        default: a number for samples that lack the field, such as `math.nan`.
        optional: adds `NAME.valid`; by default False.
    """

    default: float | None = None
    optional: bool = False

    def spec(self) -> dict[str, Any]:
        """Return the spec as the loader's options have it."""
        row = None if self.default is None else struct.pack("<d", _real("default", self.default))
        return _lacking({"kind": "float"}, row, self.optional)


@dataclass(frozen=True)
class Text(Field):
    """UTF-8 text: a `Ragged` column of str. Numbers of CSV files keep their leading zeros.

    Args:
        default: a str for samples that lack the field.
        optional: adds `NAME.valid`; by default False.

    >>> Text(default="?").spec()["default"]
    [63]
    """

    default: str | None = None
    optional: bool = False

    def spec(self) -> dict[str, Any]:
        """Return the spec as the loader's options have it."""
        return _lacking({"kind": "text"}, _encoded(self.default), self.optional)


@dataclass(frozen=True)
class Bytes(Field):
    """The bytes as stored: a `Ragged` column of bytes.

    Args:
        default: bytes for samples that lack the field.
        optional: adds `NAME.valid`; by default False.
    """

    default: bytes | None = None
    optional: bool = False

    def spec(self) -> dict[str, Any]:
        """Return the spec as the loader's options have it."""
        if self.default is not None and not isinstance(self.default, bytes):
            raise refused("default", self.default, "bytes, such as b''")
        return _lacking({"kind": "bytes"}, self.default, self.optional)


@dataclass(frozen=True)
class Json(Field):
    """A JSON document as text: a `Ragged` column of str.

    Args:
        default: JSON text for samples that lack the field, such as "null".
        optional: adds `NAME.valid`; by default False.
    """

    default: str | None = None
    optional: bool = False

    def spec(self) -> dict[str, Any]:
        """Return the spec as the loader's options have it."""
        text = _encoded(self.default)
        if text is not None:
            try:
                json.loads(text)
            except ValueError:
                raise refused("default", self.default, 'JSON text, such as "null" or "{}"') from None
        return _lacking({"kind": "json"}, text, self.optional)


def _encoded(default: Any) -> bytes | None:
    if default is not None and not isinstance(default, str):
        raise refused("default", default, 'a str, such as ""')
    try:
        return None if default is None else default.encode()
    except UnicodeEncodeError:
        raise refused("default", default, "text that UTF-8 can hold") from None


def _real(name: str, given: Any) -> float:
    """Return a number, NaN and infinities too."""
    if isinstance(given, bool | str) or not hasattr(given, "__float__"):
        raise refused(name, given, "a number")
    try:
        return float(given)
    except (TypeError, ValueError, RuntimeError):
        raise refused(name, given, "a number") from None
    except OverflowError:
        raise refused(name, given, "a number that float64 can hold") from None


@dataclass(frozen=True)
class Array(Field):
    """An array, such as a decoded .npy.

    Args:
        dtype: of the stored elements, such as "float32": a name, or a dtype of NumPy or torch.
        shape: of every sample; None (default) for arrays of several shapes: a `Ragged` column.
        default: a number for every element of samples that lack the field; needs a shape.
        optional: adds `NAME.valid`; by default False.

    >>> Array("float32", (3, 4)).spec()
    {'kind': 'array', 'dtype': 'float32', 'shape': [3, 4]}
    """

    dtype: Any
    shape: Sequence[int] | None = None
    default: float | None = None
    optional: bool = False

    def row(self) -> str:
        """Return what a row is, in a word or two: what `repr(loader)` shows."""
        return f"{self.dtype}{' of any shape' if self.shape is None else list(self.shape)}"

    def spec(self) -> dict[str, Any]:
        """Return the spec as the loader's options have it."""
        dtype, shape = dtype_name("dtype", self.dtype, DTYPES), _shape(self.shape)
        return _lacking({"kind": "array", "dtype": dtype, "shape": shape}, self._default(dtype), self.optional)

    def _default(self, dtype: str) -> bytes | None:
        if self.default is None:
            return None
        if self.shape is None:
            raise ConfigError(f"default={self.default!r} needs a shape, as in tg.Array({dtype!r}, (3, 4), default=...)")
        value = float(self.default) if isinstance(self.default, bool) else _real("default", self.default)
        if dtype == "bfloat16":
            # The upper half of a float32, if that is the whole of it.
            with np.errstate(over="ignore"):
                single = np.float32(value)
            word = single.tobytes()
            if not (math.isnan(value) or float(single) == value) or word[:2] != b"\0\0":
                raise refused("default", self.default, "a number that bfloat16 can hold, such as 0 or -1")
            return bytes(word[2:])
        try:
            with np.errstate(all="raise"):
                element = np.array(self.default).astype(dtype)
        except (FloatingPointError, OverflowError):
            raise refused("default", self.default, f"a number that {dtype} can hold") from None
        if not math.isnan(value) and element != self.default:
            raise refused("default", self.default, f"a number that {dtype} can hold")
        return element.tobytes()


@dataclass(frozen=True, init=False)
class Window:
    """A shuffle within windows: whole shards in random order, then samples mixed within a window.

    Its parameters are part of the order: a saved state goes on only with the same ones.

    Args:
        samples: the length of a window, in samples.
        canonical_nodes: into how many parts the shuffled shards are divided; by default 1. Each
            window draws from all parts. Where the number of ranks divides `canonical_nodes`, and
            `canonical_nodes` divides the global batch, each rank reads parts of its own.
        range_samples: shuffles ranges of this many samples instead of whole shards. Batches mix
            better, and each range is a separate read; `tidegate shuffle-quality` measures both. 0
            (default) shuffles whole shards.
        ranges: the old name of `range_samples`.

    >>> Window(4096, range_samples=100)
    Window(samples=4096, canonical_nodes=1, range_samples=100)
    """

    samples: int
    canonical_nodes: int = 1
    range_samples: int = 0

    def __init__(
        self, samples: int, canonical_nodes: int = 1, range_samples: int = 0, *, ranges: int | None = None
    ) -> None:
        if ranges is not None:
            renamed("Window(ranges=...)", "Window(range_samples=...)")
            range_samples = ranges
        # The class is frozen: attributes are set once, here.
        object.__setattr__(self, "samples", integer("samples", samples, 1))
        object.__setattr__(self, "canonical_nodes", integer("canonical_nodes", canonical_nodes, 1))
        object.__setattr__(self, "range_samples", integer("range_samples", range_samples, 0))

    @property
    def ranges(self) -> int:
        """The old name of `range_samples`."""
        renamed("Window.ranges", "Window.range_samples")
        return self.range_samples

    def spec(self) -> dict[str, Any]:
        """Return the order as the loader's options have it."""
        return {
            "kind": "window",
            "samples": self.samples,
            "canonical_nodes": self.canonical_nodes,
            "ranges": self.range_samples,
        }


def specs(
    fields: Mapping[str, Field] | Sequence[str] | None, columns: Sequence[str] | None, schema: Mapping[str, str]
) -> tuple[list[Any], bool]:
    """Return fields as the loader's options have them, and whether all others are left out.

    Args:
        fields: {name: spec}, or the names of the only fields.
        columns: the names of the only fields; their specs are those of `fields`, or inferred.
        schema: {name: kind} of the source.

    Raises ConfigError for a name that the schema does not have, and for a spec that is no `Field`.
    """
    for option, given in (("fields", fields), ("columns", columns)):
        several = isinstance(given, Iterable) and getattr(given, "ndim", 1) != 0
        if isinstance(given, str | bytes) or not (given is None or several):
            raise refused(
                option, given, "a list of names" if option == "columns" else "specs by name, or a list of names"
            )
    if fields is not None and not isinstance(fields, Mapping):
        if columns is not None:
            raise ConfigError(
                "fields and columns both list names: give {name: spec} as fields, and the names as columns"
            )
        fields, columns = None, fields
    columns = None if columns is None else list(columns)
    if columns is not None and not all(isinstance(name, str) for name in columns):
        raise refused("columns", columns, "the names of fields")
    made = {}
    for name, spec in (fields or {}).items():
        if not isinstance(spec, Field):
            raise ConfigError(f"field {name!r}: expected a spec such as tg.Image(224), not {spec!r}")
        made[name] = spec.spec()
    if columns is None:
        return list(made.items()), False
    for name in columns:
        if name not in made and not _joined(name, schema):
            raise ConfigError(
                f"there is no field {name!r}; the fields are {', '.join(schema)}{nearest(str(name), schema)}"
            )
    if unused := [name for name in made if name not in columns]:
        raise ConfigError(f"fields has a spec of {unused[0]!r}, which columns leaves out: name it in both, or in none")
    named = dict.fromkeys(columns)
    return [(name, made[name] if name in made else _inferred(_joined(name, schema)[0])) for name in named], True


def _joined(name: Any, schema: Mapping[str, str]) -> list[str]:
    """Return the kinds of the fields that a name stands for, such as "jpg;png"."""
    return [schema[part] for part in ([name] if name in schema else str(name).split(";")) if part in schema]


def _inferred(kind: str) -> dict[str, Any]:
    if kind in ("image", "pixels"):
        return Image().spec()
    if kind in ("bytes", "text", "json", "int", "float"):
        return {"kind": kind}
    # An array of any kind, as stored.
    return {"kind": "array", "dtype": None, "shape": None}
