"""`open`, `tokens` and `synthetic`: a dataset to look at, to divide and to load.

Flow: a path, a pattern or a URL -> the side-car index -> `Source`, which `Loader` takes.
Memory: the index, about 24 bytes a sample, charged to the account `index` of the loader.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate import _tidegate
from tidegate._tidegate import Budget
from tidegate.errors import ConfigError, DataError, DataWarning, warn
from tidegate.options import as_array, dtype_of, flag, integer, number, refused, text

__all__ = ["Source", "open", "synthetic", "tokens"]


class Recipe(NamedTuple):
    """How to make a source again in another process."""

    function: Callable[..., Source]
    arguments: tuple[Any, ...]


class Source:
    """A dataset: samples by number, with their fields; made by `open`, `tokens` or `synthetic`.

    `len(source)` is the exact number of samples. `source[i]` reads sample i and returns
    {field: value}; encoded values, such as JPEGs, are bytes. Negative numbers count from the end.

    A source can be pickled: it is opened again where it arrives, and the data must be the same.
    """

    def __init__(self, inner: _tidegate.Source, recipe: Recipe) -> None:
        self._inner, self._recipe = inner, recipe

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._recipe, self.fingerprint)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._inner)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one sample. Raises IndexError past the end, SampleError for a damaged sample."""
        return self._inner.sample(self._id(index))

    def _id(self, index: Any) -> int:
        """Return the number of a sample; negative ones count from the end."""
        if isinstance(index, slice | str):
            fix = "source[0] is a sample" if isinstance(index, str) else "source.select(range(0, 5)) is a source"
            raise ConfigError(f"source[{index!r}]: expected the number of a sample; {fix}")
        number = integer("index", index, -(2**63))
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        return number + len(self) if number < 0 else number

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        missing = self.missing
        lacking = {name: f" ({missing[name]} missing)" for name in missing}
        kinds = self.schema | {name: f"int, {unit}" for name, unit in self.units.items()}
        fields = ", ".join(f"{name}: {kind}{lacking.get(name, '')}" for name, kind in kinds.items())
        left_out = "".join(f"; left out: {what}" for what in self.left_out)
        left_out += "".join(f"; uncertain: {what}" for what in self.uncertain)
        return f"{type(self).__name__}({self._inner.name!r}, {len(self)} samples, {fields}{left_out})"

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
    def units(self) -> dict[str, str]:
        """{field: dtype} of the fields of times, as NumPy calls what their integers count.

        `batch["time"].view(source.units["time"])` are the times, of a zone in UTC.
        """
        return self._inner.units()

    @property
    def uncertain(self) -> list[str]:
        """What is uncertain about the types of fields, in words: where values are of several."""
        return self._inner.uncertain()

    @property
    def missing(self) -> dict[str, int]:
        """{field: samples that lack it}, of the fields that some samples of the files lack.

        `tg.Text(optional=True)`, or a `default`, says what those samples get.
        """
        return self._inner.missing()

    @property
    def left_out(self) -> list[str]:
        """What was found beside the samples and is not one of them, in words, with an example."""
        return [words for words, _ in self._inner.left_out()]

    @property
    def stats(self) -> dict[str, Any]:
        """Sizes over all samples, in bytes, and the names of the classes."""
        return self._inner.stats()

    @property
    def fingerprint(self) -> str:
        """A hash of names, sizes and headers: the same for a copy of the data in another place."""
        return self._inner.fingerprint

    def key(self, id: int) -> str:
        """Return the name of sample `id`, such as its path below the folder.

        Negative numbers count from the end. Raises IndexError past the end.
        """
        return self._inner.key(self._id(id))

    def select(self, ids: Iterable[int]) -> Source:
        """Return a source of the samples `ids`, in that order; an id may repeat.

        Raises ConfigError for an id past the end.

        >>> len(synthetic(10, 8).select([3, 1, 4]))
        3
        """
        if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
            raise refused("ids", ids, "the numbers of samples, such as [3, 1, 4]")
        chosen = as_array("ids", ids if hasattr(ids, "__array__") else list(ids), what="one row of integers")
        if chosen.ndim != 1 or (chosen.dtype.kind not in "iu" and chosen.size):
            hint = "; np.flatnonzero makes ids of a mask" if chosen.dtype == bool else ""
            raise ConfigError(f"ids must be one row of integers, not {chosen.dtype} of shape {chosen.shape}{hint}")
        if chosen.size and chosen.min() < 0:
            raise ConfigError(f"there is no sample {chosen.min()}: ids are numbers from 0 on")
        chosen = chosen.astype(np.uint64)
        return Source(self._inner.select(chosen.tolist()), Recipe(Source.select, (self, chosen)))

    def split(self, parts: Mapping[str, float], seed: int = 0) -> dict[str, Source]:
        """Divide the samples at random into named parts.

        Args:
            parts: {name: fraction}; the fractions add up to at most 1.
            seed: of the division, an int; the same seed gives the same parts.

        >>> parts = synthetic(100, 8).split({"train": 0.9, "val": 0.1})
        >>> len(parts["train"]), len(parts["val"])
        (90, 10)
        """
        if not isinstance(parts, Mapping):
            raise refused("parts", parts, 'the parts by name, such as {"train": 0.9, "val": 0.1}')
        fractions = {name: number(f"parts[{name!r}]", part, 0.0, 1.0) for name, part in parts.items()}
        seed = integer("seed", seed, 0, 2**64 - 1)
        made = self._inner.split(list(fractions.values()), seed)
        return {
            name: Source(part, Recipe(_part, (self, fractions, seed, name)))
            for name, part in zip(fractions, made, strict=True)
        }

    def filter(self, field: str, keep: Callable[[Any], bool]) -> Source:
        """Return the samples for which `keep(value of field)` is true; reads every sample once.

        A sample without the field is left out.

        >>> len(synthetic(10, 8).filter("id", lambda x: x % 2 == 0))
        5
        """
        if not isinstance(field, str):
            raise refused("field", field, "the name of a field")
        if not callable(keep):
            raise refused("keep", keep, "a function")
        return self.select(i for i, sample in enumerate(self) if field in sample and keep(sample[field]))


