"""`DiskCache`: where samples are kept on a local disk, from one epoch and one run to the next."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from tidegate import _tidegate

__all__ = ["DiskCache"]


@dataclass(frozen=True)
class DiskCache:
    """A folder on a local disk for what comes from slower places; all ranks of a machine share it.

    Args:
        folder: datasets have folders of their own in it; a dataset that changes is another.
        limit: the most that all of them take, in bytes or as "100GiB". A dataset that nobody has open makes room.
        leave_free: what must stay free on the disk. Space is reserved before it is written.

    Samples lie there with their checksums: what is damaged, or was not written in full, is read from its source again,
    and a full or lost disk ends the filling and nothing else; `Loader.report` says so.

    >>> import tempfile
    >>> import tidegate as tg
    >>> tg.DiskCache(tempfile.gettempdir(), "100MiB").limit
    '100MiB'
    """

    folder: str | os.PathLike[str]
    limit: int | str
    leave_free: int | str = "1GiB"

    def spec(self) -> dict[str, Any]:
        """Return the cache as the loader's options have it."""
        return {
            "folder": os.path.abspath(os.fspath(self.folder)),
            "limit_bytes": _tidegate.size_bytes(self.limit),
            "leave_free_bytes": _tidegate.size_bytes(self.leave_free) if self.leave_free else 0,
        }
