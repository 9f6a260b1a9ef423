"""A model without values: its shapes, bytes and operations, for models larger than memory.

Flow: a model and a batch on `torch.device("meta")` -> fake tensors, which have the bytes of real
ones and choose the kernels of the CPU.
Memory: a few hundred bytes a tensor.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tidegate.errors import ConfigError

__all__ = ["Operations", "faked", "is_fake", "is_meta"]


def is_meta(model: nn.Module) -> bool:
    """Return whether a model has no values."""
    return any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def is_fake(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has bytes and no values."""
    return isinstance(tensor, FakeTensor)


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Counts the floating-point operations of products, convolutions and attention.

    `torch.utils.flop_counter.FlopCounterMode` follows modules too, which `torch.autograd.grad` does
    not allow.

    Attributes:
        total: operations so far; a multiplication and an addition are two.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += int(count(*args, **(kwargs or {}), out_val=result))
        return result


@contextlib.contextmanager
def faked(model: nn.Module, values: Sequence[Sequence[Any]]) -> Iterator[tuple[nn.Module, list[list[Any]]]]:
    """Give a copy of a model of meta tensors, and of values, as fake tensors on the CPU."""
    mode = FakeTensorMode()
    known: dict[int, Any] = {}

    def fake(tensor: torch.Tensor) -> Any:
        if id(tensor) not in known:
            # Under the mode this is a fake tensor.
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            trained = isinstance(tensor, nn.Parameter)
            known[id(tensor)] = nn.Parameter(made, requires_grad=tensor.requires_grad) if trained else made
        return known[id(tensor)]

    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        raise ConfigError("kernels of LSTM, GRU and RNN keep more than shapes tell: build the model with values")
    same = copy.deepcopy(model)
    with mode:
        for module in same.modules():
            for tensors in (module._parameters, module._buffers):
                tensors.update({name: fake(value) for name, value in tensors.items() if value is not None})
        given = [[fake(value) if isinstance(value, torch.Tensor) else value for value in row] for row in values]
        try:
            yield same, given
        except AssertionError as error:
            # torch says so of real tensors among fake ones.
            raise ConfigError(
                f"the step does not run without values ({error}): tensors that are neither parameters nor buffers of "
                "the model, such as weights of a loss, need values; build the model with values"
            ) from None
        except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
            raise ConfigError(
                f"the step needs values, which a model of meta tensors does not have ({error}): build it with values"
            ) from None
