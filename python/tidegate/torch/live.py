"""The bytes of all tensors that live, as operations make and drop them.

Flow: every operation of torch, by a dispatch mode -> storages -> bytes now and at the peak.
Memory: a few words a storage; a storage that dies is forgotten by a weak reference.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Live", "storage_bytes", "storage_key", "tensors_in"]


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return the tensors within lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def storage_key(tensor: torch.Tensor) -> int:
    """Return what is the same for two tensors over one storage, while it lives."""
    return int(tensor.untyped_storage()._cdata)


def storage_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor's storage."""
    return tensor.untyped_storage().nbytes()


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the dense tensors that a sparse one consists of."""
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    return [tensor.values()] if tensor.layout in (torch.sparse_csr, torch.sparse_bsr) else []


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Counts the storages that operations within it make, and those that it is told of.

    Attributes:
        now: bytes that live.
        peak: the most that lived since `reset`.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in known:
            self.add(tensor)
        self.reset()

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, if it is not counted yet; of a sparse tensor its parts."""
        if tensor.layout != torch.strided:
            for part in _parts(tensor):
                self.add(part)
            return
        key, size = storage_key(tensor), storage_bytes(tensor)
        known = self._sizes.get(key)
        if known is None:
            finalizer = weakref.finalize(tensor.untyped_storage(), self._drop, key)
            finalizer.atexit = False
        if known != size:
            self._sizes[key] = size
            self.now += size - (known or 0)
            self.peak = max(self.peak, self.now)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def reset(self) -> None:
        """Begin a new peak."""
        self.peak = self.now

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self.add(tensor)
        return result
