"""What the process takes besides tensors: its memory, and what the C library keeps of it.

Flow: /proc/self -> bytes; the C library -> freed blocks go back to the kernel.
Memory: holds none.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

__all__ = ["anonymous_bytes", "begin_peak", "give_back", "peak_bytes", "pressure", "return_freed_blocks"]

# Blocks of this many bytes are mapped alone and go back to the kernel when they are freed.
MAPPED_BYTES = 64 << 10
# `mallopt` of glibc: its numbers of these settings.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
# Where version 2 of memory groups is.
GROUPS = "/sys/fs/cgroup"
# Functions that other allocators have, whose settings these are not.
OTHERS = {"mallctl": "jemalloc", "tc_version": "tcmalloc", "mi_version": "mimalloc"}


def _sizes() -> dict[str, int]:
    """Return the bytes of all sizes in /proc/self/status, by their names."""
    words = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) << 10 for line in words if line[2:] == ["kB"]}


def _anonymous(sizes: dict[str, int]) -> int:
    return sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)


def anonymous_bytes() -> int:
    """Return the memory of this process that is in no file.

    Pages of libraries are not counted: the kernel charges them to the first process that read
    them, and drops them where memory is short.
    """
    return _anonymous(_sizes())


def begin_peak() -> int | None:
    """Begin a new peak; return the bytes of files now, for `peak_bytes`.

    Returns None where the kernel does not let it.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _sizes().get("RssFile", 0)


def peak_bytes(files: int) -> int:
    """Return the most memory that is in no file since `begin_peak`, which gave `files`.

    The kernel keeps the peak with files in it: where their pages were mapped meanwhile, this is too
    much by as many bytes.
    """
    sizes = _sizes()
    return max(sizes.get("VmHWM", 0) - min(files, sizes.get("RssFile", 0)), _anonymous(sizes))


def pressure() -> float:
    """Return the percent of the last 10 seconds in which this memory group waited for memory.

    It is 0 where the kernel does not say: version 1 of groups, and outside of groups. The pressure
    of the whole machine is not asked for, since others cause it too.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line.split("::", 1)[1] for line in lines if line.startswith("0::"))
        if not Path(f"{GROUPS}{own}/cgroup.type").exists():
            # The root of all groups.
            return 0.0
        some = Path(f"{GROUPS}{own}/memory.pressure").read_text().splitlines()[0].split()
        return float(next(word for word in some if word.startswith("avg10=")).removeprefix("avg10="))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0.0


@functools.cache
def return_freed_blocks() -> str:
    """Make the C library give freed blocks back to the kernel; return what was done, in words.

    It is done once, and for the process. By default glibc keeps freed blocks of up to 32 MiB, and
    tensors come and go by the step.
    """
    library = ctypes.CDLL(None)
    for function, name in OTHERS.items():
        if hasattr(library, function):
            return f"the allocator is {name}, and what it keeps of freed memory is in no plan"
    if not hasattr(library, "mallopt") or not hasattr(library, "gnu_get_libc_version"):
        return "the C library is not glibc, and what it keeps of freed memory is in no plan"
    found = [f"{name}={os.environ[name]}" for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
             if name in os.environ]  # fmt: skip
    if found:
        return f"the C library keeps freed memory as {' and '.join(found)} says"
    library.mallopt(MMAP_THRESHOLD, MAPPED_BYTES)
    library.mallopt(TRIM_THRESHOLD, MAPPED_BYTES)
    give_back()
    return f"the C library was set to give freed blocks of {MAPPED_BYTES >> 10} KiB and more back to the kernel"


def give_back() -> None:
    """Give the kernel the pages of freed blocks that the C library keeps."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
