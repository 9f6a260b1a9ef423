"""`profile`: what is in a dataset, in one pass, and what follows from it for training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tidegate import _tidegate
from tidegate.errors import ConfigError
from tidegate.fields import Array, Field, Image, specs
from tidegate.source import Source
from tidegate.source import open as open_source

__all__ = ["Diff", "Profile", "profile"]


class Diff(dict[str, Any]):
    """How two datasets differ; `print` it for a table, index it for figures."""

    text: str = ""

    def __str__(self) -> str:
        return self.text


class Profile:
    """What is in a dataset: `profile` makes one, `Profile.load` reads one.

    `print` it for words; `summary` has all figures: for each field measures (count, mean, std, least and greatest,
    quantiles), how many values differ, how often each came where they are few, the entropy, and advice.

    >>> import tidegate as tg
    >>> found = tg.profile(tg.synthetic(1000, 100), memory="32MiB", save=False)
    >>> found.summary["fields"]["id"]["measures"]["value"]["max"]
    999.0
    """

    def __init__(self, inner: _tidegate.Profile) -> None:
        self._inner = inner

    @staticmethod
    def load(where: str | os.PathLike[str] | Source) -> Profile:
        """Return the profile in a file, or the one beside a dataset."""
        if isinstance(where, Source):
            return Profile(_tidegate.Profile.beside(where._inner))
        return Profile(_tidegate.Profile.find(os.fspath(where)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, whole or not at all."""
        self._inner.save(os.fspath(path))

    @property
    def summary(self) -> dict[str, Any]:
        """All figures, as JSON-able values."""
        return json.loads(self._inner.summary())

    def html(self) -> str:
        """Return a page with histograms that needs nothing from elsewhere."""
        return self._inner.to_html()

    def __str__(self) -> str:
        return str(self._inner)

    def __repr__(self) -> str:
        return f"<Profile: {str(self).splitlines()[0]}>"

    def __reduce__(self) -> Any:
        return _from_json, (self._inner.to_json(),)

    def merge(self, other: Profile) -> None:
        """Take what is known of other data with the same fields: of parts of a dataset, or of another rank."""
        self._inner.merge(_checked(other)._inner)

    def diff(self, other: Profile, *, effect: float = 0.1) -> Diff:
        """Return how `other` differs: a test for each field, and how large the difference is (0 to 1).

        What drifted is what no accident explains (p below 0.01 over all tests together), and differs by `effect` or
        more. `shared` tells what contents are in both: what may have leaked from one into the other.

        >>> import tidegate as tg
        >>> parts = tg.synthetic(2000, 100).split({"train": 0.5, "val": 0.5})
        >>> train, val = (tg.profile(part, memory="32MiB", save=False) for part in parts.values())
        >>> any(drift["drifted"] for drift in train.diff(val)["drifts"])
        False
        """
        text, words = self._inner.diff(_checked(other)._inner, effect)
        diff = Diff(json.loads(text))
        diff.text = words
        return diff

    def normalization(self, field: str) -> dict[str, list[float]]:
        """Return `mean` and `std` of a field, as `tg.Image(..., **this)` takes them: of R, G, B in [0, 1]."""
        advice = self._advice(field)
        if advice["mean"] is None:
            raise ConfigError(f"field {field!r} has nothing to normalize by: it is neither pictures nor floats")
        return {"mean": advice["mean"], "std": advice["std"]}

    def class_weights(self, field: str, *, beta: float | None = None) -> dict[int | str, float]:
        """Return by what each class counts in a loss so that all count the same; the mean over samples is 1.

        With `beta`, by its effective number (1 - beta^n) / (1 - beta) (Cui et al., 2019).

        >>> import tidegate as tg
        >>> found = tg.profile(tg.synthetic(3, 8), memory="32MiB", save=False)
        >>> found.class_weights("id")
        {0: 1.0, 1: 1.0, 2: 1.0}
        """
        return dict(self._inner.class_weights(field, beta))

    def padding(self, field: str, *, batch_size: int = 32, buckets: int = 8) -> dict[str, Any]:
        """Return what padding wastes of random batches, and the `edges` of buckets of lengths that waste least.

        Lengths are characters of text, and the first axes of arrays.
        """
        if batch_size < 1 or buckets < 1:
            raise ConfigError(f"batch_size={batch_size}, buckets={buckets}: both must be at least 1")
        found = self._inner.padding(field, batch_size, buckets)
        if found is None:
            raise ConfigError(f"field {field!r} has no lengths: it is neither text nor arrays, or all are empty")
        return json.loads(found)

    def fields(self, size: int | tuple[int, int] | None = None, **image: Any) -> dict[str, Field]:
        """Return specs that follow from it: what `Loader(fields=profile)` uses.

        Pictures are float32, normalized by their own mean and std, of `size` (if all have one size, that is the
        default; else they stay as they are), with other options of `Image`; arrays that all have one shape are a plain
        column.
        """
        made: dict[str, Field] = {}
        for name, known in self.summary["fields"].items():
            advice = known["advice"]
            if known["sort"] == "picture":
                side = [known["measures"][axis] for axis in ("height", "width")]
                of_all = size
                if size is None and all(s["min"] is not None and s["min"] == s["max"] for s in side):
                    of_all = (int(side[0]["min"]), int(side[1]["min"]))
                if of_all is not None and advice["mean"] is not None:
                    constants = self.normalization(name)
                    made[name] = Image(of_all, **{"dtype": "float32", **constants, **image})
            elif advice["array"] is not None:
                made[name] = Array(*advice["array"])
        return made

    def _advice(self, field: str) -> dict[str, Any]:
        fields = self.summary["fields"]
        if field not in fields:
            raise ConfigError(f"this profile has no field {field!r}; it has {', '.join(fields)}")
        return fields[field]["advice"]


