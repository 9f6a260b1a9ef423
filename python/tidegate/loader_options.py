"""The options of a loader: checked, and as the Rust side takes them.

Flow: keyword arguments of `Loader` -> checked values -> JSON; raw batches -> what `output` says.
Memory: holds none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tidegate import ranks
from tidegate.batch import EXTRAS, Batch, present
from tidegate.errors import ConfigError, warn
from tidegate.fields import Field, Window
from tidegate.options import choice, is_row, listed, refused
from tidegate.source import Source

__all__ = [
    "checked_extras",
    "described",
    "json_of",
    "known_ranks",
    "optional",
    "presenter",
    "rows",
    "shuffle_spec",
    "warn_of_order",
]

T = TypeVar("T")


def known_ranks() -> tuple[int, int]:
    """Return the ranks as far as they are known before an epoch begins."""
    try:
        return ranks.found()
    except ConfigError:
        # A framework may still say which process this is; else the first epoch raises.
        return 0, 1


def described(loader: Any, size: str, fields: str, order: str) -> str:
    """Return what `repr` shows of a loader."""
    name, samples, batches = loader.source._inner.name, len(loader.source), loader._batches_in_epoch
    cap, charged = loader.budget.cap_bytes / 2**20, loader.budget.charged_bytes / 2**20
    lines = [
        f"Loader({name!r}, {samples} samples, {batches} batches of {size})",
        f"fields: {fields}",
        f"order: {order}, rank {loader._ranks[0]} of {loader._ranks[1]}",
        f"memory: {cap:.1f} MiB, {charged:.1f} MiB charged",
    ]
    if loader._position is not None:
        epoch, number = loader._position
        lines.append(f"position: epoch {epoch}, batch {number + 1} of {batches}")
    return "\n    ".join(lines)


def optional(check: Callable[..., T], name: str, given: Any, *limits: Any) -> T | None:
    return None if given is None else check(name, given, *limits)


def checked_extras(extras: Any, source: Source, fields: list[Any], only: bool) -> tuple[str, ...]:
    """Return the extras, each once; raise ConfigError for a name that is none, or is taken."""
    given = listed(extras)
    if isinstance(given, str | bytes) or not is_row(given):
        raise refused("extras", extras, 'names of attributes, such as extras=("mask", "ids")')
    names = tuple(dict.fromkeys(choice("extras", name, EXTRAS) for name in given))
    delivered = {name for name, _ in fields} | (set() if only else set(source.schema))
    taken = delivered.intersection(names)
    if taken:
        raise ConfigError(f"extras={names!r}: the data have a field {min(taken)!r} too: leave one of them out")
    return names


def warn_of_order(state: Mapping[str, Any], options: Mapping[str, Any], *, sampled: bool) -> None:
    """Say that a state brings another order than the loader was made with."""
    names = ("seed",) if sampled else ("seed", "shuffle")
    others = [f"{name}={state[name]!r}" for name in names if name in state and _differ(state[name], options[name])]
    if others:
        warn(
            f"this loader goes on with {' and '.join(others)} of the state, not with its own: make it with the order "
            "that was saved"
        )


def _differ(saved: Any, known: Any) -> bool:
    """Return whether an option of a state differs from a loader's; absent parts are 0."""
    if isinstance(saved, Mapping) and isinstance(known, Mapping):
        return any(saved.get(name, 0) != known.get(name, 0) for name in {*saved, *known})
    return bool(saved != known)


def json_of(state: Any) -> str:
    if not isinstance(state, Mapping):
        raise refused("state", state, "what Loader.state_dict() returns")
    try:
        return json.dumps(dict(state))
    except (TypeError, ValueError):
        raise refused("state", state, "what Loader.state_dict() returns") from None


def rows(
    wanted: Mapping[str, Field] | Sequence[str] | None,
    columns: Sequence[str] | None,
    schema: Mapping[str, str],
    left_out: Mapping[str, int],
) -> Iterator[str]:
    """Return what `repr` says of each field that is delivered."""
    given: Mapping[str, Field] = wanted if isinstance(wanted, Mapping) else {}
    names = columns if wanted is None or isinstance(wanted, Mapping) else wanted
    parts = {part for name in given for part in name.split(";")} - set(given)
    inferred = [name for name in schema if name not in left_out and name not in parts]
    for name in dict.fromkeys([*inferred, *given] if names is None else names):
        yield f"{name} {given[name].row() if name in given else schema.get(name, 'joined')}"


# A spec that says what the samples without a field get, by the field's kind.
_SPECS = {"image": 'tg.Image(224, default="zeros")', "int": "tg.Int(default=-1)", "float": "tg.Float(default=0)"}


def warn_of_unnamed(left_out: Mapping[str, int], samples: int, schema: Mapping[str, str]) -> None:
    """Say which fields `fields` does not name and some samples lack: they are not delivered."""
    if left_out:
        lacking = "; ".join(f"{name!r}, which {count} of {samples} samples lack" for name, count in left_out.items())
        name = next(iter(left_out))
        images = [name for name in left_out if schema.get(name) == "image"]
        joined = sum(samples - left_out[name] for name in images) == samples
        spec = _SPECS.get(schema.get(name, ""), "tg.Text(optional=True)")
        each = f"{';'.join(images)!r}: tg.Image(224)" if joined else f"{name!r}: {spec}"
        warn(
            f"fields does not name {lacking}: not delivered. To have it, say what these samples get, as in "
            f"fields={{{each}}}; to leave it out in peace, name the others in columns="
        )


def shuffle_spec(shuffle: Any) -> dict[str, Any]:
    if isinstance(shuffle, Window):
        return shuffle.spec()
    if type(shuffle).__name__ in ("bool", "bool_"):
        return {"kind": "full" if shuffle else "none"}
    samples = shuffle if isinstance(shuffle, int) else 4096
    raise refused("shuffle", shuffle, f"True (a full shuffle), False, or a window, as in tg.Window({samples})")


def presenter(output: str, extras: Sequence[str]) -> Callable[[tuple[Any, ...]], Batch]:
    if output == "numpy":
        return lambda raw: present(raw, extras)
    from tidegate.torch import tensors

    return lambda raw: tensors(present(raw, extras))
