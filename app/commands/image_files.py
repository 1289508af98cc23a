"""The images that `maskserve segment` is given: files, and folders of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model.images.files import find_images, nothing_found

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from app.commands.shard import Shard


def is_unicode(path: Path) -> bool:
    """Whether a path can be written in JSON; on Linux it may be any bytes."""
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_below(file: Path, drawn: Path, folder: Path) -> bool:
    """Whether a file lies in the overlays' folder, which lies in the one that is looked through."""
    inner = drawn.resolve()
    return inner != folder.resolve() and file.resolve().is_relative_to(inner)


def expand_folders(
    images: Sequence[Path], shard: Shard | None = None, *, drawn: Path | None = None
) -> tuple[dict[Path, Path], dict[Path, str]]:
    """Image file → the folder that it was found in, or lies in; pictures in the folders that are not read → why.

    Raises ValueError for a folder without images.

    Args:
        images: files and folders.
        shard: the images that are taken, of which there may be none; by default all.
        drawn: a folder that overlays are written to, and which is left out of those that it lies in.
    """
    files: dict[Path, Path] = {}
    others: dict[Path, str] = {}
    for path in images:
        if not path.is_dir():
            if shard is None or shard.has(path.name):
                files[path] = path.parent
            continue
        found, unread = find_images(path, recursive=True, select=None if shard is None else shard.has)
        unread |= {file: "its name is not UTF-8; rename it" for file in found if not is_unicode(file)}
        found = [
            file
            for file in found
            if file not in unread and (drawn is None or not _is_below(file, drawn, path))
        ]
        if not found and shard is None:
            raise ValueError(nothing_found(path, unread))
        files |= dict.fromkeys(found, path)
        others |= unread
    return files, others
