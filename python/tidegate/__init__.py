"""Tidegate streams datasets larger than memory into training, under one hard memory budget.

`open` finds a dataset, `Loader` makes batches of it. The modules `samplers`, `sketch`, `sparse`,
`quantize`, `compress`, `tensor_train`, `training` and `torch` are imported on first use.

>>> import tidegate as tg
>>> loader = tg.Loader(tg.synthetic(10, 8), batch_size=4, memory="16MiB")
>>> [batch["id"].tolist() for batch in loader]
[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from tidegate import errors
from tidegate._tidegate import Budget, __version__
from tidegate.arrays import MappedArray, mapped
from tidegate.batch import Batch, Ragged
from tidegate.curve import Curve, cache_curve
from tidegate.disk import DiskCache
from tidegate.duplicates import Duplicates, dedup
from tidegate.errors import (
    BudgetError,
    ConfigError,
    DataError,
    DataWarning,
    Error,
    HeldError,
    InternalError,
    PatchTooLargeError,
    SampleError,
    SamplerError,
    StalledError,
    StateError,
)
from tidegate.fields import Array, Bytes, Field, Float, Image, Int, Json, Mask, Patch, Text, Window
from tidegate.loader import Loader, Report
from tidegate.packing import pack
from tidegate.profiling import Profile, profile
from tidegate.source import Source, open, synthetic, tokens
from tidegate.volumes import Boxes, Predictions, Volume, pyramid, volume

if TYPE_CHECKING:
    from tidegate import compress, quantize, samplers, sketch, sparse, tensor_train, training
    from tidegate import torch as torch

__all__ = [
    "Array",
    "Batch",
    "Boxes",
    "Budget",
    "BudgetError",
    "Bytes",
    "ConfigError",
    "Curve",
    "DataError",
    "DataWarning",
    "DiskCache",
    "Duplicates",
    "Error",
    "Field",
    "Float",
    "HeldError",
    "Image",
    "Int",
    "InternalError",
    "Json",
    "Loader",
    "MappedArray",
    "Mask",
    "Patch",
    "PatchTooLargeError",
    "Predictions",
    "Profile",
    "Ragged",
    "Report",
    "SampleError",
    "SamplerError",
    "Source",
    "StalledError",
    "StateError",
    "Text",
    "Volume",
    "Window",
    "__version__",
    "cache_curve",
    "compress",
    "dedup",
    "errors",
    "mapped",
    "open",
    "pack",
    "profile",
    "pyramid",
    "quantize",
    "samplers",
    "sketch",
    "sparse",
    "synthetic",
    "tensor_train",
    "tokens",
    "training",
    "volume",
]

# Imported on first use. `torch` is in neither __all__ nor dir(), so that looking around does not
# need torch.
_LAZY = {"compress", "quantize", "samplers", "sketch", "sparse", "tensor_train", "torch", "training"}


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"tidegate.{name}")
    raise AttributeError(f"module 'tidegate' has no attribute {name!r}")


def __dir__() -> list[str]:
    own = (name for name in globals() if name.startswith("__"))
    return sorted({*__all__, *own})
