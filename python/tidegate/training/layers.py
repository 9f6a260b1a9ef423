"""Layers by their sizes, for models that are planned before they exist.

Flow: dataclasses -> `model` in `step.py`.
Memory: holds none.

Sizes are for one sample. How scores of attention are kept: "full", "blockwise" (made again in
backward), ("sparse", keys) where each position looks at that many others, or ("low_rank", rank).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from tidegate.errors import ConfigError
from tidegate.options import choice, flag, integer, refused, text
from tidegate.training.request import all_of, ask, positive

__all__ = [
    "Activation",
    "Attention",
    "Block",
    "Convolution",
    "CrossEntropy",
    "DepthwiseSeparable",
    "Dropout",
    "Embedding",
    "Layer",
    "Linear",
    "Norm",
    "Transformer",
    "widened",
]

Scores = Literal["full", "blockwise"] | tuple[Literal["sparse", "low_rank"], int]


# Blocks within blocks.
MOST_DEPTH = 20


@dataclass
class Layer:
    """A layer; use one of the classes below."""

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not self.kind:
            raise ConfigError("Layer is the base of all layers: give one of its classes, such as Linear")
        for f in fields(self):
            setattr(self, f.name, _checked(f.name, getattr(self, f.name)))

    def request(self) -> dict[str, Any]:
        """Return what the planners take."""
        return {"kind": self.kind, **{f.name: getattr(self, f.name) for f in fields(self)}}


def _checked(name: str, given: Any) -> Any:
    """Return what the field of a layer may be."""
    if name in ("bias", "dropout"):
        return flag(name, given)
    if name == "form":
        return choice(name, given, ("layer", "rms", "batch"))
    if name == "layers":
        return all_of(name, given, Layer)
    if name == "name":
        return text(name, given)
    if name == "scores":
        return _scores(given)
    return integer(name, given, 0 if name == "padding" else 1, 2**32)


def _scores(given: Any) -> Any:
    if isinstance(given, dict) and len(given) == 1:
        given = next(iter(given.items()))
    if isinstance(given, tuple | list) and len(given) == 2 and given[0] in ("sparse", "low_rank"):
        return {given[0]: integer("scores", given[1], 1, 2**32)}
    if isinstance(given, str) and given in ("full", "blockwise"):
        return given
    raise refused("scores", given, "'full', 'blockwise', ('sparse', keys) or ('low_rank', rank)")


@dataclass
class Linear(Layer):
    """y = Wx + b at each of `positions`."""

    kind = "linear"
    inputs: int
    outputs: int
    positions: int = 1
    bias: bool = True


@dataclass
class Convolution(Layer):
    """A convolution over an image of `height` and `width`."""

    kind = "convolution"
    inputs: int
    outputs: int
    kernel: int
    height: int
    width: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bias: bool = True


@dataclass
class DepthwiseSeparable(Layer):
    """A convolution of each channel by itself, then one of 1 x 1."""

    kind = "depthwise_separable"
    inputs: int
    outputs: int
    kernel: int
    height: int
    width: int
    stride: int = 1
    padding: int = 0


@dataclass
class Norm(Layer):
    """A normalization over the features of each position, or over the batch."""

    kind = "norm"
    features: int
    positions: int = 1
    form: Literal["layer", "rms", "batch"] = "layer"


@dataclass
class Activation(Layer):
    """A function of each element."""

    kind = "activation"
    elements: int


@dataclass
class Dropout(Layer):
    """Zeros at random; a byte for each element says where."""

    kind = "dropout"
    elements: int


@dataclass
class Attention(Layer):
    """Attention of several heads with its four projections."""

    kind = "attention"
    sequence: int
    width: int
    heads: int
    scores: Scores = "full"
    dropout: bool = False


@dataclass
class Embedding(Layer):
    """A row of a table for each position."""

    kind = "embedding"
    vocabulary: int
    width: int
    positions: int = 1


@dataclass
class CrossEntropy(Layer):
    """The loss; it keeps logarithms of probabilities in 4 bytes each."""

    kind = "cross_entropy"
    classes: int
    positions: int = 1


@dataclass
class Transformer(Layer):
    """A transformer block: attention, two linear layers of four times the width, two norms."""

    kind = "transformer"
    sequence: int
    width: int
    heads: int
    scores: Scores = "full"
    dropout: bool = False


def _depth(layer: Layer, seen: int = 0) -> int:
    inner = layer.layers if isinstance(layer, Block) and seen <= MOST_DEPTH else []
    return max([seen, *(_depth(other, seen + 1) for other in inner)])


@dataclass
class Block(Layer):
    """Layers that are one stage of a plan, and how many of these follow one another."""

    kind = "block"
    layers: list[Layer]
    repeat: int = 1
    name: str = ""

    def request(self) -> dict[str, Any]:
        """Return what the planners take."""
        if _depth(self) > MOST_DEPTH:
            raise ConfigError(f"blocks within blocks, more than {MOST_DEPTH} deep: take the inner ones apart")
        layers = [layer.request() for layer in self.layers]
        return {"kind": self.kind, "layers": layers, "repeat": self.repeat, "name": self.name}


KINDS = (
    Activation, Attention, Block, Convolution, CrossEntropy, DepthwiseSeparable, Dropout, Embedding, Linear, Norm,
    Transformer,
)  # fmt: skip


def _of_answer(answer: dict[str, Any]) -> Layer:
    sizes = dict(answer)
    kind = {kind.kind: kind for kind in KINDS}[sizes.pop("kind")]
    if kind is Block:
        sizes["layers"] = [_of_answer(layer) for layer in sizes["layers"]]
    return kind(**sizes)


def widened(layers: Sequence[Layer], factor: float) -> list[Layer]:
    """Return layers with `factor` times as many features, and heads of the width that they have.

    The model then has about factor² of the parameters, and factor of the activations. What goes
    into the first layer that changes the number of features stays, and so does what the last one
    gives. Source: the width multiplier of A. Howard et al., MobileNets, arXiv:1704.04861.

    Args:
        layers: of a model.
        factor: from 1e-6 to a million; all numbers of features have to be whole ones then.

    >>> widened([Linear(784, 256), Linear(256, 10)], 0.5)[0]
    Linear(inputs=784, outputs=128, positions=1, bias=True)
    """
    requests = [layer.request() for layer in all_of("layers", layers, Layer)]
    return [_of_answer(answer) for answer in ask("widened", [requests, positive("factor", factor)])]
