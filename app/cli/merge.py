"""`maskserve merge`: its arguments and its help."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from app.cli.options import FileFormat, Ids  # noqa: TC001 - typer reads it at run time


def merge(
    out: Annotated[
        Path,
        typer.Argument(metavar="FILE", show_default=False, help="The --out of the commands with --shard."),
    ],
    *,
    file_format: FileFormat = "coco",
    ids: Ids = None,
) -> None:
    """Merge the shards of `maskserve segment --shard` into one file of all results.

    All shards must be complete. Their files stay.
    """
    from app.commands.merge import merge as run  # noqa: PLC0415 - imports httpx
    from app.commands.results_file import ResultsFile  # noqa: PLC0415 - imports httpx

    raise typer.Exit(run(ResultsFile(out, file_format, ids)))
