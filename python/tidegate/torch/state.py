"""The states of all generators of random numbers, as JSON-able values.

Flow: Python's, NumPy's and torch's generators -> a dict; and back.
Memory: some 20 KiB, and 16 bytes a device.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tidegate.errors import ConfigError, StateError
from tidegate.options import integer

__all__ = ["random_setter", "random_state"]


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


def random_setter(state: Any) -> Callable[[], None]:
    """Return what puts all generators where they were; nothing changes before it is called."""
    try:
        version, words, gauss = state["python"]
        python = (integer("python", version, 0), tuple(integer("python", word, 0) for word in words), gauss)
        random.Random().setstate(python)
        name, keys, *rest = state["numpy"]
        numpy = (name, np.array(keys, np.uint32), *rest)
        np.random.RandomState().set_state(numpy)
        own = torch.tensor(state["torch"], dtype=torch.uint8)
        torch.Generator().set_state(own)
        devices = [torch.tensor(one, dtype=torch.uint8) for one in state["devices"]]
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, ConfigError) as error:
        raise StateError(f"this is not a state of random numbers that a step saved ({error})") from None

    def put() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(own)
        if devices:
            torch.cuda.set_rng_state_all(devices)

    return put
