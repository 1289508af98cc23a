"""Image files in folders, recognised by their content; hidden files are skipped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from model.images.formats import ACCEPTED, UnsupportedImage, format_of

if TYPE_CHECKING:
    from collections.abc import Callable

# Bytes, which tell an image's format.
BEGINNING = 4096

# Suffixes of the formats that are read, and of images in formats that are not.
READ = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
))  # fmt: skip
NOT_READ = frozenset((
    ".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".ico", ".psd", ".svg", ".tga", ".exr", ".hdr",
    ".ppm", ".pgm", ".pbm", ".pnm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".dcm",
))  # fmt: skip


def images_in(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The image files in a folder, sorted by path; with `recursive` those in its subfolders too. Raises OSError."""
    return find_images(folder, recursive=recursive)[0]


def find_images(
    folder: Path, *, recursive: bool = False, select: Callable[[str], bool] | None = None
) -> tuple[list[Path], dict[Path, str]]:
    """The image files in a folder, whatever they are called, and why each other image in it is not read.

    Hidden files and folders, and macOS' resource forks, are skipped, as are files that are no images. A damaged
    image counts as one, as does any file that is called like one. Both results are sorted by path. Raises OSError for
    a folder that cannot be read.

    Args:
        folder: to look into.
        recursive: whether its subfolders are looked into too.
        select: tells by a file's path below the folder, with slashes, whether it is looked at; by default all are.
    """
    found: list[Path] = []
    others: dict[Path, str] = {}
    for path in sorted(_visible_files(folder, recursive=recursive, select=select)):
        try:
            with path.open("rb") as file:
                format_of(file.read(BEGINNING))
        except UnsupportedImage as error:
            if path.suffix.lower() in READ:
                # It should be an image, so that decoding tells why it is none.
                found.append(path)
            elif path.suffix.lower() in NOT_READ:
                others[path] = str(error)
        except OSError as error:
            others[path] = f"cannot be read: {error.strerror or error}"
        else:
            found.append(path)
    return found, others


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none that people put there: hidden ones, and macOS' resource forks."""
    return name.startswith(".") or name == "__MACOSX"


def nothing_found(folder: Path, others: dict[Path, str]) -> str:
    """What to say of a folder without images that can be read."""
    first = next((f"; {path.name}: {reason}" for path, reason in others.items()), "")
    return f"{folder}: no images ({ACCEPTED}) in this folder{first}"


def _visible_files(
    folder: Path, *, recursive: bool, select: Callable[[str], bool] | None = None
) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise error

    files: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if recursive and not is_hidden(name)]
        paths = [Path(place, name) for name in names if not is_hidden(name)]
        if select is not None:
            paths = [path for path in paths if select(path.relative_to(folder).as_posix())]
        files += [path for path in paths if path.is_file()]
    return files
