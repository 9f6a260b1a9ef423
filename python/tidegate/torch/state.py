"""The states of all generators of random numbers, as JSON-able values.

Flow: Python's, NumPy's and torch's generators -> a dict; and back.
Memory: some 20 KiB, and 16 bytes a device.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tidegate.errors import StateError

__all__ = ["random_state", "set_random_state"]


def random_state() -> dict[str, Any]:
    """Return where all generators are."""
    version, words, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, np.asarray(keys).tolist(), int(place), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state().tolist(),
        "devices": [state.tolist() for state in devices],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put all generators where they were."""
    try:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, np.uint32), *rest))
        torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
        if state["devices"]:
            torch.cuda.set_rng_state_all([torch.tensor(one, dtype=torch.uint8) for one in state["devices"]])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StateError(f"this is not a state of random numbers that a step saved ({error})") from None
