"""A budget that may be a share of the memory limit, and follows it between steps.

Flow: bytes, text or a fraction -> bytes; the limit of the process, between steps -> other bytes.
Memory: holds none.
"""

from __future__ import annotations

import numbers
from typing import Any

from tidegate.training.request import size_of

__all__ = ["Limit", "share_of"]

# A higher limit counts when it is this many times as high, for this many steps in a row.
HIGHER, STEADY = 1.05, 8


def share_of(memory: Any) -> float | None:
    """Return the part of the memory limit that a size names: 0.5, "0.5"; None for bytes."""
    if isinstance(memory, numbers.Integral):
        return None
    try:
        value = float(memory)
    except (TypeError, ValueError):
        return None
    return value if 0 < value <= 1 else None


class Limit:
    """A budget; one that is a fraction changes with the memory limit of the process.

    A lower limit counts at once. A higher one counts when it stays, so that a limit that goes up
    and down does not change the plan each time.

    Attributes:
        bytes: the budget now.
        share: the part of the limit that it is; None where it is a number of bytes.
    """

    def __init__(self, memory: Any) -> None:
        self.share = share_of(memory)
        self.bytes = size_of(memory if self.share is None else self.share)
        self._steps = 0

    def changed(self) -> bool:
        """Look at the limit, before a step; return whether the budget is another one now."""
        if self.share is None:
            return False
        now = size_of(self.share)
        self._steps = self._steps + 1 if now > self.bytes * HIGHER else 0
        if now >= self.bytes and self._steps < STEADY:
            return False
        self.bytes, self._steps = now, 0
        return True
