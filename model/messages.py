"""Phrases that error messages in several packages have in common. Imports nothing heavy."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if the message is empty."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def did_you_mean(
    name: str, known: Iterable[str], *, most: int = 1, spell: Callable[[str], str] = str
) -> str | None:
    """`did you mean shapes?`, or None if no known name is similar.

    Args:
        name: what was given.
        known: the names that are accepted.
        most: how many suggestions the question may hold.
        spell: how a suggestion is written, for names that users know in another form.
    """
    close = difflib.get_close_matches(name, list(known), n=most)
    return f"did you mean {' or '.join(map(spell, close))}?" if close else None
