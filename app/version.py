"""The version of maskserve."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata


def version() -> str:
    """The installed package's version."""
    try:
        return metadata("maskserve")["Version"]
    except PackageNotFoundError:
        # It runs from a checkout that was not installed.
        return "0+source"
