"""The categories of a label file: ids as numbers, names as they stand, roots of a hierarchy left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from model.data import Category, DatasetError
from model.data.fields import Key, quote, to_key

if TYPE_CHECKING:
    from pathlib import Path

# What LabelMe's converter lists besides the labels that people gave.
_PLACEHOLDERS = frozenset(("_background_", "__background__", "__ignore__"))
# Supercategories of what is below nothing.
_NO_PARENT = ("", "none", "null")


@dataclass(slots=True)
class Categories:
    """The categories by what annotations call them."""

    # By ascending id.
    known: tuple[Category, ...] = ()
    # Id or name in the file → Category.id.
    by_key: dict[Key, int] = field(default_factory=dict)
    # The ids as the file has them, or the names of those that have none.
    keys: tuple[Key, ...] = ()
    # What was left out, and why.
    dropped: tuple[str, ...] = ()

    def find(self, value: Any) -> int | None:
        """The id of the category that an annotation names, by number or by name; None if there is none."""
        key = to_key(value)
        return None if key is None else self.by_key.get(key)


@dataclass(slots=True)
class _Entry:
    # In the file's list.
    place: int
    key: Key | None
    name: str
    # Its supercategory.
    parent: str
    # Annotations that refer to it.
    used: int


def read_categories(document: dict[str, Any], path: Path) -> Categories:
    """The categories that objects may have. Raises DatasetError.

    Left out are the roots that Roboflow writes (no supercategory, no annotations, and the supercategory of others or
    their namesake), and LabelMe's background, where no annotation refers to them. Ids that are names are numbered.
    """
    entries = _without_repeats(_entries(document, path))
    dropped: list[str] = []
    kept = []
    for entry in entries:
        others = [other for other in entries if other is not entry]
        if others and not entry.used and (entry.name in _PLACEHOLDERS or _is_root(entry, others)):
            dropped.append(
                f"category {entry.name!r} (id {quote(entry.key)}), the root of the others, without objects"
            )
        else:
            kept.append(entry)
    if not kept:
        raise DatasetError(f"{path}: it lists no categories; there is nothing to learn")
    _refuse_twins(kept, path)
    return _assign_ids(kept, tuple(dropped))


def _is_root(entry: _Entry, others: list[_Entry]) -> bool:
    """Whether a category is only what others are below, or their namesake above them."""
    if entry.parent.lower() not in _NO_PARENT:
        return False
    namesakes = [other for other in others if other.name == entry.name]
    below = any(other.used or other.parent.lower() not in _NO_PARENT for other in namesakes)
    return below or any(other.parent == entry.name for other in others)


def _entries(document: dict[str, Any], path: Path) -> list[_Entry]:
    used: Counter[Key | None] = Counter(
        to_key(a.get("category_id")) for a in document["annotations"] if isinstance(a, dict)
    )
    found = []
    for place, category in enumerate(document["categories"]):
        where = f"{path}: categories[{place}]"
        if not isinstance(category, dict):
            raise DatasetError(f"{where}: an object with id and name is expected, not {quote(category)}")
        name = category.get("name")
        if isinstance(name, bool) or not isinstance(name, str | int | float) or not str(name).strip():
            raise DatasetError(f"{where}: name is {quote(name)}, but a text is needed")
        key = to_key(category.get("id"))
        if key is None and category.get("id") is not None:
            raise DatasetError(f"{where}: id is {quote(category['id'])}, but a number or a name is needed")
        parent = category.get("supercategory")
        found.append(
            _Entry(place, key, str(name), "" if parent is None else str(parent), used[key] + used[str(name)])
        )
    return found


def _without_repeats(entries: list[_Entry]) -> list[_Entry]:
    """Each category once, where the file lists the same id and name again."""
    return list({(entry.key, entry.name): entry for entry in reversed(entries)}.values())[::-1]


def _refuse_twins(entries: list[_Entry], path: Path) -> None:
    for what in ("key", "name"):
        seen: dict[Any, _Entry] = {}
        for entry in entries:
            value = getattr(entry, what)
            if value is not None and value in seen:
                called = "id" if what == "key" else "name"
                raise DatasetError(
                    f"{path}: categories[{seen[value].place}] and categories[{entry.place}] have the same {called}, "
                    f"{quote(value)}; rename one of them, or merge them"
                )
            seen[value] = entry


def _assign_ids(entries: list[_Entry], dropped: tuple[str, ...]) -> Categories:
    """Ids that are numbers as they are, the others counted on from the largest, in the file's order."""
    numbers = {entry.key for entry in entries if isinstance(entry.key, int)}
    following = max((n for n in numbers if isinstance(n, int)), default=0) + 1
    by_key: dict[Key, int] = {}
    known = []
    for entry in entries:
        if isinstance(entry.key, int):
            number = entry.key
        else:
            number, following = following, following + 1
        by_key[entry.key if entry.key is not None else entry.name] = number
        known.append(Category(number, entry.name))
    keys = tuple(by_key)
    # An annotation may give the name, where that is no other's id.
    for category in known:
        by_key.setdefault(category.name, category.id)
    return Categories(tuple(sorted(known, key=lambda c: c.id)), by_key, keys, dropped)
