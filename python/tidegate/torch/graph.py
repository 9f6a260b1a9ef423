"""A model as stages that run one after another.

Flow: a module, inputs -> `torch.fx` -> nodes -> where they can be cut -> `Stages`.
Memory: what crosses from node to node, for one batch; nothing is kept for backward.

What `torch.fx` cannot take apart is one node. A cut is where one new tensor crosses at most, where
no later node writes into a tensor from before, and where backward needs what crosses anyway.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from tidegate.errors import ConfigError
from tidegate.torch.live import storage_bytes, storage_key

__all__ = ["Stage", "Stages", "Values", "frozen"]

# More stages make plans slower to find, and hardly better.
MOST_STAGES = 160

Values = dict[fx.Node, Any]


@dataclass
class Stage:
    """Nodes that run together; the values that they take from before, and that later ones take."""

    name: str
    nodes: list[fx.Node]
    takes: list[fx.Node] = field(default_factory=list)
    gives: list[fx.Node] = field(default_factory=list)


@contextlib.contextmanager
def frozen(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Keep the running statistics of batch normalization as they are."""
    norms = [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    counts = [None if count is None else count.clone() for _, count in before]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count), kept in zip(norms, before, counts, strict=True):
            norm.momentum = momentum
            if count is not None and kept is not None:
                count.copy_(kept)


class _Tracer(fx.Tracer):
    """Takes modules apart, except those of torch and those that must stay whole."""

    # Otherwise a forward that writes to a buffer would do so while it is taken apart.
    proxy_buffer_attributes = True

    def __init__(self, whole: set[nn.Module]) -> None:
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return module in self.whole or super().is_leaf_module(module, name)


def _taken_apart(module: nn.Module, whole: set[nn.Module]) -> fx.Graph:
    """Return the graph of a module, and leave the module as it was."""
    before = [(m, dict(m.__dict__), dict(m._buffers), dict(m._parameters)) for m in module.modules()]
    try:
        graph = _Tracer(whole).trace(module)
    finally:
        changed = [m for m, *kept in before if any(map(_differ, (m.__dict__, m._buffers, m._parameters), kept))]
        for m, *kept in before:
            for now, then in zip((m.__dict__, m._buffers, m._parameters), kept, strict=True):
                now.clear()
                now.update(then)
    if changed:
        raise ConfigError(f"the forward of {type(changed[0]).__name__} changes its own attributes")
    return graph


def _differ(now: dict[str, Any], then: dict[str, Any]) -> bool:
    return now.keys() != then.keys() or any(now[name] is not then[name] for name in then)


def _hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _trace(model: nn.Module) -> tuple[fx.Graph, list[str]]:
    """Return the graph of a model, and the names of modules that cannot be taken apart."""
    wrapped = ("OptimizedModule", "DistributedDataParallel", "FullyShardedDataParallel", "DataParallel")
    if type(model).__name__ in wrapped:
        raise ConfigError(f"the model is a {type(model).__name__}: give the module that it wraps")
    if _hooked(model):
        raise ConfigError(f"{type(model).__name__} has hooks, which run only where it is called: remove them")
    whole: set[nn.Module] = set()
    names: list[str] = []
    # Children come before what contains them, so that the smallest that fails stays whole.
    for name, module in reversed(list(model.named_modules())):
        tracer = _Tracer(whole)
        if module is model or tracer.is_leaf_module(module, name):
            continue
        try:
            if _hooked(module):
                raise ConfigError("its hooks run only where it is called")
            _taken_apart(module, whole)
        except Exception:
            whole.add(module)
            names.append(name)
    try:
        return _taken_apart(model, whole), names
    except Exception as error:
        raise ConfigError(
            f"the forward of {type(model).__name__} cannot be taken apart into stages ({type(error).__name__}: "
            f"{error}): move what depends on the values or the number of tensors into a module of its own"
        ) from None


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _used(node: fx.Node) -> list[fx.Node]:
    """Return the nodes whose values a node takes; attributes of the model are none."""
    return [other for other in node.all_input_nodes if other.op != "get_attr"]


