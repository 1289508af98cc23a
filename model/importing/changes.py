"""What somebody says about a model that its file does not: `--set NAME=VALUE` in place of a default."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from model.importing.result import ImportingError
from model.messages import did_you_mean
from model.network.architecture import Architecture, ArchitectureError
from model.network.conventions import TORCHVISION, Conventions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Fields of the architecture that no tensor's shape says; all conventions are such.
CHANGEABLE = ("norm_eps", "anchor_sizes", "anchor_ratios", "proposals", "min_size", "max_size")
_CONVENTIONS = tuple(field.name for field in fields(Conventions))


def read_changes(given: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE of each → values by names. A value is JSON, numbers with commas between them, or a word.

    Raises ImportingError for names that there are not.
    """
    changes: dict[str, Any] = {}
    for each in given:
        name, equals, text = each.partition("=")
        name = name.strip()
        if not equals:
            raise ImportingError(f"{each!r:.60}: write NAME=VALUE")
        if name not in CHANGEABLE + _CONVENTIONS:
            known = CHANGEABLE + _CONVENTIONS
            hint = did_you_mean(name, known) or f"there are {', '.join(known)}"
            raise ImportingError(f"there is nothing to set that is called {name!r:.60}: {hint}")
        changes[name] = _value(text.strip())
    return changes


def apply(architecture: Architecture, changes: Mapping[str, Any]) -> Architecture:
    """The architecture with these changes. Raises ImportingError where they make none."""
    try:
        conventions = Conventions.from_dict(
            architecture.conventions.to_dict()
            | {n: _as_tuple(n, v) for n, v in changes.items() if n in _CONVENTIONS}
        )
        others = {n: _as_tuple(n, v) for n, v in changes.items() if n in CHANGEABLE}
        made = Architecture.from_dict(replace(architecture, conventions=conventions).to_dict() | others)
        made.validate()
    except ArchitectureError as error:
        raise ImportingError(str(error)) from None
    except ValueError as error:
        raise ImportingError(str(error)) from None
    return made


def _value(text: str) -> Any:
    for spelt in (text, f"[{text}]"):
        try:
            return json.loads(spelt)
        except ValueError:
            continue
    return text


def _as_tuple(name: str, value: Any) -> Any:
    """One number where several may stand is a list of one."""
    several = name in ("anchor_sizes", "anchor_ratios") or isinstance(getattr(TORCHVISION, name, None), tuple)
    return [value] if several and not isinstance(value, list) else value
