"""`pack`: a dataset in shards of bounded size, MDS or tar.

Flow: a source -> `_tidegate.pack` -> shards in a folder -> a `Source` of them.
Memory: outside of any budget, because packing is not training: up to 64 MiB of samples, and of MDS
the rows of one shard.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

from tidegate import _tidegate
from tidegate.options import choice, function, integer, refused
from tidegate.source import Source, location, opened
from tidegate.source import open as open_source

__all__ = ["pack"]


def pack(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    *,
    format: Literal["mds", "tar"] = "mds",
    max_size: int | str = "64MiB",
    max_samples: int | None = None,
    quantize: Mapping[str, int] | None = None,
    codec: str | Mapping[str, str] | None = None,
    names: str | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Source:
    """Pack a dataset into shards of bounded size, and open them.

    Samples keep their order. A run that was interrupted goes on where it stopped: call it again
    with the same arguments. Shards are synced before they get their names.

    Args:
        source: a path, a pattern, a URL or a `Source`, such as a part of `Source.split`.
        out: a folder that is new, empty or of an interrupted run.
        format: "mds" (default): MosaicML MDS, typed columns, which the stock library reads; or
            "tar": WebDataset. Tar shards keep the names of samples where these are unique; both
            keep the names of classes.
        max_size: of a shard, in bytes or such as "64MiB" (default).
        max_samples: of a shard, an int; by default as many as fit.
        quantize: {field: bits} of float arrays to quantize, 2 to 8 bits a value; by default none.
        codec: a codec for all arrays, such as "zstd", or {field: codec}; "auto" takes the one that
            gains most. By default arrays are stored as they are.
        names: a column of MDS for the names of samples, such as "file": paths below the folder, or
            the keys of an archive. By default MDS has none.
        progress: called as `progress(samples done, samples)`.

    Raises ConfigError for a folder with other data and for options that do not fit, SampleError for
    a sample that cannot be read.

    >>> import tempfile
    >>> import tidegate as tg
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     len(tg.pack(tg.synthetic(10, 100), folder + "/packed"))
    10
    """
    data = opened(source)
    function("progress", progress)
    folder = location(out)
    choice("format", format, ("mds", "tar"))
    size = _tidegate.size_bytes(max_size)
    samples = 2**64 - 1 if max_samples is None else integer("max_samples", max_samples, 1, 2**64 - 1)
    bits = [(str(name), integer(f"quantize[{name!r}]", n, 2, 8)) for name, n in _named("quantize", quantize)]
    if codec is None or isinstance(codec, str):
        codecs, for_all = [], codec
    else:
        codecs, for_all = [(str(name), str(value)) for name, value in _named("codec", codec)], None
    if names is not None and not isinstance(names, str):
        raise refused("names", names, 'the name of a column, such as "file"')
    _tidegate.pack(data._inner, folder, format, size, samples, bits, codecs, for_all, names, progress)
    return open_source(folder)


def _named(name: str, given: Any) -> list[tuple[Any, Any]]:
    if given is None:
        return []
    if not isinstance(given, Mapping):
        raise refused(name, given, f"values by field, as in {name}={{'x': ...}}")
    return list(given.items())
