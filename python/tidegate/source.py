"""`open`: a dataset as it lies on disk, to look at, divide and load."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tidegate import _tidegate
from tidegate.errors import ConfigError

__all__ = ["Source", "open", "synthetic", "tokens"]


class Source:
    """Indexed samples. `source[i]` gives {field: value} with encoded values as bytes; `len` is exact."""

    def __init__(self, inner: _tidegate.Source) -> None:
        self._inner = inner

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, id: int) -> dict[str, Any]:
        return self._inner.sample(id + len(self) if id < 0 else id)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Source({self._inner.name!r}, {len(self)} samples, {self.schema})"

    @property
    def columns(self) -> int | None:
        """Columns of sparse rows (LIBSVM files), if samples are such: `CSR.from_batch(batch, source.columns)`."""
        return self._inner.sparse_columns

    @property
    def schema(self) -> dict[str, str]:
        """{field: kind}."""
        return self._inner.schema()

    @property
    def stats(self) -> dict[str, Any]:
        """Sizes over all samples, in bytes, and the names of classes."""
        return self._inner.stats()

    @property
    def fingerprint(self) -> str:
        """A hash over names, sizes and headers: the same data have the same one, wherever they lie."""
        return self._inner.fingerprint

    def key(self, id: int) -> str:
        """Return the name of sample `id`."""
        return self._inner.key(id)

    def select(self, ids: Iterable[int]) -> Source:
        """Return the samples `ids`, in that order. Raises ConfigError for an id past the end."""
        return Source(self._inner.select(list(ids)))

    def split(self, parts: Mapping[str, float], seed: int = 0) -> dict[str, Source]:
        """Divide at random into named fractions.

        >>> parts = synthetic(100, 8).split({"train": 0.9, "val": 0.1})
        >>> len(parts["train"]), len(parts["val"])
        (90, 10)
        """
        made = self._inner.split(list(parts.values()), seed)
        return {name: Source(part) for name, part in zip(parts, made, strict=True)}

    def filter(self, field: str, keep: Callable[[Any], bool]) -> Source:
        """Return the samples whose `field` pleases `keep`; reads every sample once.

        >>> len(synthetic(10, 8).filter("id", lambda x: x % 2 == 0))
        5
        """
        return self.select(i for i, sample in enumerate(self) if field in sample and keep(sample[field]))


def open(url: str, *, force: bool = False, checkpoints: bool = False) -> Source:
    """Open a folder of images (one folder a class), tar shards, Parquet or Arrow files, or an MDS folder.

    JSON Lines, CSV, TSV and LIBSVM files (`"libsvm:FILE"` whatever its name) as well, here or in an object store. The
    first opening makes a side-car index; `force` makes it anew. `checkpoints` has every JPEG read once, unless that was
    done before, to note where decoding can begin: crops then decode less. They take at most 5 % of the size of the
    data, beside the index. Raises DataError, and ConfigError for data that can have none.
    """
    return Source(_tidegate.open(str(url), force=force, checkpoints=checkpoints))


def tokens(url: str, length: int, *, dtype: npt.DTypeLike | None = None) -> Source:
    """Open token files (a name or a pattern) as sequences of `length + 1` ids, each of which begins `length` on.

    Inputs are `batch["tokens"][:, :-1]` and targets `batch["tokens"][:, 1:]`; each token is foretold once an epoch, and
    documents are packed one behind the other. Files with a header of llm.c say their type; of bare ones, such as
    nanoGPT's `train.bin`, give `dtype`: "uint16" or "uint32". They may lie in an object store. Raises DataError for
    files that are cut short.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "train.bin")
    >>> np.arange(1000, dtype="uint16").tofile(path)
    >>> len(tokens(path, 100, dtype="uint16"))
    9
    """
    wanted = None if dtype is None else np.dtype(dtype)
    if wanted is not None and not wanted.isnative:
        raise ConfigError(f"tokens of {wanted!r}: files are read in the byte order of this machine")
    return Source(_tidegate.tokens(str(url), length, None if wanted is None else wanted.name))


def synthetic(samples: int, sample_bytes: int) -> Source:
    """Return a made-up source with fields `data` (bytes) and `id`, for tests of any length."""
    return Source(_tidegate.synthetic(samples, sample_bytes))
