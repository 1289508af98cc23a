"""`maskserve import`: what can be typed."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer


def import_model(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="What torch.save or Detectron2 wrote: .pth, .pt, .pkl, or safetensors. No code in it is run.",
        ),
    ],
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Detectron2: its YAML configuration; by default config.yaml beside the file. MMDetection: a Python "
            "configuration, which is read and never run; by default the one that the file holds.",
        ),
    ] = None,
    categories: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…|FILE",
            show_default=False,
            help="Names of the classes in the network's order, without background: with commas, a text file with one "
            "a line, or a JSON file (a list, or COCO annotations, whose ids are kept).",
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            show_default=False,
            help="What the file does not say, such as min_size=640 or anchor_sizes=16,32,64,128,256. May be repeated; "
            "docs/importing.md lists the names.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default=False, help="File to write; by default NAME.safetensors here."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="The model's name; by default the file's."),
    ] = None,
    check: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="IMAGE",
            show_default=False,
            help="Run it on this image and print what it finds. May be repeated.",
        ),
    ] = None,
) -> None:
    """Make a model that can be served of a Mask R-CNN from torchvision, Detectron2 or MMDetection.

    It says what it recognised, what it took from the file and what it assumed; what it does not know it refuses by
    name.
    """
    from app.commands.import_model import run  # noqa: PLC0415 - imports torch

    raise typer.Exit(run(file, config, categories, setting or [], out=out, name=name, check=check or []))
