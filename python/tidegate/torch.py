"""Batches as torch tensors, without a copy. The only module that imports torch."""

from __future__ import annotations

import numpy as np
import torch

from tidegate.batch import Batch

__all__ = ["tensor", "tensors"]


def tensor(array: np.ndarray) -> torch.Tensor:
    """Return a tensor over the memory of `array`, bfloat16 included.

    >>> import numpy as np
    >>> tensor(np.ones((2, 3), np.float32)).shape
    torch.Size([2, 3])
    """
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def tensors(batch: Batch) -> Batch:
    """Turn the arrays of a batch into tensors in place; ragged columns stay as they are."""
    for name, column in batch.items():
        if isinstance(column, np.ndarray):
            batch[name] = tensor(column)
    return batch
