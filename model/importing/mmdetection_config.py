"""MMDetection's configurations: Python files of which only plain values are read. Nothing in them is run.

Assignments of literals, of `dict(…)` and of names assigned before are what published checkpoints hold (their
configuration is written out in full) and what most hand-written files consist of.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from model.importing.result import ImportingError

if TYPE_CHECKING:
    from pathlib import Path

MOST_BASES = 8


class _NotPlainError(Exception):
    """An expression that is no plain value."""


def read_config_file(path: Path, depth: int = 0) -> dict[str, Any]:
    """Every name that a configuration file and those that it builds on (`_base_`) assign. Raises ImportingError."""
    if depth > MOST_BASES:
        raise ImportingError(f"{path}: its _base_ leads back to itself")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ImportingError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ImportingError(f"{path}: no configuration of MMDetection: it is no text") from None
    own = read_config_text(text, str(path))
    bases = own.pop("_base_", [])
    below: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        below |= read_config_file(path.parent / str(base), depth + 1)
    return _merge(below, own)


def read_config_text(text: str, origin: str) -> dict[str, Any]:
    """Every name that a configuration assigns; what is no plain value is left out. Raises ImportingError."""
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ImportingError(f"{origin}: no configuration of MMDetection ({error!s:.100})") from None
    values: dict[str, Any] = {}
    for statement in module.body:
        if not isinstance(statement, ast.Assign):
            continue
        for target in statement.targets:
            if not isinstance(target, ast.Name):
                continue
            try:
                values[target.id] = _value(statement.value, values)
            except _NotPlainError as error:
                if target.id in ("model", "test_pipeline", "_base_"):
                    raise ImportingError(
                        f"{origin}: {target.id}: line {statement.lineno} has {error}, which is no plain value, and no "
                        "code is run. Give the configuration as MMDetection writes it out (work_dirs/…/NAME.py)"
                    ) from None
    return values


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item, names) for item in node.elts]
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise _NotPlainError("**")
        keys = [_value(key, names) for key in node.keys if key is not None]
        return {str(key): _value(value, names) for key, value in zip(keys, node.values, strict=True)}
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "dict"
        and not node.args
    ):
        if any(keyword.arg is None for keyword in node.keywords):
            raise _NotPlainError("**")
        return {str(keyword.arg): _value(keyword.value, names) for keyword in node.keywords}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand, names)
        if isinstance(value, int | float):
            return -value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    raise _NotPlainError(ast.unparse(node)[:60])


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """MMEngine's rule: tables are merged, unless one says `_delete_`; all else is replaced."""
    merged = dict(below)
    for name, value in above.items():
        known = merged.get(name)
        if isinstance(value, dict) and isinstance(known, dict) and not value.get("_delete_", False):
            merged[name] = _merge(known, value)
        else:
            merged[name] = (
                {key: each for key, each in value.items() if key != "_delete_"}
                if isinstance(value, dict)
                else value
            )
    return merged
