"""A model as stages that run one after another.

Flow: a module, inputs -> `trace` -> nodes -> where they can be cut -> `Stages`.
Memory: what crosses from node to node, for one batch; nothing is kept for backward.

A cut is where one new tensor crosses at most, where no later node writes into a tensor from before,
and where backward needs nearly all of what crosses anyway.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_map

from tidegate.errors import ConfigError
from tidegate.torch.attention import SpelledOut
from tidegate.torch.kept import Kept, close
from tidegate.torch.live import storage_bytes, storage_key, tensors_in
from tidegate.torch.trace import CONSTANT, trace

__all__ = ["Stage", "Stages", "Values", "frozen", "modules_of"]

if TYPE_CHECKING:
    from tidegate.torch.lower import Lowered

# More stages make plans slower to find, and hardly better.
MOST_STAGES = 160
# A cut may keep what backward does not need, if that is at most this part of the stage: a 20th.
UNSAVED_PART = 20

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


def _used(node: fx.Node) -> list[fx.Node]:
    """Return the nodes whose values a node takes; attributes of the model are none."""
    return [other for other in node.all_input_nodes if other.op != "get_attr"]


class Stages:
    """The stages of a model, cut for one batch, and how to run their nodes.

    Attributes:
        model: the module.
        stages: in the order in which they run.
        whole: names of modules that could not be taken apart.
        attention: modules that keep the scores of their attention for backward.
        needs: nodes whose values need gradients.
        skips: stages, counted from 1, whose output is used until a stage behind the next.
        fingerprint: the same for two models of the same modules, shapes and stages.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Any]) -> None:
        self.model = model
        graph, self.whole = trace(model, len(inputs))
        # By all their names; to look for them at every node takes longer than a small node runs.
        self._named = dict(model.named_modules(remove_duplicate=False))
        self._inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self._nodes = [n for n in graph.nodes if n.op in ("call_module", "call_function", "call_method")]
        (output,) = (node for node in graph.nodes if node.op == "output")
        (self._result,) = output.args
        self.results: list[fx.Node] = [node for node in output.all_input_nodes if node.op != "get_attr"]
        seen = _Seen(self, inputs)
        self.stages = self._stages(seen)
        self.needs = seen.needs
        self.attention = seen.spelled.found()
        self.skips = self._skips(seen)
        self.fingerprint = self._fingerprint(inputs)

    def given(self, inputs: Sequence[Any]) -> Values:
        """Return the values of the model's inputs."""
        # Those that the batch does not have keep their defaults, which the graph knows.
        given = dict(zip(self._inputs, inputs, strict=False))
        return {node: given.get(node) for node in self._inputs}

    def run(self, node: fx.Node, values: Values, lowered: Lowered | None = None) -> Any:
        """Run one node, and return its value."""
        if lowered is not None:
            return lowered.run(node, lambda: self.run(node, values))
        args = fx.node.map_arg(node.args, lambda other: self._value(other, values))
        kwargs = fx.node.map_arg(node.kwargs, lambda other: self._value(other, values))
        target: Any = node.target
        if node.op == "call_module":
            return self._named[target](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    def output(self, values: Values) -> Any:
        """Return what the model returns."""
        return fx.node.map_arg(self._result, lambda node: self._value(node, values))

    def norms(self, stages: Iterable[Stage]) -> list[nn.Module]:
        """Return the batch normalizations that stages run."""
        return [m for m in self.modules(stages) if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def modules(self, stages: Iterable[Stage]) -> list[nn.Module]:
        """Return the modules that stages run, and all within them."""
        names = [str(n.target) for stage in stages for n in stage.nodes if n.op == "call_module"]
        return [module for name in names for module in self._named[name].modules()]

    def parameters(self, stage: Stage) -> list[nn.Parameter]:
        """Return the parameters that a stage uses and that are trained, each once."""
        return self.parameters_of(stage.nodes)

    def parameters_of(self, nodes: Iterable[fx.Node]) -> list[nn.Parameter]:
        """Return the parameters that nodes use and that are trained, each once."""
        nodes = list(nodes)
        found = [p for module in self.modules([Stage("", nodes)]) for p in module.parameters(recurse=False)]
        named = [other for node in nodes for other in node.all_input_nodes if other.op == "get_attr"]
        found += [value for other in named if isinstance(value := self._value(other, {}), nn.Parameter)]
        return [p for p in dict.fromkeys(found) if p.requires_grad]

    def _value(self, node: fx.Node, values: Values) -> Any:
        if node.op != "get_attr":
            return values[node]
        if CONSTANT in node.meta:
            return node.meta[CONSTANT]
        found: Any = self.model
        for name in str(node.target).split("."):
            found = getattr(found, name)
        return found

    def _stages(self, seen: _Seen) -> list[Stage]:
        ends = _merged(seen)
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

    def _fingerprint(self, inputs: Sequence[Any]) -> str:
        given = [(tuple(t.shape[1:]), str(t.dtype)) for t in tensors_in(list(inputs))]
        shapes = [(name, tuple(p.shape), str(p.dtype)) for name, p in self.model.named_parameters()]
        stages = [[(node.op, str(node.target)) for node in stage.nodes] for stage in self.stages]
        return hashlib.blake2b(repr((given, shapes, stages)).encode(), digest_size=8).hexdigest()


def modules_of(node: fx.Node) -> list[str]:
    """Return the names of the modules in which a node runs, and its own; the outermost first."""
    own = [str(node.target)] if node.op == "call_module" else []
    # A second call of a module has the name «module@1».
    stack = (name.split("@")[0] for name in node.meta.get("nn_module_stack", {}))
    return list(dict.fromkeys([*(name for name in stack if name), *own]))


def _module_of(node: fx.Node) -> str:
    """Return the name of the innermost module that is not the node itself, if there is one."""
    names = modules_of(node)
    outer = [name for name in names if node.op != "call_module" or name != str(node.target)]
    return [node.name, *names, *outer][-1]


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
        self.needs: set[fx.Node] = set()
        self.spelled = SpelledOut()
        self.parameters = {storage_key(p) for p in stages.model.parameters()}
        values = stages.given(inputs)
        uses: dict[fx.Node, int] = dict.fromkeys(stages.results, len(self.nodes))
        for at, node in enumerate(self.nodes):
            for other in _used(node):
                uses[other] = max(uses.get(other, 0), at)
        kept = Kept(stages.model)
        try:
            with frozen(stages.model.modules()), self.spelled:
                self._run_all(stages, values, uses)
                output = stages.output(values)
            change = kept.change()
        finally:
            kept.restore()
        if change is not None:
            raise ConfigError(f"{change}: run again in backward, it would change twice. Keep such a module out of it")
        self._compare(stages, inputs, output, kept)
        for at in reversed(range(len(self.nodes))):
            self.writes[at] = min(self.writes[at], self.writes[at + 1])

    def _run_all(self, stages: Stages, values: Values, uses: dict[fx.Node, int]) -> None:
        for at, node in enumerate(self.nodes):
            if any(other in self.needs for other in _used(node)) or stages.parameters(Stage("", [node])):
                self.needs.add(node)
            self.spelled.name = _module_of(node)
            values[node] = self._run(stages, node, at, values)
            if (maker := self.maker.get(node, -1)) >= 0:
                self.last_use[maker] = max(self.last_use[maker], uses.get(node, at))
            for other in [other for other in _used(node) if uses[other] == at]:
                del values[other]

    def _compare(self, stages: Stages, inputs: Sequence[Any], output: Any, kept: Kept) -> None:
        """Refuse a model whose stages give another output than the model itself."""
        given = [value.clone() if isinstance(value, torch.Tensor) else value for value in inputs]
        versions = [value._version if isinstance(value, torch.Tensor) else 0 for value in given]
        try:
            with torch.no_grad(), frozen(stages.model.modules()):
                plain = stages.model(*given)
        finally:
            kept.restore()
        pairs = zip(tensors_in(plain), tensors_in(output), strict=False)
        if len(tensors_in(plain)) != len(tensors_in(output)) or not all(close(a, b.detach()) for a, b in pairs):
            raise ConfigError(
                f"{type(stages.model).__name__} gives another output when it runs again, or when it is taken apart: "
                "its forward decides by the type of what it gets, draws from generators of its own, or keeps a state"
            )
        if versions != [value._version if isinstance(value, torch.Tensor) else 0 for value in given]:
            raise ConfigError("the model writes to its input, which a second forward would find changed: copy it first")

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
            if value.is_floating_point() or value.is_complex():
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
            versions = [(t, t._version, other) for other, value in taken.items() for t in tensors_in(value)]
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
        self.spelled.kept(keys)
        own = {storage_key(tensor) for tensor in tensors_in(value)}
        found = [makers[key] for key in own if key in makers]
        self.maker[node] = max(found) if found else at
        if not found:
            self.bytes[at] = sum({storage_key(t): storage_bytes(t) for t in tensors_in(value)}.values())
        for key, size in dict(keys).items():
            if key in makers:
                self.saved.add(makers[key])
            elif key in own:
                self.saved.add(at)
            elif key not in self.parameters:
                self.saved_bytes[at] += size
        del taken
        return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, value)

    def crossing(self, begin: int, end: int) -> list[int]:
        """Return the nodes from `begin` to `end` whose storages later nodes use."""
        return [at for at in range(begin, end + 1) if self.bytes[at] and self.last_use[at] > end]

    def can_cut(self, end: int, weight: int) -> bool:
        """Return whether a stage may end here; `weight` is its bytes.

        What crosses is planned to stay until backward. What backward does not need, such as a sum
        that only a norm in another precision takes, must be little of that.
        """
        unsaved = sum(self.bytes[at] for at in self.crossing(0, end) if at not in self.saved)
        return self.writes[end + 1] > end and unsaved * UNSAVED_PART <= weight


def _merged(seen: _Seen) -> list[int]:
    """Return the ends of stages, with one new tensor across each, and no more than are of use."""
    # Bytes up to each node: those of a stage are a difference.
    weights = (made + saved for made, saved in zip(seen.bytes, seen.saved_bytes, strict=True))
    upto = [0, *itertools.accumulate(weights)]
    total = max(1, upto[-1])
    kept: list[int] = []
    begin = 0
    for end in range(len(seen.nodes) - 1):
        if len(seen.crossing(begin, end)) <= 1 and seen.can_cut(end, upto[end + 1] - upto[begin]):
            kept.append(end)
            begin = end + 1
    while kept:
        begins = [0, *(end + 1 for end in kept)]
        sizes = [upto[end] - upto[begin] for begin, end in zip(begins, [*begins[1:], len(seen.nodes)], strict=True)]
        pairs = [sizes[i] + sizes[i + 1] for i in range(len(kept))]
        least = min(range(len(pairs)), key=pairs.__getitem__)
        if len(kept) < MOST_STAGES and pairs[least] > total / 400:
            break
        del kept[least]
    return kept