def open(
    url: str | os.PathLike[str],
    *,
    split: str | None = None,
    strict: bool = False,
    allow_missing: bool = False,
    force: bool = False,
    checkpoints: bool = False,
    memory: int | float | str | Budget | None = None,
) -> Source:
    """Open a dataset in place: a local path, a pattern, or a URL of an object store.

    Args:
        url: one of
            a folder of images, with one folder a class;
            tar shards (WebDataset), Parquet or Arrow files, or a folder of MosaicML MDS;
            JSON Lines, CSV, TSV or LIBSVM files; write `"libsvm:FILE"` for LIBSVM under any name.
            Patterns such as "shards/*.tar", "**/x-[0-9].tar" and "shards/{000..099}.tar" name
            several files. URLs begin with `s3://`, `gs://`, `az://` or `https://`.
        split: the split to open where there are several, such as "train"; "all" joins them. By
            default several splits are an error that names them.
        strict: raises DataError where something beside the samples may be taken for samples, such
            as images that are not read, and where the type of a field is uncertain. By default it
            is a `DataWarning`, and `left_out` and `uncertain` list it.
        allow_missing: opens files named "...-00000-of-00004..." of which some are missing; by
            default False.
        force: makes the side-car index again, even if it is up to date. By default the first
            opening makes the index and later ones read it.
        checkpoints: reads every JPEG once and notes where decoding can begin, unless that is
            already done. Random crops of the unmodified files then decode less. The notes take at
            most 5 % of the size of the data, next to the index.
        memory: what making the index may take for one row of a table, one line, or one record
            batch: bytes, text such as "1GiB", a fraction of the memory limit, or a `Budget`; by
            default 64 MiB. Larger ones are a DataError. A loader that opens a path gives its own,
            if that is more.

    Raises DataError for data that are missing, damaged or ambiguous, and ConfigError for
    `checkpoints` of data that cannot have any.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "lines.jsonl")
    >>> path.write_text('{"text": "one"}\\n{"text": "two"}\\n')
    32
    >>> [sample["text"] for sample in open(path)]
    ['one', 'two']
    """
    where = location(url)
    if split is not None and not isinstance(split, str):
        raise refused("split", split, 'the name of a split, such as "train"')
    allow_missing = flag("allow_missing", allow_missing)
    inner = _tidegate.open(
        where,
        force=flag("force", force),
        checkpoints=flag("checkpoints", checkpoints),
        split=split,
        allow_missing=allow_missing,
        memory=memory_bytes(memory),
    )
    source = Source(inner, Recipe(_opened, (absolute(where), split, allow_missing)))
    odd = [words for words, warn in inner.left_out() if warn]
    doubts = [f"left out are {'; '.join(odd)}"] if odd else []
    doubts += inner.uncertain()
    if doubts:
        found = f"{inner.name}: {'; '.join(doubts)}"
        if flag("strict", strict):
            raise DataError(found)
        warn(found)
    folder = inner.temporary_index()
    if folder is not None:
        warn(
            f"{inner.name}: the index is in {folder}, because neither the folder of the data nor the user's cache "
            "folder can be written: it may have to be made again"
        )
    passed_over = inner.passed_over_index()
    if passed_over is not None:
        theirs, own = passed_over
        warn(
            f"{inner.name}: the index in {theirs} is passed over, because others than you, root and the owner of the "
            f"data's folder can have written it; yours is in {own}"
        )
    return source