class Stages:
    """The stages of a model, cut for one batch, and how to run their nodes.

    Attributes:
        model: the module.
        stages: in the order in which they run.
        whole: names of modules that could not be taken apart.
        skips: stages, counted from 1, whose output is used until a stage behind the next.
        fingerprint: the same for two models of the same modules, shapes and stages.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Any]) -> None:
        self.model = model
        graph, self.whole = _trace(model)
        self._inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self._nodes = [n for n in graph.nodes if n.op in ("call_module", "call_function", "call_method")]
        (output,) = (node for node in graph.nodes if node.op == "output")
        (self._result,) = output.args
        self.results: list[fx.Node] = [node for node in output.all_input_nodes if node.op != "get_attr"]
        seen = _Seen(self, inputs)
        self.stages = self._stages(seen)
        self.skips = self._skips(seen)
        self.fingerprint = self._fingerprint()

    def given(self, inputs: Sequence[Any]) -> Values:
        """Return the values of the model's inputs."""
        needed = [node for node in self._inputs if not node.args]
        if not len(needed) <= len(inputs) <= len(self._inputs):
            what = f"{len(needed)} inputs" if len(needed) != 1 else "one input"
            raise ConfigError(f"the model takes {what}, and the batch has {len(inputs)}: say which with inputs=")
        given = dict(zip(self._inputs, inputs, strict=False))
        return {node: given[node] if node in given else node.args[0] for node in self._inputs}

    def run(self, node: fx.Node, values: Values) -> Any:
        """Run one node, and return its value."""
        args = fx.node.map_arg(node.args, lambda other: self._value(other, values))
        kwargs = fx.node.map_arg(node.kwargs, lambda other: self._value(other, values))
        target: Any = node.target
        if node.op == "call_module":
            return self.model.get_submodule(target)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    def output(self, values: Values) -> Any:
        """Return what the model returns."""
        return fx.node.map_arg(self._result, lambda node: self._value(node, values))

    def modules(self, stages: Iterable[Stage]) -> list[nn.Module]:
        """Return the modules that stages run, and all within them."""
        names = [str(n.target) for stage in stages for n in stage.nodes if n.op == "call_module"]
        return [module for name in names for module in self.model.get_submodule(name).modules()]

    def parameters(self, stage: Stage) -> list[nn.Parameter]:
        """Return the parameters that a stage uses and that are trained, each once."""
        found = [p for module in self.modules([stage]) for p in module.parameters(recurse=False)]
        named = [other for node in stage.nodes for other in node.all_input_nodes if other.op == "get_attr"]
        found += [value for other in named if isinstance(value := self._value(other, {}), nn.Parameter)]
        return [p for p in dict.fromkeys(found) if p.requires_grad]

    def _value(self, node: fx.Node, values: Values) -> Any:
        if node.op != "get_attr":
            return values[node]
        found: Any = self.model
        for name in str(node.target).split("."):
            found = getattr(found, name)
        return found

    def _stages(self, seen: _Seen) -> list[Stage]:
        ends = _merged(seen, [p for p in range(len(self._nodes) - 1) if seen.can_cut(p)])
        stages = []
        for begin, end in zip([0, *(p + 1 for p in ends)], [*ends, len(self._nodes) - 1], strict=True):
            nodes = self._nodes[begin : end + 1]
            named = [str(node.target) for node in nodes if node.op == "call_module"]
            stages.append(Stage(named[-1] if named else nodes[-1].name, nodes))
        place = {node: i for i, stage in enumerate(stages) for node in stage.nodes}
        last = dict.fromkeys(self.results, len(stages))
        for i, stage in enumerate(stages):
            takes = [n for node in stage.nodes for n in _used(node) if place.get(n, -1) != i]
            stage.takes = list(dict.fromkeys(takes))
            for node in stage.takes:
                last[node] = max(last.get(node, 0), i)
        for i, stage in enumerate(stages):
            stage.gives = [node for node in stage.nodes if last.get(node, -1) > i]
        return stages

    def _skips(self, seen: _Seen) -> list[tuple[int, int]]:
        place = [i for i, stage in enumerate(self.stages, 1) for _ in stage.nodes]
        place.append(len(self.stages))
        ends = [(place[at], place[seen.last_use[at]]) for at in range(len(self._nodes)) if seen.bytes[at]]
        return [(begin, end) for begin, end in ends if end > begin + 1]

    def _fingerprint(self) -> str:
        shapes = [(name, tuple(p.shape), str(p.dtype)) for name, p in self.model.named_parameters()]
        stages = [[(node.op, str(node.target)) for node in stage.nodes] for stage in self.stages]
        return hashlib.blake2b(repr((shapes, stages)).encode(), digest_size=8).hexdigest()


