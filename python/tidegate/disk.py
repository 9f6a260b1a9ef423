"""`DiskCache`: a folder on a local disk that caches samples across epochs and runs.

Flow: options -> `Loader(disk=...)` -> the disk tier of the cache.
Memory: holds none; the tier takes up to some MiB of the loader's budget.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from tidegate import _tidegate
from tidegate.errors import ConfigError
from tidegate.options import as_path

__all__ = ["DiskCache"]


@dataclass(frozen=True)
class DiskCache:
    """A disk cache for samples from a slower place; all ranks of a machine share it.

    Each dataset has a folder of its own inside; a dataset whose files change is another dataset.
    Each record has a checksum. The loader reads a record that is damaged or incomplete from its
    source again. A full or lost disk only stops the cache from growing; `Loader.report` says so.

    Args:
        folder: a path on a local disk; made if it is not there. In a folder that all users may
            write to, such as /tmp, the cache is in a folder of this user's own.
        limit: the most that all datasets in it may take: bytes, or text such as "100GiB". Above
            it, records of datasets that no loader has open are evicted first. (Those of a closed
            loader count as open until the loader is deleted.)
        leave_free: what must stay free on the disk: bytes or text, by default "1GiB". The cache
            reserves space before it writes.

    Raises ConfigError for a URL as the folder, or a size that is not one.

    >>> import tempfile
    >>> import tidegate as tg
    >>> tg.DiskCache(tempfile.gettempdir(), "100MiB").limit
    '100MiB'
    """

    folder: str | os.PathLike[str]
    limit: int | str
    leave_free: int | str = "1GiB"

    def __post_init__(self) -> None:
        """Raise ConfigError for a folder or a size that is not valid."""
        folder = as_path("folder", self.folder)
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
