"""Which of several training processes this is: as given, as a framework knows, or by variables.

Flow: `Loader` asks when it is made, and again when an epoch begins -> (rank, world_size).
Memory: holds none.
"""

from __future__ import annotations

import sys

from tidegate import _tidegate
from tidegate.errors import ConfigError
from tidegate.options import integer

__all__ = ["found", "given"]


def given(rank: int | None, world_size: int | None) -> tuple[int, int] | None:
    """Return the ranks that the user gave, or None if they are to be asked for."""
    if (rank is None) != (world_size is None):
        raise ConfigError("give both rank and world_size, or neither")
    if rank is None or world_size is None:
        return None
    size = integer("world_size", world_size, 1)
    number = integer("rank", rank, 0)
    if number >= size:
        raise ConfigError(f"rank={number} of world_size={size}: a rank is an int from 0 to world_size - 1")
    return number, size


def found() -> tuple[int, int]:
    """Return the rank of this process and the number of ranks, as they are known now.

    torch.distributed counts if it is in use, then jax.distributed, then the variables of torchrun,
    MPI and SLURM. A process alone is rank 0 of 1.

    Raises ConfigError for variables that say how many processes there are and not which is this.
    """
    torch = sys.modules.get("torch.distributed")
    if torch is not None and torch.is_available() and torch.is_initialized():
        return torch.get_rank(), torch.get_world_size()
    jax = sys.modules.get("jax")
    if jax is not None and (distributed := getattr(jax, "distributed", None)) is not None:
        # Other calls would make jax take the devices of this machine.
        initialized = getattr(distributed, "is_initialized", None)
        if initialized is not None and initialized():
            return jax.process_index(), jax.process_count()
    variables = _tidegate.ranks()
    return variables[:2] if variables else (0, 1)