class _Seen:
    """What a run over one batch shows: which tensors are one storage, are written to, are saved."""

    def __init__(self, stages: Stages, inputs: Sequence[Any]) -> None:
        self.nodes = stages._nodes
        # The place of the node that made the storage of a value; -1 for inputs and parameters.
        self.maker: dict[fx.Node, int] = {}
        self.bytes = [0] * len(self.nodes)
        self.last_use = [0] * len(self.nodes)
        self.saved: set[int] = set()
        self.saved_bytes = [0] * len(self.nodes)
        # For each place, the earliest maker that a node from there on writes to.
        self.writes: list[int] = [len(self.nodes)] * (len(self.nodes) + 1)
        buffers = {name: (buffer, buffer._version) for name, buffer in stages.model.named_buffers()}
        values = stages.given(inputs)
        uses: dict[fx.Node, int] = dict.fromkeys(stages.results, len(self.nodes))
        for at, node in enumerate(self.nodes):
            for other in _used(node):
                uses[other] = max(uses.get(other, 0), at)
        with torch.random.fork_rng(), frozen(stages.model.modules()):
            for at, node in enumerate(self.nodes):
                values[node] = self._run(stages, node, at, values)
                if (maker := self.maker.get(node, -1)) >= 0:
                    self.last_use[maker] = max(self.last_use[maker], uses.get(node, at))
                for other in [other for other in _used(node) if uses[other] == at]:
                    del values[other]
        for at in reversed(range(len(self.nodes))):
            self.writes[at] = min(self.writes[at], self.writes[at + 1])
        norms = {id(m) for m in stages.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        for name, (buffer, version) in buffers.items():
            owner = stages.model.get_submodule(name.rpartition(".")[0])
            if buffer._version != version and id(owner) not in norms:
                raise ConfigError(
                    f"the forward of {type(owner).__name__} writes to its buffer {name!r}: run again, it would write "
                    "twice; keep such a module out of the model, or give it no buffer"
                )

    def _run(self, stages: Stages, node: fx.Node, at: int, values: Values) -> Any:
        """Run a node by itself, as one whose inputs need gradients."""
        keys: list[tuple[int, int]] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            keys.append((storage_key(tensor), storage_bytes(tensor)))
            # Detached: an output that its own node saved would keep itself alive for ever.
            return tensor.detach()

        makers: dict[int, int] = {}

        def alone(value: Any, *, copied: bool, maker: int) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            leaf = value.detach()
            if value.is_floating_point():
                leaf.requires_grad_()
            made = leaf.clone() if copied else leaf
            makers[storage_key(made)] = maker
            return made

        def attempt(copied: bool) -> tuple[Any, Values]:
            keys.clear()
            taken: Values = {}
            for other in _used(node):
                maker = self.maker.get(other, -1)
                taken[other] = tree_map(functools.partial(alone, copied=copied, maker=maker), values[other])
            versions = [(t, t._version, other) for other, value in taken.items() for t in _tensors(value)]
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                value = stages.run(node, taken)
            for tensor, version, other in versions:
                if tensor._version != version:
                    self.writes[at] = min(self.writes[at], self.maker.get(other, -1))
            return value, taken

        try:
            value, taken = attempt(copied=False)
        except RuntimeError:
            # A leaf that needs a gradient must not be written to: write to copies.
            value, taken = attempt(copied=True)
        known = {storage_key(p) for p in stages.model.parameters()}
        own = {storage_key(tensor) for tensor in _tensors(value)}
        found = [makers[key] for key in own if key in makers]
        self.maker[node] = max(found) if found else at
        if not found:
            self.bytes[at] = sum({storage_key(t): storage_bytes(t) for t in _tensors(value)}.values())
        for key, size in dict(keys).items():
            if key in makers:
                self.saved.add(makers[key])
            elif key in own:
                self.saved.add(at)
            elif key not in known:
                self.saved_bytes[at] += size
        del taken
        return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, value)

    def crossing(self, begin: int, end: int) -> list[int]:
        """Return the nodes from `begin` to `end` whose storages later nodes use."""
        return [at for at in range(begin, end + 1) if self.bytes[at] and self.last_use[at] > end]

    def can_cut(self, end: int) -> bool:
        """Return whether a stage may end here, wherever it begins."""
        return self.writes[end + 1] > end and all(at in self.saved for at in self.crossing(0, end))


def _merged(seen: _Seen, ends: list[int]) -> list[int]:
    """Return the ends of stages, with one new tensor across each, and no more than are of use."""
    kept: list[int] = []
    begin = 0
    for end in ends:
        if len(seen.crossing(begin, end)) <= 1:
            kept.append(end)
            begin = end + 1

    def weight(begin: int, end: int) -> int:
        return sum(seen.bytes[begin : end + 1]) + sum(seen.saved_bytes[begin : end + 1])

    total = max(1, weight(0, len(seen.nodes) - 1))
    while kept:
        begins = [0, *(end + 1 for end in kept)]
        sizes = [weight(begin, end) for begin, end in zip(begins, [*kept, len(seen.nodes) - 1], strict=True)]
        pairs = [sizes[i] + sizes[i + 1] for i in range(len(kept))]
        least = min(range(len(pairs)), key=pairs.__getitem__)
        if len(kept) < MOST_STAGES and pairs[least] > total / 400:
            break
        del kept[least]
    return kept
