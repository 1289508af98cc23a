"""File names as label files spell them → the image files below a folder, and never a file outside of it.

Labelling tools run on other machines: names come with backslashes, drive letters, percent-encoding, addresses, folders
of their own, and accents in one piece or in two. A name is tried as it stands first.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from model.images.files import is_hidden

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Files below a folder that are looked through for a name.
ENOUGH = 200_000
# What Label Studio puts before the name of an uploaded file.
UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")
# Missing files for which one of a similar name is looked for.
MOST_SEARCHES = 5
# Names by which the folder is chosen.
SAMPLE = 40


class NotFound(Exception):  # noqa: N818 - says what happened, as `except` reads best
    """There is no such image; the message says where it was looked for, and what would make it found."""


class OutsideFolder(NotFound):
    """The name leads out of the images' folder, or to something that is no regular file."""


class ImageFinder:
    """Looks names up below one folder, the first of `roots` that has most of them."""

    def __init__(self, roots: Sequence[Path], names: Sequence[str]) -> None:
        """roots: folders where the images may lie, likely ones first. names: those to be looked up later."""
        self.roots = list(dict.fromkeys(root for root in roots if root.is_dir()))
        self._real: dict[Path, Path] = {}
        self._by_path: dict[str, list[Path]] | None = None
        self._by_name: dict[str, list[Path]] = {}
        self._searched = 0
        few = names[:: max(1, len(names) // SAMPLE)]
        ranks = {root: sum(self._rank(root, name) for name in few) for root in self.roots}
        self.root = max(self.roots, key=lambda root: ranks[root], default=roots[0])
        # Only a look through everything can find them, so at the widest folder.
        if not any(ranks.values()):
            self.root = self.roots[-1] if self.roots else roots[0]

    def find(self, name: str) -> Path:
        """The image's file. Raises NotFound, OutsideFolder."""
        outward = [path for path in spellings(name) if ".." in path.parts]
        try:
            if outward:
                return self._find_inside(name, outward)
            for path in _tails(name, self.root):
                found = self.root / path
                if self._is_file(found, name):
                    return found
            return self._look_through(name)
        except OSError as error:
            told = (error.strerror or "unknown reason").lower()
            raise NotFound(f"file_name {name!r} cannot be looked up ({told})") from error

    def _find_inside(self, name: str, outward: Sequence[PurePosixPath]) -> Path:
        """The only file below the folder that ends as a name does which leads out of it, as Label Studio's may.

        Args:
            name: as it stands.
            outward: its spellings.
        """
        refusal = f"file_name {name!r} leads out of the images' folder; such files are not read"
        root = Path(os.path.realpath(self.root))
        if any(
            _exists(self.root / path) and not Path(os.path.realpath(self.root / path)).is_relative_to(root)
            for path in outward
        ):
            raise OutsideFolder(refusal)
        try:
            return self._look_through(name, whole=False)
        except NotFound as error:
            raise OutsideFolder(f"{refusal} (in the folder: {error})") from error

    def _rank(self, root: Path, name: str) -> int:
        """How well a name fits to a folder: as it stands, or without its first folders."""
        whole = [path for path in spellings(name) if ".." not in path.parts]
        if any(_exists(root / path) for path in whole):
            return 3
        return int(any(_exists(root / path) for path in _tails(name, root)))

    def _is_file(self, file: Path, name: str) -> bool:
        if not os.path.lexists(file):
            return False
        folder = file.parent
        if folder not in self._real:
            self._real[folder] = Path(os.path.realpath(folder))
        root = self._real.setdefault(self.root, Path(os.path.realpath(self.root)))
        target = Path(os.path.realpath(file)) if file.is_symlink() else self._real[folder] / file.name
        if not target.is_relative_to(root):
            raise OutsideFolder(
                f"file_name {name!r} is a link that leads out of {self.root}; such files are not read. "
                "--images takes the folder in which the files lie"
            )
        kind = file.stat().st_mode if file.exists() else 0
        if kind and not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise OutsideFolder(f"file_name {name!r} is no regular file")
        return stat.S_ISREG(kind)

    def _look_through(self, name: str, *, whole: bool = True) -> Path:
        """The only file below the folder whose path or name is alike, capitals and spelling of accents aside.

        Args:
            name: as it stands.
            whole: whether a file's own name is its whole path where it lies in the folder itself.
        """
        if self._by_path is None:
            self._by_path = {}
            for path in _files_below(self.root):
                self._by_path.setdefault(fold(path.as_posix()), []).append(path)
                self._by_name.setdefault(fold(path.name), []).append(path)
        tails = list(_tails(name, self.root))
        last = fold(tails[-1].name) if tails else ""
        alike = [
            self._by_path.get(fold(path.as_posix()), []) for path in tails if whole or len(path.parts) > 1
        ]
        if tails and len(tails[-1].parts) == 1:
            alike.append(self._by_name.get(last, []))
            alike.append(self._by_name.get(UPLOADED.sub("", last, 1), []))
        for found in alike:
            if len(found) == 1 and self._is_file(self.root / found[0], name):
                return self.root / found[0]
            if len(found) > 1:
                raise NotFound(
                    f"file_name {name!r} could be several files in {self.root}: "
                    + ", ".join(str(path) for path in found[:3])
                )
        raise NotFound(self._missing(name, last))

    def _missing(self, name: str, last: str) -> str:
        # It takes a tenth of a second, and all images of a wrong folder are missing.
        self._searched += 1
        near = []
        if self._searched <= MOST_SEARCHES:
            near = get_close_matches(last, list(self._by_name)[:20_000], 1, 0.8)
        known = sum(map(len, self._by_name.values()))
        others = [str(root) for root in self.roots if root != self.root]
        shown = name if name.isprintable() else repr(name)
        text = f"file_name: {shown} is not in {self.root}, nor below it ({known} files)"
        text += f", nor in {', '.join(others)}" * bool(others)
        if near:
            return f"{text}; {self._by_name[near[0]][0]} has a name like it"
        return f"{text}; --images takes the folder that has it"


def spellings(name: str) -> list[PurePosixPath]:
    """The relative paths that a name may stand for: as it is first, then as other systems and addresses write it."""
    plain = name
    address = None
    if "://" in name[:12] or "data/local-files/?" in name:
        # A name that is no address after all has a bracket.
        with suppress(ValueError):
            address = urlsplit(name)
    # Label Studio has the path in the query, all others in the address.
    if address is not None:
        query = parse_qs(address.query).get("d", [])
        plain = query[0] if query else address.path
    forms = [name] if address is None else []
    forward = plain.replace("\\", "/")
    for spelt in (forward, unquote(forward), forward.strip()):
        text = spelt[2:] if spelt[1:3] == ":/" and spelt[0].isalpha() else spelt
        forms += [text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)]
    paths = [_without_turns(form.lstrip("/")) for form in dict.fromkeys(forms) if "\0" not in form]
    return [path for path in dict.fromkeys(paths) if path.name]


def _without_turns(path: str) -> PurePosixPath:
    """A relative path in which ".." stands at its beginning only."""
    parts: list[str] = []
    for part in PurePosixPath(path).parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        else:
            parts.append(part)
    return PurePosixPath(*parts)


def _tails(name: str, root: Path) -> Iterator[PurePosixPath]:
    """A name's spellings whole, then without their first folders, longest first.

    Not without the name of a folder that stands beside `root`: another subset's image of the same name is another.
    """
    paths = [PurePosixPath(*(part for part in path.parts if part != "..")) for path in spellings(name)]
    yield from paths
    for start in range(1, max((len(path.parts) for path in paths), default=0)):
        for path in paths:
            parts = path.parts
            if start < len(parts):
                beside = root.parent / parts[start - 1]
                if parts[start - 1] == root.name or not _exists(beside):
                    yield PurePosixPath(*parts[start:])


def _files_below(root: Path) -> Iterator[Path]:
    count = 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(files):
            if not is_hidden(name):
                yield Path(folder, name).relative_to(root)
                count += 1
        if count > ENOUGH:
            return


def fold(path: str) -> str:
    """A path as all ways to write it are alike: capitals, percent-encoding and the spelling of accents aside."""
    return unicodedata.normalize("NFC", unquote(path)).casefold()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    # A name that is too long for the file system.
    except (OSError, ValueError):
        return False
