"""A budget that may be a share of the memory limit, and follows it between steps.

Flow: bytes, text or a fraction -> bytes; the limit of the process, and how long it waits for
memory, between steps -> other bytes.
Memory: holds none.
"""

from __future__ import annotations

import numbers
import time
from typing import Any

from tidegate.torch import process
from tidegate.training.request import size_of

__all__ = ["Limit", "share_of"]

# A higher limit counts when it is this many times as high, for this many steps in a row.
HIGHER, STEADY = 1.05, 8
# Under pressure: waiting for memory for more percent of the time than the first takes a tenth off,
# down to half, and for less than the second gives it back. The kernel's mean is over 10 seconds.
WAITING, CALM = 10.0, 1.0
LESS, LEAST, SECONDS = 0.9, 0.5, 10.0


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
    """A budget; one that is a fraction changes with the memory limit and the pressure.

    A lower limit counts at once. A higher one counts when it stays, so that a limit that goes up
    and down does not change the plan each time.

    Attributes:
        bytes: the budget now.
        share: the part of the limit that it is; None where it is a number of bytes.
        pressed: the part of this that is left under pressure.
    """

    def __init__(self, memory: Any) -> None:
        self.share = share_of(memory)
        self.bytes = size_of(memory if self.share is None else self.share)
        self.pressed = 1.0
        self._least = LEAST
        self._steps = 0
        self._since = time.monotonic()

    def changed(self) -> bool:
        """Look at the limit, before a step; return whether the budget is another one now."""
        if self.share is None:
            return False
        pressed = self._presses()
        now = int(size_of(self.share) * self.pressed)
        self._steps = self._steps + 1 if now > self.bytes * HIGHER else 0
        if not pressed and now >= self.bytes and self._steps < STEADY:
            return False
        self.bytes, self._steps = now, 0
        return True

    def _presses(self) -> bool:
        """Take the pressure into account, not faster than the kernel's mean follows."""
        if time.monotonic() - self._since < SECONDS:
            return False
        waiting, before = process.pressure(), self.pressed
        if waiting > WAITING:
            self.pressed = max(self._least, self.pressed * LESS)
        elif waiting < CALM:
            self.pressed = min(1.0, self.pressed / LESS)
        if self.pressed == before:
            return False
        self._since = time.monotonic()
        return True

    def forgive(self) -> bool:
        """Give back what the last pressure took, for good; False if there was none."""
        if self.share is None or self.pressed == 1.0:
            return False
        self._least = self.pressed = min(1.0, self.pressed / LESS)
        self.bytes = int(size_of(self.share) * self.pressed)
        return True
