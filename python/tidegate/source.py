"""`open`, `tokens` and `synthetic`: a dataset to look at, to divide and to load.

Flow: a path, a pattern or a URL -> the side-car index -> `Source`, which `Loader` takes.
Memory: the index, about 24 bytes a sample, charged to the account `index` of the loader.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tidegate import _tidegate
from tidegate.errors import ConfigError

__all__ = ["Source", "open", "synthetic", "tokens"]


class Source:
    """A dataset: samples by number, with their fields; made by `open`, `tokens` or `synthetic`.

    `len(source)` is the exact number of samples. `source[i]` reads sample i and returns
    {field: value}; encoded values, such as JPEGs, are bytes. Negative numbers count from the end.
    """

    def __init__(self, inner: _tidegate.Source) -> None:
        self._inner = inner

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._inner)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one sample. Raises IndexError past the end, SampleError for a damaged sample."""
        return self._inner.sample(index + len(self) if index < 0 else index)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}: {kind}" for name, kind in self.schema.items())
        return f"{type(self).__name__}({self._inner.name!r}, {len(self)} samples, {fields})"

    @property
    def columns(self) -> int | None:
        """The number of columns of sparse rows (LIBSVM files); None for other data.

        `CSR.from_batch(batch, source.columns)` makes a matrix of a batch.
        """
        return self._inner.sparse_columns

    @property
    def schema(self) -> dict[str, str]:
        """{field: kind}, such as `{"image": "image", "label": "int"}`."""
        return self._inner.schema()

    @property
    def stats(self) -> dict[str, Any]:
        """Sizes over all samples, in bytes, and the names of the classes."""
        return self._inner.stats()

    @property
    def fingerprint(self) -> str:
        """A hash of names, sizes and headers: the same for a copy of the data in another place."""
        return self._inner.fingerprint

    def key(self, id: int) -> str:
        """Return the name of sample `id`, such as its path below the folder."""
        return self._inner.key(id)

    def select(self, ids: Iterable[int]) -> Source:
        """Return a source of the samples `ids`, in that order; an id may repeat.

        Raises ConfigError for an id past the end.

        >>> len(synthetic(10, 8).select([3, 1, 4]))
        3
        """
        return Source(self._inner.select(list(ids)))

    def split(self, parts: Mapping[str, float], seed: int = 0) -> dict[str, Source]:
        """Divide the samples at random into named parts.

        Args:
            parts: {name: fraction}; the fractions add up to at most 1.
            seed: of the division, an int; the same seed gives the same parts.

        >>> parts = synthetic(100, 8).split({"train": 0.9, "val": 0.1})
        >>> len(parts["train"]), len(parts["val"])
        (90, 10)
        """
        made = self._inner.split(list(parts.values()), seed)
        return {name: Source(part) for name, part in zip(parts, made, strict=True)}

    def filter(self, field: str, keep: Callable[[Any], bool]) -> Source:
        """Return the samples for which `keep(value of field)` is true; reads every sample once.

        A sample without the field is left out.

        >>> len(synthetic(10, 8).filter("id", lambda x: x % 2 == 0))
        5
        """
        return self.select(i for i, sample in enumerate(self) if field in sample and keep(sample[field]))


def open(url: str | os.PathLike[str], *, force: bool = False, checkpoints: bool = False) -> Source:
    """Open a dataset in place: a local path, a pattern, or a URL of an object store.

    Args:
        url: one of
            a folder of images, with one folder a class;
            tar shards (WebDataset), Parquet or Arrow files, or a folder of MosaicML MDS;
            JSON Lines, CSV, TSV or LIBSVM files; write `"libsvm:FILE"` for LIBSVM under any name.
            Patterns such as "shards/*.tar" and "shards/{000..099}.tar" name several files. URLs
            begin with `s3://`, `gs://`, `az://` or `https://`.
        force: makes the side-car index again, even if it is up to date. By default the first
            opening makes the index and later ones read it.
        checkpoints: reads every JPEG once and notes where decoding can begin, unless that is
            already done. Random crops of the unmodified files then decode less. The notes take at
            most 5 % of the size of the data, next to the index.

    Raises DataError for data that are missing or damaged, and ConfigError for `checkpoints` of
    data that cannot have any.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "lines.jsonl")
    >>> path.write_text('{"text": "one"}\\n{"text": "two"}\\n')
    32
    >>> [sample["text"] for sample in open(path)]
    ['one', 'two']
    """
    return Source(_tidegate.open(str(url), force=force, checkpoints=checkpoints))


def tokens(url: str | os.PathLike[str], length: int, *, dtype: npt.DTypeLike | None = None) -> Source:
    """Open files of token ids as sequences of `length + 1` ids, one every `length` ids.

    Inputs are `batch["tokens"][:, :-1]` and targets are `batch["tokens"][:, 1:]`, so each token is
    a target once an epoch. Documents follow one another without padding.

    Args:
        url: a local path, a pattern, or a URL of an object store.
        length: the tokens of an input, an int, at least 1.
        dtype: "uint16" or "uint32", for files without a header, such as nanoGPT's `train.bin`. By
            default the header says (llm.c). Files are read in the byte order of this machine.

    Raises DataError for files that are cut short, and ConfigError for a dtype of the other byte
    order.

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
    """Return a made-up source, for tests of any length.

    Args:
        samples: an int.
        sample_bytes: the size of the field `data` (bytes) of each sample. The field `id` is the
            sample's number.

    >>> synthetic(3, 8)
    Source('synthetic', 3 samples, data: bytes, id: int)
    """
    return Source(_tidegate.synthetic(samples, sample_bytes))
