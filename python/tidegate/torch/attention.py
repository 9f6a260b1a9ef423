"""Attention that a model spells out: backward keeps its scores; fused attention keeps none.

Flow: operations of a forward -> a product of matrices, `softmax` over its rows, another product ->
the bytes that backward keeps between the two.
Memory: a few words for each tensor of scores that lives.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tidegate.torch.live import storage_key, tensors_in

__all__ = ["SpelledOut", "SpelledOutAttention", "advice"]

# What may come between the two products, and changes no sizes.
BETWEEN = frozenset([
    "view", "_unsafe_view", "reshape", "expand", "clone", "alias", "detach", "unsqueeze", "squeeze", "_to_copy",
    "div", "div_", "mul", "mul_", "add", "add_", "sub", "sub_", "rsub", "neg", "tanh", "masked_fill", "masked_fill_",
    "where", "_softmax", "native_dropout", "empty_like", "bernoulli_",
])  # fmt: skip
PRODUCTS = frozenset(["bmm", "baddbmm"])


@dataclass
class SpelledOutAttention:
    """Attention in a module that keeps its scores.

    Attributes:
        name: the module.
        bytes: what `torch.nn.functional.scaled_dot_product_attention` would not keep for backward,
            for the batch that was profiled.
        dropout: whether weights are dropped; on the CPU torch's fused attention does not do that.
    """

    name: str
    bytes: int
    dropout: bool


@dataclass
class _Scores:
    """A product, and what was made of it element by element."""

    numel: int
    rows: int
    softmax: bool = False
    dropout: bool = False
    found: str | None = None
    # Of what backward keeps: bytes of storages that live, and of those that are gone.
    kept: dict[int, int] = field(default_factory=dict)
    bytes: int = 0


class SpelledOut(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Follows what a forward makes of the products of matrices.

    Attributes:
        name: the module that runs.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.name = ""
        self._all: list[_Scores] = []
        self._of: dict[int, _Scores] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if name in PRODUCTS or name in BETWEEN:
            self._note(name, args, result)
        return result

    def _note(self, name: str, args: Any, result: Any) -> None:
        given = [self._of[key] for t in tensors_in(args) if (key := storage_key(t)) in self._of]
        if name in PRODUCTS:
            for scores in given:
                if scores.softmax:
                    scores.found = scores.found or self.name
            self._all.append(_Scores(result.numel(), result.numel() // max(1, result.shape[-1])))
            self._tag(result, self._all[-1])
            return
        for scores in given[:1]:
            scores.softmax |= name == "_softmax" and args[1] in (-1, args[0].dim() - 1)
            scores.dropout |= name in ("native_dropout", "bernoulli_")
            for tensor in tensors_in(result):
                if tensor.numel() == scores.numel:
                    self._tag(tensor, scores)

    def _tag(self, tensor: torch.Tensor, scores: _Scores) -> None:
        key = storage_key(tensor)
        if key not in self._of:
            weakref.finalize(tensor.untyped_storage(), self._drop, key).atexit = False
        self._of[key] = scores

    def _drop(self, key: int) -> None:
        scores = self._of.pop(key)
        scores.bytes += scores.kept.pop(key, 0)

    def kept(self, storages: Iterable[tuple[int, int]]) -> None:
        """Note storages that backward keeps, and their bytes."""
        for key, size in storages:
            if key in self._of:
                self._of[key].kept[key] = size

    def found(self) -> list[SpelledOutAttention]:
        """Return the attention of all modules that spell it out and keep its scores."""
        sizes: dict[str, SpelledOutAttention] = {}
        for scores in (scores for scores in self._all if scores.found is not None):
            # Fused attention keeps a number for each row instead.
            size = scores.bytes + sum(scores.kept.values()) - 4 * scores.rows
            if size > 0:
                one = sizes.setdefault(scores.found or "", SpelledOutAttention(scores.found or "", 0, False))
                one.bytes, one.dropout = one.bytes + size, one.dropout or scores.dropout
        return list(sizes.values())


def advice(found: Sequence[SpelledOutAttention], on_device: bool) -> str | None:
    """Return what fused attention would save, in words; None where there is nothing to save."""
    usable = [one for one in found if on_device or not one.dropout]
    if not found:
        return None
    names = ", ".join(one.name for one in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    kept = f"Attention is spelled out in {names}: in one piece, a batch keeps {_mib(found)} of scores"
    fused = "torch.nn.functional.scaled_dot_product_attention"
    if not usable:
        return f"{kept}. {fused} would keep none, but on the CPU it keeps them too where there is dropout."
    return f"{kept}. {fused} would keep {'none of them' if len(usable) == len(found) else _mib(usable) + ' less'}."


def _mib(found: Sequence[SpelledOutAttention]) -> str:
    return f"{sum(one.bytes for one in found) / (1 << 20):.1f} MiB"
