"""A budget that may be a share of the memory limit, and follows it between steps.

Flow: bytes, text or a fraction -> bytes; the limit of the process, between steps -> other bytes.
Memory: holds none.
"""

from __future__ import annotations

from typing import Any

from tidegate.training.request import size_of

__all__ = ["Limit"]

# A higher limit counts when it is this many times as high, for this many steps in a row.
HIGHER, STEADY = 1.05, 8


class Limit:
    """A budget; one that is a fraction changes with the memory limit of the process.

    A lower limit counts at once. A higher one counts when it stays, so that a limit that goes up
    and down does not change the plan each time.

    Attributes:
        bytes: the budget now.
    """

    def __init__(self, memory: Any) -> None:
        self._share = memory if isinstance(memory, float) else None
        self.bytes = size_of(memory)
        self._steps = 0

    def changed(self) -> bool:
        """Look at the limit, before a step; return whether the budget is another one now."""
        if self._share is None:
            return False
        now = size_of(self._share)
        self._steps = self._steps + 1 if now > self.bytes * HIGHER else 0
        if now >= self.bytes and self._steps < STEADY:
            return False
        self.bytes, self._steps = now, 0
        return True
