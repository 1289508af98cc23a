"""Image files in folders, told by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def images_in(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The image files in a folder, sorted by path; with `recursive` those in its subfolders too. Raises OSError."""
    paths = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file())
