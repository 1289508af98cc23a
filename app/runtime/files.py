"""How many files the process may open."""

from __future__ import annotations

from contextlib import suppress


def file_limit() -> int:
    """How many files this process may open, raised as far as it may raise it by itself (ulimit -n)."""
    try:
        import resource  # noqa: PLC0415 - there is none on Windows
    except ImportError:
        return 1 << 20
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft
