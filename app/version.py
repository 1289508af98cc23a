"""Which maskserve this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata


def version() -> str:
    """The installed package's version."""
    try:
        return metadata("maskserve")["Version"]
    except PackageNotFoundError:
        return "0+source"  # run from a checkout that was not installed
