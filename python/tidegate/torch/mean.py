"""Whether a batch may be cut: the model treats samples one by one, and the loss is their mean.

Flow: a model, a loss, a batch -> the whole and its pieces, without gradients -> an error in words.
Memory: the outputs of the batch, for a moment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from tidegate.errors import ConfigError
from tidegate.torch.graph import frozen
from tidegate.torch.kept import Kept

__all__ = ["check_mean"]

# How far a weighted sum of losses may be from the loss of the whole.
SAME = 1e-3


@contextlib.contextmanager
def _steady(model: nn.Module) -> Iterator[None]:
    """Turn off dropout, and batch normalization's statistics of the batch; then put all back."""
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    changed = [module for module in model.modules() if isinstance(module, kinds) and module.training]
    kept = Kept(model)
    for module in changed:
        module.training = False
    try:
        with torch.no_grad(), frozen(model.modules()):
            yield
    finally:
        for module in changed:
            module.training = True
        kept.restore()


def check_mean(
    model: nn.Module, loss: Callable[..., torch.Tensor], inputs: list[Any], targets: list[Any], size: int
) -> None:
    """Check that pieces of `size` samples, weighted by their sizes, give what the batch gives.

    Raises:
        ConfigError: where samples depend on one another, or the loss is no mean over samples.
    """
    tensors = [value for value in [*inputs, *targets] if isinstance(value, torch.Tensor) and value.dim()]
    samples = tensors[0].shape[0]

    def cut(value: Any, at: int) -> Any:
        is_part = isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == samples
        return value[at : at + size].clone() if is_part else value

    with _steady(model):
        output, again = model(*inputs), model(*inputs)
        if not all(
            isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == samples for leaf in _leaves(output)
        ):
            raise ConfigError(
                "the model returns something that has no first axis of samples, such as its own loss: a batch can be "
                "cut only where it has; give micro_batches=1"
            )
        whole = loss(output, *targets)
        total = torch.zeros_like(whole)
        steady = all(torch.equal(a, b) for a, b in zip(_leaves(output), _leaves(again), strict=True))
        for at in range(0, samples, size):
            part = tree_map(lambda value, at=at: cut(value, at), output)
            wanted = [cut(value, at) for value in targets]
            total += loss(part, *wanted) * (min(size, samples - at) / samples)
            if steady:
                alone = model(*[cut(value, at) for value in inputs])
                _check_alone(part, alone)
    if not torch.allclose(whole.float(), total.float(), rtol=SAME, atol=1e-6):
        raise ConfigError(
            f"the loss of the batch is {whole.item():.6g}, and that of its micro-batches, weighted by size, "
            f"{total.item():.6g}: a batch can be cut only where the loss is a mean over samples. Give micro_batches=1, "
            "or a loss that is"
        )


def _leaves(output: Any) -> list[Any]:
    return [leaf for leaf in tree_leaves(output) if leaf is not None]


def _check_alone(part: Any, alone: Any) -> None:
    """Check that samples have the same output without the others."""
    for one, other in zip(_leaves(part), _leaves(alone), strict=True):
        if one.shape != other.shape or not torch.allclose(one.float(), other.float(), rtol=1e-2, atol=1e-4):
            raise ConfigError(
                "the output of samples depends on the other samples of their batch: cut, it would be another model. "
                "Give micro_batches=1"
            )
