"""The images that `maskserve segment` is given: files, and folders of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model.images.files import find_images, nothing_found

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from app.commands.shard import Shard


NOT_UNICODE = "its name is not UTF-8; rename it"


def is_unicode(path: Path) -> bool:
    """Whether a path can be written in JSON; on Linux it may be any bytes."""
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        return False
    return True


def _inner_folder(drawn: Path | None, folder: Path) -> Path | None:
    """The overlays' folder, if it lies in the one that is looked through."""
    if drawn is None:
        return None
    inner, outer = drawn.resolve(), folder.resolve()
    return inner if inner != outer and inner.is_relative_to(outer) else None


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
            if shard is not None and not shard.has(path.name):
                continue
            if is_unicode(path):
                files[path] = path.parent
            else:
                others[path] = NOT_UNICODE
            continue
        found, unread = find_images(path, recursive=True, select=None if shard is None else shard.has)
        unread |= {file: NOT_UNICODE for file in found if not is_unicode(file)}
        inner = _inner_folder(drawn, path)
        if inner is not None:
            found = [file for file in found if not file.resolve().is_relative_to(inner)]
        found = [file for file in found if file not in unread]
        if not found and shard is None:
            raise ValueError(nothing_found(path, unread))
        files |= dict.fromkeys(found, path)
        others |= unread
    return files, others
