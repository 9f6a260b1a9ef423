"""What all planners share: JSON to and from the Rust crate, and checks of dataclasses.

Flow: a request -> `_tidegate.plan_training` -> an answer -> dataclasses.
Memory: holds none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from tidegate import _tidegate
from tidegate.options import integer, is_row, listed, number, refused

T = TypeVar("T")

# The most bytes of one figure.
MOST_BYTES = 2**42
# Times and ratios beyond this are no measurements.
MOST = 1e30


def ask(name: str, request: Any) -> Any:
    """Run a planner of the Rust crate."""
    return json.loads(_tidegate.plan_training(name, json.dumps(request)))


def made(kind: type[T], answer: Mapping[str, Any]) -> T:
    """Return a dataclass from the fields that it has."""
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    known = {name: answer[name] for name in names if name in answer}
    return kind(**known)


def size(name: str, given: Any) -> int:
    """Return bytes of one figure."""
    return integer(name, given, 0, MOST_BYTES)


def size_of(memory: Any) -> int:
    """Return the bytes of a budget: an int, text such as "8GiB", or a fraction of the limit."""
    return integer("memory", memory, 0) if isinstance(memory, int) else _tidegate.size_bytes(memory)


def positive(name: str, given: Any) -> float:
    """Return a number above 0."""
    value = number(name, given, 0, MOST)
    if value == 0:
        raise refused(name, given, "a number above 0")
    return value


def one_of(name: str, given: Any, kind: type[T]) -> T:
    """Return a value of a class."""
    if not isinstance(given, kind):
        raise refused(name, given, f"a {kind.__name__}")
    return given


def all_of(name: str, given: Any, kind: type[T]) -> list[T]:
    """Return a list of values of a class."""
    values = listed(given)
    if not isinstance(values, list | tuple):
        raise refused(name, given, f"a list of {kind.__name__}")
    return [one_of(f"{name}[{i}]", value, kind) for i, value in enumerate(values)]


def rows(name: str, given: Any) -> list[Any]:
    """Return the items of a list, a tuple or an array."""
    values = listed(given)
    if isinstance(values, str | bytes) or not is_row(values):
        raise refused(name, given, "a list")
    return list(values)
