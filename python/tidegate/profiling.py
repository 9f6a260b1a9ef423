"""`profile`: what is in a dataset, in one pass, and what follows from it for training.

Flow: a source -> `_tidegate.profile`, one pass -> `Profile` -> field specs, weights, a page.
Memory: as of the loader that makes the pass; sketches are charged to the account `telemetry`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tidegate import _tidegate
from tidegate.errors import ConfigError
from tidegate.fields import Array, Field, Image, specs
from tidegate.options import MOST_THREADS, as_path, flag, function, integer, number
from tidegate.source import Source, opened

__all__ = ["Diff", "Profile", "profile"]


class Diff(dict[str, Any]):
    """How two datasets differ, as a dict of figures; `print` it for a table."""

    text: str = ""

    def __str__(self) -> str:
        return self.text


class Profile:
    """What is in a dataset; made by `profile`, or read by `Profile.load`.

    `print` shows it in words. `summary` has all figures of each field: count, mean, std, least and
    greatest value, quantiles, the number of different values, how often each comes where they are
    few, the entropy, and advice.

    >>> import tidegate as tg
    >>> found = tg.profile(tg.synthetic(1000, 100), memory="32MiB", save=False)
    >>> found.summary["fields"]["id"]["measures"]["value"]["max"]
    999.0
    """

    def __init__(self, inner: _tidegate.Profile) -> None:
        self._inner = inner

    @staticmethod
    def load(where: str | os.PathLike[str] | Source) -> Profile:
        """Return a saved profile.

        Args:
            where: a file that `save` wrote, or a dataset (a path or a `Source`) whose profile is
                next to its index.

        Raises ConfigError for a file that is no profile, and where there is none.
        """
        if isinstance(where, Source):
            return Profile(_tidegate.Profile.beside(where._inner))
        return Profile(_tidegate.Profile.find(as_path("where", where)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile to a file, as a whole or not at all."""
        self._inner.save(as_path("path", path))

    @property
    def summary(self) -> dict[str, Any]:
        """All figures, as JSON-able values."""
        figures: dict[str, Any] = json.loads(self._inner.summary())
        return figures

    def html(self) -> str:
        """Return an HTML page with histograms; it loads nothing from elsewhere."""
        return self._inner.to_html()

    def __str__(self) -> str:
        return str(self._inner)

    def __repr__(self) -> str:
        return f"<Profile: {str(self).splitlines()[0]}>"

    def __reduce__(self) -> Any:
        return _from_json, (self._inner.to_json(),)

    def merge(self, other: Profile) -> None:
        """Add the profile of other data with the same fields: another part, or another rank."""
        self._inner.merge(_checked(other)._inner)

    def diff(self, other: Profile, *, effect: float = 0.1) -> Diff:
        """Return how `other` differs: for each field a test, and the size of the difference.

        A field has drifted if chance does not explain the difference (p below 0.01 over all tests
        together) and its size is at least `effect`. `shared` counts contents that are in both:
        what may have leaked from one into the other.

        Args:
            other: the profile of other data with the same fields.
            effect: the least size of a drift, 0 to 1; by default 0.1.

        >>> import tidegate as tg
        >>> parts = tg.synthetic(2000, 100).split({"train": 0.5, "val": 0.5})
        >>> train, val = (tg.profile(part, memory="32MiB", save=False) for part in parts.values())
        >>> any(drift["drifted"] for drift in train.diff(val)["drifts"])
        False
        """
        text, words = self._inner.diff(_checked(other)._inner, number("effect", effect, 0.0, 1.0))
        diff = Diff(json.loads(text))
        diff.text = words
        return diff

    def normalization(self, field: str) -> dict[str, list[float]]:
        """Return {"mean", "std"} of a field, for `tg.Image(..., **these)`: of R, G, B in [0, 1].

        Raises ConfigError for a field that is neither images nor floats.
        """
        advice = self._advice(field)
        if advice["mean"] is None:
            raise ConfigError(f"field {field!r} cannot be normalized: it is neither images nor floats")
        return {"mean": advice["mean"], "std": advice["std"]}

    def class_weights(self, field: str, *, beta: float | None = None) -> dict[int | str, float]:
        """Return {class: weight in the loss} so that all classes count the same.

        The mean weight over all samples is 1.

        Args:
            field: the field of the class.
            beta: weighs by the effective number of samples, (1 - beta^n) / (1 - beta) (Cui et al.
                2019); by default by the number of samples.

        >>> import tidegate as tg
        >>> found = tg.profile(tg.synthetic(3, 8), memory="32MiB", save=False)
        >>> found.class_weights("id")
        {0: 1.0, 1: 1.0, 2: 1.0}
        """
        beta = None if beta is None else number("beta", beta, 0.0, 1.0)
        return dict(self._inner.class_weights(self._named(field), beta))

    def padding(self, field: str, *, batch_size: int = 32, buckets: int = 8) -> dict[str, Any]:
        """Return how much padding random batches waste, and the `edges` of the best buckets.

        Lengths are characters of text, or the first axis of arrays.

        Args:
            field: a field of text or arrays.
            batch_size: samples in a batch, an int; by default 32.
            buckets: buckets of lengths, an int; by default 8.

        Raises ConfigError for a field without lengths.
        """
        sizes = integer("batch_size", batch_size, 1, 2**32 - 1), integer("buckets", buckets, 1, 2**16)
        found = self._inner.padding(self._named(field), *sizes)
        if found is None:
            raise ConfigError(f"field {field!r} has no lengths: it is neither text nor arrays, or all are empty")
        waste: dict[str, Any] = json.loads(found)
        return waste

    def fields(self, size: int | tuple[int, int] | None = None, **image: Any) -> dict[str, Field]:
        """Return the field specs that follow from the profile: what `Loader(fields=profile)` uses.

        Images become float32, normalized by their own mean and std. Arrays of one shape become a
        plain column.

        Args:
            size: of images; by default their size if all have the same one. Otherwise they are not
                named, and stay as they are.
            image: other options of `tg.Image`, such as `crop="random"`.
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
        advice: dict[str, Any] = self.summary["fields"][self._named(field)]["advice"]
        return advice

    def _named(self, field: str) -> str:
        """Return a field that the profile has."""
        fields = self.summary["fields"]
        if not isinstance(field, str) or field not in fields:
            raise ConfigError(f"this profile has no field {field!r}; it has {', '.join(fields)}")
        return field


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

    The profile leaves out samples that cannot be decoded, and counts and names them. A field that
    a sample lacks counts as missing.

    Args:
        source: a path, a pattern, a URL or a `Source`.
        memory: the budget, as of `Loader`.
        fields: names, or {name: spec}: the profile is of what these specs deliver. By default all
            fields, inferred.
        workers: decoding threads, an int; by default the cores that this process may use. The
            profile does not depend on them, except for quantiles, whose sketches draw at random
            within their stated errors.
        save: writes the profile next to the data's index, where `Profile.load` finds it. By
            default if the data have an index and all fields are profiled.
        progress: called as `progress(samples done, samples)`.

    >>> import tidegate as tg
    >>> print(tg.profile(tg.synthetic(100, 8), memory="32MiB", save=False))  # doctest: +ELLIPSIS
    synthetic...: 100 of 100 samples, 0.0 MiB, 0 failed
    ...
    """
    data = opened(source, memory)
    function("progress", progress)
    workers = None if workers is None else integer("workers", workers, 1, MOST_THREADS)
    save = None if save is None else flag("save", save)
    wanted, only = specs(fields, None, data.schema)
    options = {"fields": wanted, "only": only, "workers": workers}
    budget = memory if isinstance(memory, _tidegate.Budget) else _tidegate.Budget.process(memory)
    # Found before the pass: without a place to save it, the pass would be lost.
    path = None if save is False or (save is None and fields is not None) else _place(data, must=bool(save))
    made = Profile(_tidegate.profile(data._inner, json.dumps(options), budget, progress))
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
