"""torch: batches as tensors, and training steps within a budget. The only package with torch.

Flow: `Batch` -> tensors; a model, a loss, a batch -> profile -> plan -> steps.
Memory: tensors share the memory of arrays; what a step takes is planned by `tidegate.training`.
"""

import importlib
from typing import TYPE_CHECKING, Any

import torch

from tidegate.errors import ConfigError
from tidegate.torch.tensors import array_of, gathered, sample_tensors, sparse, tensor, tensors

if TYPE_CHECKING:
    from tidegate.torch.attention import SpelledOutAttention
    from tidegate.torch.compress import Compress
    from tidegate.torch.context import ContextReport, TrainingContext, training_context
    from tidegate.torch.profile import profile_model
    from tidegate.torch.step import StepReport, TrainStep
    from tidegate.torch.topk import TopKState, topk_hook

__all__ = [
    "Compress",
    "ContextReport",
    "SpelledOutAttention",
    "StepReport",
    "TopKState",
    "TrainStep",
    "TrainingContext",
    "array_of",
    "gathered",
    "profile_model",
    "sample_tensors",
    "sparse",
    "tensor",
    "tensors",
    "topk_hook",
    "training_context",
]

# Imported on first use: batches of tensors need nothing of it.
_LAZY = {
    "Compress": "compress",
    "ContextReport": "context",
    "SpelledOutAttention": "attention",
    "StepReport": "step",
    "TopKState": "topk",
    "TrainStep": "step",
    "TrainingContext": "context",
    "profile_model": "profile",
    "topk_hook": "topk",
    "training_context": "context",
}
# The oldest torch that training steps are tested with (`make test-torch`).
OLDEST = (2, 4)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        release = tuple(int(part) for part in torch.__version__.split(".")[:2])
        if release < OLDEST:
            raise ConfigError(f"tidegate.torch.{name} needs torch 2.4 or newer, and this is {torch.__version__}")
        return getattr(importlib.import_module(f"tidegate.torch.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'tidegate.torch' has no attribute {name!r}")
