"""Modules that may run in bfloat16, by name, where that is what makes a step fit.

Flow: names -> the nodes of the graph within these modules -> each under autocast; what leaves them
is float32 again.
Memory: what these modules save for backward, in half the bytes, and a copy of their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_map

from tidegate.errors import ConfigError
from tidegate.options import refused, text
from tidegate.torch.graph import Stages, modules_of

__all__ = ["Lowered", "names_of"]


def names_of(given: Any) -> list[str]:
    """Return names that may be given as one text, several, or None."""
    if given is None:
        return []
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list | tuple):
        raise refused("lower_precision", given, "the name of a module, or a list of them")
    return [text("lower_precision", name) for name in given]


class Lowered:
    """The nodes of some modules, and how they run.

    Args:
        stages: of the model.
        names: of modules, or patterns such as "blocks.*.mlp".

    Raises:
        ConfigError: for a name of no module that runs as such, and for parameters that are not
            float32.
    """

    def __init__(self, stages: Stages, names: Sequence[str]) -> None:
        self.nodes: set[fx.Node] = set()
        nodes = [node for stage in stages.stages for node in stage.nodes]
        for name in names:
            found = [node for node in nodes if any(fnmatchcase(own, name) for own in modules_of(node))]
            if not found:
                whole = f"; within {', '.join(stages.whole)} only the whole can be named" if stages.whole else ""
                raise ConfigError(f"lower_precision={name!r} is the name of no module that runs{whole}")
            self.nodes.update(found)
        named = stages.parameters_of(self.nodes)
        if other := [p.dtype for p in named if p.dtype != torch.float32]:
            raise ConfigError(f"lower_precision: a module has parameters of {other[0]}, and only float32 is lowered")
        self._device = next(stages.model.parameters()).device.type

    def run(self, node: fx.Node, call: Callable[[], Any]) -> Any:
        """Run a node, in bfloat16 where it is one of these."""
        if node not in self.nodes:
            return call()
        # Without a cache, in which copies of all weights would stay until the end of the context.
        with torch.autocast(self._device, torch.bfloat16, cache_enabled=False):
            value = call()
        return value if all(user in self.nodes for user in node.users) else tree_map(_raised, value)


def _raised(value: Any) -> Any:
    is_low = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
    return value.float() if is_low else value
