"""Tidegate: stream datasets larger than memory into training, under one hard memory budget.

>>> import tidegate as tg
>>> loader = tg.Loader(tg.synthetic(10, 8), batch_size=4, memory="16MiB")
>>> [batch["id"].tolist() for batch in loader]
[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
"""

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
    Error,
    HeldError,
    InternalError,
    SampleError,
    StalledError,
    StateError,
)
from tidegate.fields import Array, Bytes, Field, Float, Image, Int, Json, Mask, Patch, Text, Window
from tidegate.loader import Loader, Report
from tidegate.profiling import Profile, profile
from tidegate.source import Source, open, synthetic, tokens
from tidegate.volumes import Boxes, Predictions, Volume, pyramid, volume

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
    "Predictions",
    "Profile",
    "Ragged",
    "Report",
    "SampleError",
    "Source",
    "StalledError",
    "StateError",
    "Text",
    "Volume",
    "Window",
    "__version__",
    "cache_curve",
    "dedup",
    "errors",
    "mapped",
    "open",
    "profile",
    "pyramid",
    "synthetic",
    "tokens",
    "volume",
]
