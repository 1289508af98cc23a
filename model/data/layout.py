"""A dataset's folder as COCO, Roboflow, CVAT, Datumaro, Label Studio and others leave it → label file and images."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from model.data import DatasetError
from model.images.files import is_hidden

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# Files that hold a folder's labels, by tool: ours, Roboflow's, LabelMe's, Label Studio's, FiftyOne's.
NAMES = ("instances.json", "_annotations.coco.json", "annotations.json", "result.json", "labels.json")
FOLDERS = ("annotations", "Annotations", "annotation", "labels")
IMAGES = ("images", "Images", "data", "JPEGImages", "img", "imgs")

# Suffixes of compressed files.
PACKED = frozenset((".gz", ".zip", ".bz2", ".xz", ".zst"))

# What the parts of a dataset are called, by what they are for.
SPLITS = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
# COCO's year.
_DIGITS = re.compile(r"[-_]?\d{4}$")


class Place(NamedTuple):
    """Where a dataset lies."""

    # The JSON file.
    labels: Path
    # Folders where its images may lie, likely ones first.
    roots: list[Path]


def locate(
    path: Path, images: Path | None = None, *, split: str | None = None, otherwise: str = "train"
) -> Place:
    """The label file and the images' folders of a dataset. Raises DatasetError.

    Args:
        path: the dataset's folder, or its JSON file.
        images: where the images lie; by default it is looked for around the label file.
        split: the part to take of a folder that has several, like "val"; it must be there.
        otherwise: the part to take of several where `split` says nothing.
    """
    try:
        if path.is_dir():
            path = _label_file(path, split, otherwise)
        if images is None:
            return Place(path, _around(path))
        if not images.is_dir():
            raise DatasetError(f"{images}: no such folder, where the images should be")
    except OSError as error:
        told = (error.strerror or "unknown reason").lower()
        raise DatasetError(f"{error.filename or path}: cannot be read ({told})") from error
    return Place(path, [*(images / part for part in _parts(path)), images])


def split_of(labels: Path) -> str | None:
    """Which part of a dataset a label file is of, by its own or its folder's name: a key of SPLITS."""
    for name in (*reversed(_parts(labels)), labels.parent.name):
        plain = _DIGITS.sub("", name.lower())
        for split, names in SPLITS.items():
            if plain in names:
                return split
    return None


def _label_file(folder: Path, split: str | None, otherwise: str) -> Path:
    for found in _levels(folder):
        chosen = _choose(found, split, otherwise) if len(found) > 1 or split is not None else found
        if len(chosen) == 1:
            return chosen[0]
        if found:
            names = ", ".join(str(file.relative_to(folder)) for file in found[:8])
            none = split is not None and not chosen
            told = f"none is of the split {split!r}; name" if none else "say which with --split, or name"
            raise DatasetError(f"{folder}: its label files are {names}; {told} the file itself")
    archives = sorted((*folder.glob("*.json.*"), *folder.glob("*/*.json.*")))
    if packed := next((file for file in archives if file.suffix in PACKED), None):
        raise DatasetError(f"{folder}: {packed.relative_to(folder)} is compressed; unpack it")
    kinds = {".xml": "Pascal VOC", ".txt": "YOLO"}
    other = next((kind for ending, kind in kinds.items() if any(folder.glob(f"*/*{ending}"))), None)
    told = f" (its labels look like those of {other}; export them as COCO)" if other is not None else ""
    raise DatasetError(
        f"{folder}: an instances.json, or exactly one JSON file in annotations/, is needed; there are none{told}. "
        "A JSON file can be named instead of the folder"
    )


def _levels(folder: Path) -> Iterable[list[Path]]:
    """The label files of a folder: in it, in its annotations/, in its subsets; the first that has any counts."""
    own = [file for name in NAMES if (file := folder / name).is_file()]
    yield own[:1] if own[:1] == [folder / NAMES[0]] else own
    for name in FOLDERS:
        yield _instances(folder / name)
    yield _instances(folder)
    subsets = [sub for sub in sorted(folder.iterdir()) if sub.is_dir() and not is_hidden(sub.name)]
    for levels in ((), FOLDERS):
        found = []
        for sub in subsets:
            for place in [sub / level for level in levels] or [sub]:
                named = [file for name in NAMES if (file := place / name).is_file()]
                found += named or _instances(place)
        yield found


def _instances(folder: Path) -> list[Path]:
    """The JSON files in a folder; those with "instances" in their name where there are others beside them."""
    files = sorted(
        file for file in folder.glob("*.[jJ][sS][oO][nN]") if not is_hidden(file.name) and file.is_file()
    )
    return [file for file in files if "instances" in file.name.lower()] or files


def _choose(files: list[Path], split: str | None, otherwise: str) -> list[Path]:
    wanted = split if split is not None else otherwise
    exact = [
        f for f in files if wanted.lower() in (*(part.lower() for part in _parts(f)), f.parent.name.lower())
    ]
    if exact:
        return exact
    kind = next((kind for kind, names in SPLITS.items() if wanted.lower() in names), None)
    return [file for file in files if kind is not None and split_of(file) == kind]


def _parts(labels: Path) -> list[str]:
    """What a label file's name may say about its part: its whole stem, then what follows each `_`, `.` or `-`."""
    stem = labels.stem
    marks = [match.end() for match in re.finditer(r"[_.-]", stem)]
    return [part for part in (stem, *(stem[mark:] for mark in marks), *re.split(r"[_.-]", stem)) if part]


def _around(labels: Path) -> list[Path]:
    """Folders where the images of a label file may lie: its own subset's first, the widest last."""
    # A relative path may end above its first part.
    folder = labels.absolute().parent
    bases = [folder, folder.parent] if folder.name.lower() in FOLDERS else [folder]
    parts = list(dict.fromkeys(_parts(labels)))
    names = {name.lower() for kind in [split_of(labels)] if kind for name in SPLITS[kind]}
    found: list[Path] = []
    for base in bases:
        for place in (*(base / name for name in IMAGES), base):
            found += [place / part for part in parts]
            if names and place.is_dir():
                found += [
                    sub for sub in sorted(place.iterdir()) if _DIGITS.sub("", sub.name.lower()) in names
                ]
    found += [base / name for base in (folder, folder.parent) for name in IMAGES]
    return [*found, *bases]
