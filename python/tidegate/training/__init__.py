"""The memory of a training step: what it takes, what can be recomputed, how to divide it.

Flow: dataclasses -> the planners of the Rust crate -> dataclasses. Nothing trains or measures here.
Memory: the tables of the planners, outside of any budget: for planning, not for training.

>>> from tidegate import training
>>> stage = training.Stage(output_bytes=1, saved_bytes=2, forward_time=1, backward_time=2)
>>> chain = training.Chain([stage] * 64)
>>> schedule, time = training.rotor(chain, 32)
>>> time / chain.plain_time
1.2916666666666667
"""

from tidegate.training.batch import (
    AdaBatch,
    LinearGrowth,
    NoiseScale,
    Reached,
    Target,
    front,
    micro_batches,
    noise_driven,
    weights,
)
from tidegate.training.chain import (
    Chain,
    Keep,
    Moment,
    Replay,
    Schedule,
    Skip,
    Stage,
    Uniform,
    replay,
    revolve,
    rotor,
    segments,
    uniform,
)
from tidegate.training.devices import (
    Device,
    Lifetime,
    Placement,
    Sharded,
    Split,
    Way,
    compare,
    place,
    sharding,
    split,
)
from tidegate.training.layers import (
    Activation,
    Attention,
    Block,
    Convolution,
    CrossEntropy,
    DepthwiseSeparable,
    Dropout,
    Embedding,
    Layer,
    Linear,
    Norm,
    Transformer,
)
from tidegate.training.step import (
    Held,
    Part,
    Plan,
    Point,
    Profile,
    curve,
    largest_batch,
    model,
    plan,
    states,
)

__all__ = [
    "Activation",
    "AdaBatch",
    "Attention",
    "Block",
    "Chain",
    "Convolution",
    "CrossEntropy",
    "DepthwiseSeparable",
    "Device",
    "Dropout",
    "Embedding",
    "Held",
    "Keep",
    "Layer",
    "Lifetime",
    "Linear",
    "LinearGrowth",
    "Moment",
    "NoiseScale",
    "Norm",
    "Part",
    "Placement",
    "Plan",
    "Point",
    "Profile",
    "Reached",
    "Replay",
    "Schedule",
    "Sharded",
    "Skip",
    "Split",
    "Stage",
    "Target",
    "Transformer",
    "Uniform",
    "Way",
    "compare",
    "curve",
    "front",
    "largest_batch",
    "micro_batches",
    "model",
    "noise_driven",
    "place",
    "plan",
    "replay",
    "revolve",
    "rotor",
    "segments",
    "sharding",
    "split",
    "states",
    "uniform",
    "weights",
]
