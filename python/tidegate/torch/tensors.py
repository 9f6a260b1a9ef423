"""Batches as torch tensors, without a copy.

Flow: `Batch` of arrays -> `tensors` -> the same `Batch` of tensors.
Memory: tensors share the memory of the arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tidegate.batch import Batch
from tidegate.options import refused
from tidegate.sparse import BSR, COO, CSR

__all__ = ["array_of", "gathered", "sample_tensors", "sparse", "tensor", "tensors"]


def tensor(array: np.ndarray) -> torch.Tensor:
    """Return a tensor over the memory of an array; bfloat16 arrays are those of `ml_dtypes`.

    >>> import numpy as np
    >>> tensor(np.ones((2, 3), np.float32)).shape
    torch.Size([2, 3])
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufcV":
        raise refused("array", array, "a NumPy array of numbers")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def array_of(value: object) -> np.ndarray | None:
    """Return the array over the memory of a dense CPU tensor, or None for anything else.

    >>> array_of(torch.ones(3, dtype=torch.bfloat16)).dtype.name
    'bfloat16'
    """
    if type(value) is not torch.Tensor or value.device.type != "cpu" or value.layout != torch.strided:
        return None
    if value.dtype == torch.bfloat16:
        import ml_dtypes

        halves: np.ndarray = value.detach().view(torch.int16).numpy()
        bfloats: np.ndarray = halves.view(ml_dtypes.bfloat16)
        return bfloats
    try:
        array: np.ndarray = value.detach().numpy()
    except TypeError:
        # A dtype that NumPy does not have.
        return None
    return array


def sparse(array: CSR | BSR | COO) -> torch.Tensor:
    """Return a sparse tensor over the memory of an array; only the indices of a `COO` are copied.

    >>> sparse(CSR.from_dense(np.eye(2, dtype="float32"))).values()
    tensor([1., 1.])
    """
    if not isinstance(array, CSR | BSR | COO):
        raise refused("array", array, "a CSR, a BSR or a COO")
    # As the user has set it; torch warns where it is left out.
    invariants = torch.sparse.check_sparse_tensor_invariants
    check: bool = invariants.is_enabled()  # type: ignore[no-untyped-call, unused-ignore]
    if isinstance(array, COO):
        indices = torch.from_numpy(np.stack(array.coords).astype(np.int64))
        return torch.sparse_coo_tensor(indices, torch.from_numpy(array.data), array.shape, check_invariants=check)
    make = torch.sparse_csr_tensor if isinstance(array, CSR) else torch.sparse_bsr_tensor
    starts, columns, data = (torch.from_numpy(part) for part in (array.indptr, array.indices, array.data))
    return make(starts, columns, data, size=array.shape, check_invariants=check)


def tensors(batch: Batch) -> Batch:
    """Turn the arrays and the weights of a batch into tensors, in place, and return it.

    `Ragged` columns, ids and the mask stay NumPy arrays.
    """
    if not isinstance(batch, Batch):
        raise refused("batch", batch, "a batch of a loader")
    for name, column in batch.items():
        if isinstance(column, np.ndarray):
            batch[name] = tensor(column)
    # Typed as the array that it is without `output="torch"`.
    batch.weights = tensor(batch.weights)  # type: ignore[assignment]
    return batch


def sample_tensors(sample: dict[str, Any]) -> dict[str, Any]:
    """Return a sample with its arrays and numbers as tensors; text and bytes as they are.

    >>> sample_tensors({"x": np.ones(2, "float32"), "name": "a"})
    {'x': tensor([1., 1.]), 'name': 'a'}
    """
    if not isinstance(sample, dict):
        raise refused("sample", sample, "a dict of fields")
    return {
        name: tensor(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value
        for name, value in sample.items()
    }


def gathered(indices: np.ndarray, losses: np.ndarray | torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices and losses of all ranks, the same on each, for `Loader.feedback`.

    Without torch.distributed it returns those that it was given.

    Args:
        indices: `batch.indices` of this rank.
        losses: one for each.

    >>> gathered(np.array([1, 2]), torch.tensor([0.5, 0.25]))
    (array([1, 2]), array([0.5 , 0.25], dtype=float32))
    """
    if isinstance(losses, torch.Tensor):
        losses = losses.detach().float().cpu().numpy()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return indices, losses
    parts: list[tuple[np.ndarray, np.ndarray]] = [(indices, losses)] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, (indices, losses))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
