"""What commands print: tables, progress bars, and errors in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.progress import ProgressColumn

# Exit codes.
BAD_FILE, BAD_USAGE = 1, 2


def progress_bar(*counters: ProgressColumn, hidden: bool = False, transient: bool = False) -> Progress:
    """A progress bar on stderr: the task's description, the bar, counters, and the time left.

    Nothing is drawn where stderr is not a terminal; its `console` prints in either case.

    Args:
        counters: columns between the bar and the time left; by default how many of how many.
        hidden: whether the bar stays away on a terminal too.
        transient: whether the bar disappears when it is complete.
    """
    console = Console(stderr=True, highlight=False)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *(counters or (MofNCompleteColumn(),)),
        TimeRemainingColumn(),
        console=console,
        disable=hidden or not console.is_terminal,
        transient=transient,
    )


def print_instances(name: str, document: Mapping[str, Any], milliseconds: float | None) -> None:
    """Print a table of the instances in one image.

    Args:
        name: of the image.
        document: the answer of POST /segment.
        milliseconds: that it took, or None if that is not known.
    """
    records, size = document["instances"], document["image"]
    found = f"{len(records)} instance{'' if len(records) == 1 else 's'}"
    rows = Table(box=None, pad_edge=False)
    rows.add_column("category")
    for heading in ("score", "x", "y", "width", "height", "area"):
        rows.add_column(heading, justify="right")
    for record in records:
        box = [f"{number:.1f}" for number in record["bbox"]]
        rows.add_row(escape(record["category"]), f"{record['score']:.4f}", *box, f"{record['area']:.0f}")
    console = Console(highlight=False)
    took = "" if milliseconds is None else f", {milliseconds:.0f} ms"
    title = f"{name}: {size['width']} × {size['height']}, {found}{took} ({document['model']})"
    console.print(title, style="bold", markup=False, soft_wrap=True)
    console.print(rows)


def check_overlays(overlays: Mapping[Path, Path]) -> Mapping[Path, Path]:
    """Return the map from images to the files of their overlays as given.

    Raises ValueError if one overlay would replace another, or an image.
    """
    images = {image.resolve(): image for image in overlays}
    drawn: dict[Path, Path] = {}
    for image, overlay in overlays.items():
        path = overlay.resolve()
        if path in images:
            raise ValueError(f"{images[path]} is one of the images, and would be overwritten by an overlay")
        if path in drawn:
            raise ValueError(f"the overlays of {drawn[path]} and {image} would be the same file, {overlay}")
        drawn[path] = image
    return overlays


def file_error(error: OSError, path: Path | None = None) -> str:
    """An error about a file in one line. path: the file, where the error does not name it."""
    name = error.filename or path
    reason = error.strerror or str(error)
    return reason if name is None else f"{name}: {reason}"


def complain(message: str, status: int) -> int:
    """Print what is wrong on stderr, and return the exit code for it."""
    typer.echo(f"maskserve: {message}", err=True)
    return status