def _checked(given: Any) -> Profile:
    if not isinstance(given, Profile):
        raise ConfigError(f"give a Profile, such as tg.Profile.load({given!r})")
    return given


def _from_json(text: str) -> Profile:
    return Profile(_tidegate.Profile.from_json(text))


def profile(
    source: str | os.PathLike[str] | Source,
    *,
    memory: int | float | str | _tidegate.Budget,
    fields: Mapping[str, Field] | Sequence[str] | None = None,
    workers: int | None = None,
    save: bool | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Profile:
    """Profile a dataset in one pass over all fields, in parallel, within the budget.

    Args:
        source: as of `Loader`.
        memory: as of `Loader`.
        fields: names of those that are wanted, or specs: what is profiled is what they deliver.
        workers: decoding threads; whatever their number, the profile is the same, but for the quantiles, whose sketches
            draw at random: they are right within their errors.
        save: writes it beside the data's index, where `Profile.load` finds it; by default if the data have one, and all
            fields are profiled.
        progress: called as `progress(samples done, samples)`.

    Samples that cannot be decoded are left out, counted and named; a field that a sample lacks is counted as missing.

    >>> import tidegate as tg
    >>> print(tg.profile(tg.synthetic(100, 8), memory="32MiB", save=False))  # doctest: +ELLIPSIS
    synthetic...: 100 of 100 samples, 0.0 MiB, 0 failed
    ...
    """
    opened = source if isinstance(source, Source) else open_source(os.fspath(source))
    wanted, only = specs(fields, opened.schema)
    options = {"fields": wanted, "only": only, "workers": workers}
    budget = memory if isinstance(memory, _tidegate.Budget) else _tidegate.Budget.process(memory)
    # Before the pass, so that nothing is lost where there is no place.
    path = None if save is False or (save is None and fields is not None) else _place(opened, must=bool(save))
    made = Profile(_tidegate.profile(opened._inner, json.dumps(options), budget, progress))
    if path is not None:
        made.save(path)
    return made


def _place(source: Source, must: bool) -> str | None:
    try:
        return os.fspath(_tidegate.Profile.path_of(source._inner))
    except ConfigError:
        if must:
            raise
        return None
