"""Memory that a forward pass frees is kept for the next one, until it is much."""

from __future__ import annotations

import ctypes
import sys

# glibc's numbers of the parameters (malloc.h), and what they are set to.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_KEPT = 2**31 - 1  # bytes free at the heap's end before any go back to the system: the most that can be said


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed instead of giving it back to the kernel; say if it did.

    A ResNet-50 allocates and frees some 30 tensors of 28 to 56 MB per image. glibc returns each to the kernel at once,
    which then has to find and clear every page anew: a tenth of the pass, measured on a virtual machine. The process
    stays as large as its largest pass. One heap for all threads, because those of threads are limited to 64 MB.

    Does nothing where the C library is not glibc.
    """
    libc = _glibc()
    values = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT), (_ARENA_MAX, 1))
    return libc is not None and all(libc.mallopt(name, value) == 1 for name, value in values)


def release_freed_memory() -> None:
    """Give what is kept back to the kernel: milliseconds for hundreds of megabytes."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None  # else: musl
