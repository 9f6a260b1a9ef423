"""The global random generators of Python, NumPy and torch, when a user's functions draw from them.

Flow: in a worker process `Seeder` seeds them before each call -> draws follow from (seed, epoch,
position); in the training process `Watch` finds a function that draws from them.
Memory: holds none.
"""

from __future__ import annotations

import random
import sys
import threading
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np

from tidegate.errors import warn

__all__ = ["Seeder", "Watch"]

T = TypeVar("T")

_MASK = 2**64 - 1
# How deep `_seedable` looks into what a function refers to.
_DEPTH = 4


def _mixed(*words: int) -> int:
    """Return 64 bits that follow from the words (splitmix64, Steele et al., 2014)."""
    state = 0
    for word in words:
        state = (state ^ (word & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def _word(seed: int, kind: int, epoch: int, position: int) -> int:
    """Return 64 bits to seed with. Their lower half is another one for each position of an epoch.

    torch's generator takes no more than 32 bits of a seed: by chance alone, two of 100,000 would
    be the same. The mixing is that of MurmurHash3 (Appleby, 2011), which is one to one.
    """
    low = (position ^ _mixed(seed, kind, epoch)) & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        low = (low ^ low >> shift) * factor & 0xFFFFFFFF
    low ^= low >> 16
    return (_mixed(seed, kind, epoch, position) >> 32 << 32) | low


class Seeder:
    """Seeds the global generators, and objects with a generator of their own, before a call.

    Objects with a method `set_random_seed`, as Albumentations' `Compose` has, get that call. They
    are found among what the functions refer to.
    """

    def __init__(self, functions: list[Callable[..., Any]], seed: int) -> None:
        self.seed = seed
        self.objects = _seedable(functions)

    def __call__(self, kind: int, epoch: int, position: int) -> None:
        """Seed for a sample (`kind` 0) or a batch (`kind` 1)."""
        word = _word(self.seed, kind, epoch, position)
        random.seed(word)
        np.random.seed([word & 0xFFFFFFFF, word >> 32])
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.default_generator.manual_seed(word & _MASK >> 1)
        for found in self.objects:
            try:
                found.set_random_seed(word & _MASK >> 1)
            except (ValueError, OverflowError):
                # Some take 32 bits only.
                found.set_random_seed(word & 0xFFFFFFFF)


class Watch:
    """Finds functions that draw from the global generators of the training process.

    It looks at the first batch of a loader, within the first `next`, and gives the generators
    their state back. A function that draws from them is not repeatable there, so it warns.
    """

    def __init__(self, functions: list[Callable[..., Any]]) -> None:
        self.functions = functions
        self.lock = threading.Lock()
        self.begun = False
        self.done = threading.Event()

    def __call__(self, call: Callable[[], T]) -> T:
        """Return what `call` returns; the first call is watched, and others wait for its end."""
        with self.lock:
            first, self.begun = not self.begun, True
        if not first:
            self.done.wait()
            return call()
        before = _states()
        try:
            return call()
        finally:
            if not self.done.is_set():
                self._tell(before)

    def give_up(self) -> None:
        """Watch no longer: the first call may never return."""
        self.done.set()

    def _tell(self, before: dict[str, Any]) -> None:
        try:
            used = _restored(before)
            used += sorted({type(found).__name__ for found in _seedable(self.functions)})
            if used:
                warn(_WORDS.format(" and ".join(used)))
        finally:
            self.done.set()


_WORDS = (
    "a transform draws from {}, so its augmentation does not follow from the seed and is not the same after a resume: "
    "draw from its argument `rng`, or pass processes=N, where these generators are seeded before each sample"
)


def _states() -> dict[str, Any]:
    states: dict[str, Any] = {"random": random.getstate(), "numpy.random": np.random.get_state()}
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.default_generator.get_state()
    return states


def _restored(before: dict[str, Any]) -> list[str]:
    """Return the generators that were used since, with the state of before."""
    used = []
    now = _states()
    if now["random"] != before["random"]:
        used.append("random")
        random.setstate(before["random"])
    if any(not np.array_equal(a, b) for a, b in zip(now["numpy.random"], before["numpy.random"], strict=True)):
        used.append("numpy.random")
        np.random.set_state(before["numpy.random"])
    if "torch" in before and not bool((now["torch"] == before["torch"]).all()):
        used.append("torch")
        sys.modules["torch"].default_generator.set_state(before["torch"])
    return used


def _seedable(functions: list[Callable[..., Any]]) -> list[Any]:
    """Return the objects with `set_random_seed` that the functions refer to."""
    found: list[Any] = []
    seen: set[int] = set()
    left = [(function, 0) for function in functions]
    while left:
        value, depth = left.pop()
        if id(value) in seen or isinstance(value, type | types.ModuleType):
            continue
        seen.add(id(value))
        if callable(getattr(value, "set_random_seed", None)):
            # Its parts are its own to seed.
            found.append(value)
        elif depth < _DEPTH:
            left.extend((part, depth + 1) for part in _parts(value))
    return found


def _parts(value: Any) -> Iterator[Any]:
    """Return what a function, a method, a partial, a container or an object refers to."""
    if isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:
                # Its variable is not set yet.
                continue
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
        names = _names(value.__code__)
        yield from (value.__globals__[name] for name in names if name in value.__globals__)
    elif isinstance(value, list | tuple):
        yield from value[:64]
    elif isinstance(value, dict):
        yield from list(value.values())[:64]
    elif hasattr(value, "__dict__") and callable(value):
        yield from list(vars(value).values())[:64]
        yield type(value).__call__


def _names(code: types.CodeType) -> set[str]:
    """Return the global names that code and the functions within it use."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names
