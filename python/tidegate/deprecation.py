"""Old names of options: accepted for one release, with a `DeprecationWarning`.

Flow: an option given under its old name -> the warning -> the value under the new name.
Memory: holds none.
"""

from __future__ import annotations

from tidegate.errors import warn

__all__ = ["renamed"]


def renamed(old: str, new: str) -> None:
    """Warn that `old` is now written `new`; the next release no longer accepts it.

    Args:
        old: the old name as users write it, such as `"keep="`.
        new: the new name as users write it.
    """
    warn(f"{old} is now {new}; the next release no longer accepts the old name", DeprecationWarning)
