"""`DiskCache`: where samples are kept on a local disk, from one epoch and one run to the next."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from tidegate import _tidegate
from tidegate.errors import ConfigError

__all__ = ["DiskCache"]


@dataclass(frozen=True)
class DiskCache:
    """A folder on a local disk for what comes from slower places; all ranks of a machine share it.

    Args:
        folder: datasets have folders of their own in it; a dataset that changes is another.
        limit: the most that all of them take, in bytes or as "100GiB". Datasets that no loader has make room (those
            of a loader that is closed, but not yet deleted, do not).
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

    def __post_init__(self) -> None:
        """Raise ConfigError for a folder or a size that cannot be meant."""
        folder = os.fspath(self.folder)
        if not folder or "://" in folder:
            raise ConfigError(f"{folder!r} is no folder on a local disk")
        for name, size in [("limit", self.limit), ("leave_free", self.leave_free)]:
            if not isinstance(size, int | str) or isinstance(size, bool):
                raise ConfigError(f"{name}={size!r} of a disk cache is no size: write bytes, or a unit as in '100GiB'")

    def spec(self) -> dict[str, Any]:
        """Return the cache as the loader's options have it."""
        return {
            "folder": os.path.abspath(os.path.expanduser(os.fspath(self.folder))),
            "limit_bytes": _tidegate.size_bytes(self.limit),
            "leave_free_bytes": _tidegate.size_bytes(self.leave_free) if self.leave_free else 0,
        }
