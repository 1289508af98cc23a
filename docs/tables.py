"""The tables of docs/operations.md that are generated from the code: settings and problems.

python docs/tables.py     # writes them; a test fails while they differ from the code
"""

from __future__ import annotations

import re
from pathlib import Path

from app.problems import Problem
from app.settings import Settings, default, variable

PAGE = Path(__file__).with_name("operations.md")


def settings() -> str:
    """Variable, default and meaning of each setting."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        value = default(name)
        shown = "see there" if name == "weights_dir" else "" if value in (None, "") else f"`{value}`"
        lines.append(f"| `{variable(name)}` | {shown} | {field.description} |")
    return "\n".join(lines)


def problems() -> str:
    """Status, name and meaning of each problem, in the order of their statuses."""
    kinds = sorted([Problem, *Problem.__subclasses__()], key=lambda kind: kind.status)
    lines = ["| status | type | meaning |", "|---|---|---|"]
    for kind in kinds:
        meaning = (kind.__doc__ or "").partition("\n")[0]
        lines.append(f"| {kind.status} | `urn:maskserve:problem:{kind.slug}` | {meaning} |")
    return "\n".join(lines)


TABLES = {"settings": settings, "problems": problems}


def written(text: str) -> str:
    """The page with every table between its two marks as the code has it."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: docs/tables.py -->\n", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{PAGE.name} has no marks for the table of {name}")
        whole = f"{begin}{table()}\n{end}"
        text = pattern.sub(lambda _, whole=whole: whole, text)
    return text


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
