"""Keeps the memory that a forward pass frees for the next one, and returns it to the system on request."""

from __future__ import annotations

import ctypes
import sys

# glibc's numbers of its parameters (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
# Free bytes at the end of the heap from which on they are returned to the system: the largest value there is.
_KEPT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of returning it to the kernel; return whether it does.

    A ResNet-50 allocates and frees some 30 tensors of 28 to 56 MB for each image. By default glibc returns each to
    the kernel at once, which then has to find and clear every page again: a tenth of the forward pass, measured on a
    virtual machine. The process stays as large as its largest passes. All threads share one heap, because the heaps of
    threads are limited to 64 MB.

    Does nothing if the C library is not glibc.
    """
    return _set((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT), (_ARENA_MAX, 1))


def keep_small_blocks(block: int, total: int) -> bool:
    """The same for small blocks only; larger ones still go back to the kernel at once. Return whether glibc does it.

    Args:
        block: bytes from which on a block is large; 32 MiB at most.
        total: bytes that are kept at the end of the heap, about.
    """
    return _set((_MMAP_THRESHOLD, block), (_TRIM_THRESHOLD, total), (_ARENA_MAX, 1))


def release_freed_memory() -> None:
    """Return the kept memory to the kernel, which takes milliseconds for hundreds of megabytes."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _set(*values: tuple[int, int]) -> bool:
    libc = _glibc()
    return libc is not None and all(libc.mallopt(name, value) == 1 for name, value in values)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    # musl, for one, has neither.
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
