"""What a module is before something runs it, to see what that changed, and to undo it.

Flow: a module -> its attributes, buffers and parameters -> what differs afterwards, in words.
Memory: a copy of every buffer and of every other tensor that is an attribute.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import unset_fake_temporarily

from tidegate.torch.fake import is_fake

__all__ = ["Draws", "Kept", "close", "same", "undrawn"]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors have the same values; NaN is the same as NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if is_fake(one):
        return True
    return bool(torch.all((one == other) | ((one != one) & (other != other))))


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are equal up to what another kernel rounds differently.

    With and without gradients torch has different kernels, for example of LSTM.
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if is_fake(one):
        return True
    low = one.dtype in (torch.float16, torch.bfloat16)
    return torch.allclose(one, other, rtol=2e-2 if low else 1e-3, atol=1e-2 if low else 1e-5, equal_nan=True)


def _random_state() -> tuple[Any, Any, Any]:
    """Return the states of Python's, NumPy's and torch's generators, to compare them."""
    keys: Any = np.random.get_state()
    with unset_fake_temporarily():
        own = torch.get_rng_state().numpy().tobytes()
    return random.getstate(), (keys[1].tobytes(), *keys[2:]), own


# The last states, which all that ask before another draw share: they take 30 KiB.
_LAST: list[tuple[Any, Any]] = []


def _states() -> tuple[Any, Any]:
    """Return the states of Python's and NumPy's generators."""
    now: tuple[Any, Any] = random.getstate(), np.random.get_state()
    if _LAST and _LAST[0][0] == now[0]:
        (name, keys, *rest), (other, others, *after) = _LAST[0][1], now[1]
        if (name, rest) == (other, after) and np.array_equal(keys, others):
            return _LAST[0]
    _LAST[:] = [now]
    return now


class Draws:
    """The states of Python's and NumPy's generators, which torch's checkpoint does not replay."""

    def __init__(self) -> None:
        self._states = _states()

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Note where the generators are when a forward begins."""
        self._states = _states()
        yield

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Run the same forward again with the same draws, and go on where the generators are."""
        now = Draws()
        self.set()
        try:
            yield
        finally:
            now.set()

    def set(self) -> None:
        """Put the generators back."""
        random.setstate(self._states[0])
        np.random.set_state(self._states[1])


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Put all generators back at the end: Python's, NumPy's, and torch's on all devices."""
    draws = Draws()
    # Tensors without values draw nothing.
    with torch.random.fork_rng(enabled=active_fake_mode() is None):
        try:
            yield
        finally:
            draws.set()


class Kept:
    """The attributes of a module and of all within it, as they are now."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(name, m, dict(m.__dict__), _copies(m.__dict__)) for name, m in model.named_modules()]
        tensors = {id(t): t for *_, attributes, _ in self._modules for t in attributes.values() if _is_tensor(t)}
        tensors |= {id(buffer): buffer for buffer in model.buffers()}
        self._names = {id(buffer): repr(name) for name, buffer in model.named_buffers()}
        self._values = [(t, t.detach().clone()) for t in tensors.values()]
        self._versions = [(name, p, p._version) for name, p in model.named_parameters()]
        with unset_fake_temporarily():
            self._draws, self._torch = Draws(), torch.get_rng_state()
        self._random = _random_state()

    def change(self) -> str | None:
        """Return what has changed since, in words; None where nothing has."""
        for name, module, attributes, copies in self._modules:
            for key in module.__dict__.keys() | attributes.keys():
                now = module.__dict__.get(key, self)
                if now is not attributes.get(key, self) or (key in copies and not _equal(now, copies[key])):
                    return f"{type(module).__name__} {_at(name)}changes its attribute {key!r}"
        for tensor, value in self._values:
            if not same(tensor.detach(), value):
                return f"the model writes to its buffer {self._names.get(id(tensor), 'or attribute')}"
        for name, parameter, version in self._versions:
            if parameter._version != version:
                return f"the model writes to its parameter {name!r}"
        return None

    def drew(self) -> bool:
        """Return whether random numbers were drawn since."""
        return _random_state() != self._random

    def restore(self) -> None:
        """Undo what has changed, values of parameters excepted."""
        for _, module, attributes, copies in self._modules:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for key, copied in copies.items():
                _refill(attributes[key], copied)
        for tensor, value in self._values:
            if not same(tensor.detach(), value):
                with torch.no_grad():
                    tensor.copy_(value)
        self._draws.set()
        with unset_fake_temporarily():
            torch.set_rng_state(self._torch)


def _at(name: str) -> str:
    return f"({name}) " if name else ""


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter)


def _copies(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return copies of the lists, dicts and sets among attributes, which change in place.

    The parameters, buffers and modules of a module are among them.
    """
    return {key: value.copy() for key, value in attributes.items() if isinstance(value, list | dict | set)}


def _equal(now: Any, then: Any) -> bool:
    """Return whether a container has the same items; tensors are compared by identity."""
    if type(now) is not type(then) or len(now) != len(then):
        return False
    if isinstance(then, dict):
        return now.keys() == then.keys() and all(now[key] is then[key] for key in then)
    if isinstance(then, set):
        return bool(now == then)
    return all(a is b for a, b in zip(now, then, strict=True))


def _refill(container: Any, then: Any) -> None:
    if isinstance(container, list):
        container[:] = then
    elif not _equal(container, then):
        container.clear()
        container.update(then)
