"""Which categories a model and a dataset share by name, and which only look alike."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from model.messages import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from model.data import Category

# Categories that a message lists.
NAMED = 5


@dataclass(frozen=True, slots=True)
class SharedCategories:
    """The comparison of two lists of categories, by name."""

    shared: tuple[str, ...]
    only_model: tuple[str, ...]
    only_data: tuple[str, ...]
    # The data's name → the model's, where they differ by capitals, blanks, hyphens or underscores alone.
    alike: dict[str, str]

    def warning(self) -> str | None:
        """What is not shared, with what is close to it; None if everything of the data is."""
        if not self.only_data:
            return None
        text = f"the model does not know {_names(self.only_data)} of the data"
        if self.only_model:
            text += f", and the data do not have the model's {_names(self.only_model)}"
        if self.alike:
            pairs = ", ".join(
                f"{ours!r} is like {theirs!r}" for ours, theirs in list(self.alike.items())[:NAMED]
            )
            return f"{text}; {pairs}: --loose-names takes such names for the same"
        near = (did_you_mean(name, self.only_model) for name in self.only_data)
        guesses = [f"{name!r}: {guess}" for name, guess in zip(self.only_data, near, strict=True) if guess]
        return text + (f"; {'; '.join(guesses[:NAMED])}" if guesses else "")


def compare_categories(model: Iterable[Category], data: Iterable[Category]) -> SharedCategories:
    """Which names both lists have."""
    ours, theirs = [c.name for c in model], [c.name for c in data]
    only_model = tuple(name for name in ours if name not in theirs)
    only_data = tuple(name for name in theirs if name not in ours)
    by_fold: dict[str, list[str]] = {}
    for name in only_model:
        by_fold.setdefault(_fold(name), []).append(name)
    folds = [_fold(name) for name in only_data]
    alike = {
        name: by_fold[fold][0]
        for name, fold in zip(only_data, folds, strict=True)
        if len(by_fold.get(fold, [])) == 1 and folds.count(fold) == 1
    }
    return SharedCategories(tuple(n for n in theirs if n in ours), only_model, only_data, alike)


def rename_alike(model: Sequence[Category], data: Sequence[Category]) -> tuple[Category, ...]:
    """The data's categories, those that look like one of the model's called as the model calls it."""
    alike = compare_categories(model, data).alike
    return tuple(replace(category, name=alike.get(category.name, category.name)) for category in data)


def _fold(name: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name)).casefold()


def _names(names: Sequence[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + rest