def _opened(where: str, split: str | None, allow_missing: bool) -> Source:
    with warnings.catch_warnings():
        # It was said where the source was opened first.
        warnings.simplefilter("ignore", DataWarning)
        return open(where, split=split, allow_missing=allow_missing)


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
    wanted = None if dtype is None else dtype_of("dtype", dtype)
    if wanted is not None and not wanted.isnative:
        raise ConfigError(f"tokens of {wanted!r}: files are read in the byte order of this machine")
    where, length, name = location(url), integer("length", length, 1), None if wanted is None else wanted.name
    return Source(_tidegate.tokens(where, length, name), Recipe(_tokens, (absolute(where), length, name)))


def synthetic(samples: int, sample_bytes: int) -> Source:
    """Return a made-up source, for tests of any length.

    Args:
        samples: an int.
        sample_bytes: the size of the field `data` (bytes) of each sample. The field `id` is the
            sample's number.

    >>> synthetic(3, 8)
    Source('synthetic', 3 samples, data: bytes, id: int)
    """
    size = integer("samples", samples, 0), integer("sample_bytes", sample_bytes, 0, 2**32 - 1)
    return Source(_tidegate.synthetic(*size), Recipe(synthetic, size))


LIBSVM = "libsvm:"
# What opening may take for a row, a line or a record batch, unless the user says.
OPENING_BYTES = 64 << 20


def location(url: Any) -> str:
    """Return a path, a pattern or a URL as text, with `~` replaced by the home folder."""
    if not isinstance(url, str | os.PathLike):
        raise refused("url", url, 'a path, a pattern or a URL; a pattern names several files, as in "{a,b}.tar"')
    where = text("url", os.fsdecode(os.fspath(url)), "a path, a pattern or a URL, in UTF-8")
    kind = LIBSVM if where.startswith(LIBSVM) else ""
    return kind + os.path.expanduser(where.removeprefix(kind))


def memory_bytes(memory: Any) -> int:
    """Return the bytes of what `memory` says, of a budget all of it; 0 for None."""
    if memory is None:
        return 0
    return memory.cap_bytes if isinstance(memory, Budget) else _tidegate.size_bytes(memory)


def opened(source: Any, memory: Any = None) -> Source:
    """Return a source as it is, or open the one at a path, a pattern or a URL."""
    if isinstance(source, Source):
        return source
    if isinstance(source, list | tuple):
        raise ConfigError(
            "source is a list: name several files with a pattern, such as 'shards/*.tar' or 'shards/{000..099}.tar'"
        )
    if not isinstance(source, str | os.PathLike):
        raise refused("source", source, "a path, a pattern, a URL or a Source, as tg.open returns")
    # Never less than what is usual: a small loader opens what others open.
    return open(source, memory=max(memory_bytes(memory), OPENING_BYTES))


def absolute(where: str) -> str:
    """Return a path that holds in other folders too; a URL as it is."""
    kind = LIBSVM if where.startswith(LIBSVM) else ""
    path = where.removeprefix(kind)
    return where if "://" in path else kind + os.path.join(os.getcwd(), path)


def _again(recipe: Recipe, fingerprint: str) -> Source:
    """Open a source again, where it was pickled."""
    source: Source = recipe.function(*recipe.arguments)
    if source.fingerprint != fingerprint:
        raise DataError(
            f"{source._inner.name}: the data are others than where this source was pickled (fingerprint "
            f"{source.fingerprint} instead of {fingerprint})"
        )
    return source


def _part(source: Source, parts: dict[str, float], seed: int, name: str) -> Source:
    return source.split(parts, seed)[name]


def _tokens(url: str, length: int, dtype: str | None) -> Source:
    return tokens(url, length, dtype=dtype)
