"""What is wanted of each field: `Image`, `Mask`, `Int`, `Float`, `Text`, `Bytes`, `Json`, `Array`, and `Window`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tidegate.errors import ConfigError

__all__ = ["Array", "Bytes", "Field", "Float", "Image", "Int", "Json", "Mask", "Text", "Window"]


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

    >>> Mask("jpg").spec()
    {'kind': 'mask', 'of': 'jpg', 'size': None}
    """

    of: str
    size: int | tuple[int, int] | None = None

    def spec(self) -> dict[str, Any]:
        """Return the spec as the Rust side reads it."""
        return {"kind": "mask", "of": self.of, "size": _size(self.size)}


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
    inferred = {"image": "image", "pixels": "image", "npy": "array", "ndarray": "array", "patch": "array"}
    specs: list[Any] = []
    for name in fields:
        kind = inferred.get(schema[name], schema[name])
        if kind == "image":
            specs.append((name, Image().spec()))
        elif kind == "array":
            specs.append((name, {"kind": "array", "dtype": None, "shape": None}))
        else:
            specs.append((name, {"kind": kind}))
    return specs, True
