"""Finds the categories of the model that the parameter `categories` names.

A client can name every category. An exact name comes before an id, and an id before a name in other letter case. A
value that is a name as a whole is not split at its commas.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property
from typing import TYPE_CHECKING

from app.problems import InvalidParameter, suggest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from model.data import Category

# An id in the query: an integer of up to 64 bits.
CATEGORY_ID = re.compile(r"-?\d{1,19}", re.ASCII)


class CategoryNames:
    """The categories of a model, by name and by id."""

    def __init__(self, categories: Sequence[Category]) -> None:
        self._exact = {category.name: category.id for category in categories}
        self._ids = {category.id for category in categories}

    @cached_property
    def _by_folded_name(self) -> dict[str, list[str]]:
        """The exact names by their folded form. Built only when an item is neither an exact name nor an id."""
        names: dict[str, list[str]] = {}
        for name in self._exact:
            names.setdefault(fold(name), []).append(name)
        return names

    def ids(self, values: Iterable[str]) -> frozenset[int]:
        """The ids of the categories that the values of the parameter name. Raises InvalidParameter."""
        return frozenset(category for value in values for category in self._ids_in(value))

    def _ids_in(self, value: str) -> list[int]:
        """The ids in one value: a name, which may have commas in it, or several names or ids between commas."""
        if value in self._exact:
            return [self._exact[value]]
        if not value.strip():
            raise InvalidParameter("categories is empty; leave it out for its default.")
        found = [self._find(item) for item in value.split(",")]
        if None in found and (whole := self._find(value)) is not None:
            return [whole]
        for item, category in zip(value.split(","), found, strict=True):
            if category is None:
                raise self._unknown(item.strip())
        return [category for category in found if category is not None]

    def _find(self, item: str) -> int | None:
        """The category with this name or id, or None. Raises InvalidParameter for a name that fits two."""
        for name in (item, item.strip()):
            if name in self._exact:
                return self._exact[name]
        if CATEGORY_ID.fullmatch(item.strip()) and int(item) in self._ids:
            return int(item)
        names = self._by_folded_name.get(fold(item), [])
        if len(names) > 1:
            raise InvalidParameter(
                f'"{item.strip()[:40]}" fits several categories: {" and ".join(names)}. Use the exact name of one.'
            )
        return self._exact[names[0]] if names else None

    def _unknown(self, item: str) -> InvalidParameter:
        if not item:
            return InvalidParameter("categories has an empty entry between its commas.")
        return InvalidParameter(
            f'The model has no category "{item[:40]}". {suggest(item.casefold(), self._exact)}'
        )


def fold(name: str) -> str:
    """The name in a form that ignores letter case, the composition of characters, and blanks around it."""
    return unicodedata.normalize("NFC", name).strip().casefold()
