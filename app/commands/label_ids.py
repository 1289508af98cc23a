"""Image and category ids for results, taken from the label file that the results are to be measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.data import DatasetError
from model.data.document import read_document
from model.data.fields import to_key
from model.data.finder import fold, spellings
from model.data.labels import file_name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class LabelIds:
    """The ids of a label file, as they stand in it, so that pycocotools joins results and labels."""

    path: Path
    # Path of an image, or its last parts, in a folded form → the ids of all images of that name.
    images: dict[str, list[Any]]
    # Category name → id.
    categories: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> LabelIds:
        """The ids in a COCO label file. Raises DatasetError."""
        document = read_document(path)
        images: dict[str, list[Any]] = {}
        for image in document["images"]:
            name = file_name_of(image) if isinstance(image, dict) else None
            if name is not None and to_key(image.get("id")) is not None:
                for key in dict.fromkeys(_keys(name)):
                    images.setdefault(key, []).append(image["id"])
        categories = {
            str(category["name"]): category["id"]
            for category in document["categories"]
            if isinstance(category, dict) and "name" in category and to_key(category.get("id")) is not None
        }
        return cls(path, images, categories)

    def image_ids(self, files: Iterable[Path]) -> dict[Path, Any]:
        """The id of each file. Raises DatasetError for one that the labels do not list, or list several times."""
        found = {}
        owners: dict[Any, Path] = {}
        for file in files:
            ids = next((self.images[key] for key in _keys(file.as_posix()) if key in self.images), [])
            if len(ids) != 1:
                what = "lists several images of this name" if ids else "does not list this image"
                raise DatasetError(f"{file}: {self.path} {what}, so its results would have no id")
            if (other := owners.setdefault(ids[0], file)) != file:
                raise DatasetError(f"{other} and {file} would both be the image {ids[0]!r} of {self.path}")
            found[file] = ids[0]
        return found

    def describe_missing(self, categories: Sequence[Mapping[str, Any]]) -> str | None:
        """Which categories of a model these labels have not, in one line; None if they have all.

        Raises DatasetError if they have none: the results would be empty.
        """
        names = [str(category["name"]) for category in categories if category["name"] not in self.categories]
        if not names:
            return None
        shown = ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
        if len(names) == len(categories):
            raise DatasetError(f"{self.path} has none of the model's categories: {shown}")
        return f"left out, because {self.path} has no such categories: {shown}"

    def rename(self, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Records with the labels' category ids, without those of categories that the labels do not have."""
        for record in records:
            if record["category"] in self.categories:
                yield {**record, "category_id": self.categories[record["category"]]}


def _keys(name: str) -> Iterator[str]:
    """What a path may be found by: all of it, then its last parts, longest first."""
    paths = [path for path in spellings(name) if ".." not in path.parts]
    for start in range(max((len(path.parts) for path in paths), default=0)):
        yield from (fold("/".join(path.parts[start:])) for path in paths if start < len(path.parts))
