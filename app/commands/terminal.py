"""What `maskserve segment` tells people, whether it asks a service or does the work itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BAD_FILE, BAD_USAGE = 1, 2  # exit codes


def table(name: str, document: Mapping[str, Any], milliseconds: float | None) -> None:
    """A table of the instances. document: the service's answer. milliseconds: that it took, if that is known."""
    records, size = document["instances"], document["image"]
    found = f"{len(records)} instance{'' if len(records) == 1 else 's'}"
    rows = Table(box=None, pad_edge=False)
    rows.add_column("category")
    for heading in ("score", "x", "y", "width", "height", "area"):
        rows.add_column(heading, justify="right")
    for record in records:
        box = [f"{number:.1f}" for number in record["bbox"]]
        rows.add_row(record["category"], f"{record['score']:.4f}", *box, f"{record['area']:.0f}")
    console = Console(highlight=False)
    took = "" if milliseconds is None else f", {milliseconds:.0f} ms"
    title = f"{name}: {size['width']} × {size['height']}, {found}{took} ({document['model']})"
    console.print(title, style="bold", markup=False, soft_wrap=True)
    console.print(rows)


def checked(pictures: Mapping[Path, Path]) -> Mapping[Path, Path]:
    """Images → the files that they are to be drawn into, as given.

    Raises ValueError if one would replace another, or an image.
    """
    images = {image.resolve(): image for image in pictures}
    drawn: dict[Path, Path] = {}
    for image, picture in pictures.items():
        place = picture.resolve()
        if place in images:
            raise ValueError(f"{images[place]} is one of the images, and would be drawn over")
        if place in drawn:
            raise ValueError(f"{drawn[place]} and {image} would be drawn into the same file, {picture}")
        drawn[place] = image
    return pictures


def complain(message: str, status: int) -> int:
    """Say on stderr what is wrong, and return the exit code for it."""
    typer.echo(f"maskserve: {message}", err=True)
    return status
