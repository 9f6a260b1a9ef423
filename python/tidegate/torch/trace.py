"""A module taken apart by `torch.fx`; what cannot be is one node.

Flow: a module, how many inputs it gets -> nodes in the order in which they run.
Memory: a few words a node.

A module stays whole where its forward depends on values, draws random numbers to decide, changes
its attributes, or runs a part without gradients or in another precision: `torch.fx` would note
what happened once, and none of the contexts.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from tidegate.errors import ConfigError
from tidegate.torch.kept import Kept

__all__ = ["CONSTANT", "hooked", "trace"]

# Where a node has the tensor that it stands for.
CONSTANT = "tidegate.constant"
WRAPPED = ("OptimizedModule", "DistributedDataParallel", "FullyShardedDataParallel", "DataParallel")


def _modes() -> tuple[Any, ...]:
    """Return what a context manager may have changed for the operations within it."""
    autocast = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


class _Tracer(fx.Tracer):
    """Takes modules apart, except those of torch and those that must stay whole."""

    # Otherwise a forward that writes to a buffer would do so while it is taken apart.
    proxy_buffer_attributes = True

    def __init__(self, whole: set[nn.Module]) -> None:
        super().__init__()
        self.whole = whole
        self.modes = _modes()

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return module in self.whole or super().is_leaf_module(module, name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self.modes:
            raise ConfigError("a part of it runs without gradients, or in another precision")
        return super().create_node(*args, **kwargs)


def hooked(module: nn.Module) -> bool:
    """Return whether a module has hooks, which run only where it is called."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _taken_apart(module: nn.Module, whole: set[nn.Module], defaults: dict[str, Any]) -> fx.Graph:
    """Return the graph of a module, and leave the module as it was."""
    if hooked(module):
        raise ConfigError("its hooks run only where it is called")
    if "forward" in module.__dict__:
        raise ConfigError("its forward was set on the object")
    kept = Kept(module)
    try:
        graph = _Tracer(whole).trace(module, concrete_args=defaults or None)
        _keep_constants(graph, module)
        change = kept.change()
        drew = kept.drew()
    finally:
        kept.restore()
    if change is not None:
        raise ConfigError(change)
    if drew:
        raise ConfigError("it draws random numbers to decide what to do")
    return graph


def _keep_constants(graph: fx.Graph, module: nn.Module) -> None:
    """Keep tensors that a forward makes, such as positions, in their nodes, not in the module."""
    for node in graph.nodes:
        name = str(node.target)
        if node.op == "get_attr" and name.startswith("_tensor_constant") and name in module.__dict__:
            node.meta[CONSTANT] = module.__dict__[name]
    for name in {str(node.target) for node in graph.nodes if CONSTANT in node.meta}:
        delattr(module, name)


def _defaults(model: nn.Module, inputs: int) -> dict[str, Any]:
    """Return the defaults of what the batch does not have, as the forward would see them."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise ConfigError(f"the forward of {type(model).__name__} takes *args or **kwargs: give its inputs names")
    rest = parameters[inputs:]
    if len(parameters) < inputs or any(p.default is p.empty for p in rest):
        what = "one input" if len(parameters) == 1 else f"{len(parameters)} inputs"
        raise ConfigError(f"the model takes {what}, and the batch has {inputs}: say which with inputs=")
    return {p.name: p.default for p in rest}


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Return the modules within a model; children come before what contains them."""
    return ((name, module) for name, module in reversed(list(model.named_modules())) if module is not model)


def trace(model: nn.Module, inputs: int) -> tuple[fx.Graph, list[str]]:
    """Return the graph of a model, and the names of modules that cannot be taken apart."""
    if type(model).__name__ in WRAPPED:
        raise ConfigError(f"the model is a {type(model).__name__}: give the module that it wraps")
    defaults = _defaults(model, inputs)
    whole: set[nn.Module] = set()
    names: list[str] = []
    for name, module in _parts(model):
        if not _Tracer(whole).is_leaf_module(module, name):
            try:
                _taken_apart(module, whole, {})
            except Exception:
                whole.add(module)
                names.append(name)
    try:
        return _taken_apart(model, whole, defaults), names
    except Exception as error:
        raise ConfigError(
            f"the forward of {type(model).__name__} cannot be taken apart into stages ({error}): move what is in its "
            "way into a module of its own, which then stays whole"
        ) from None
