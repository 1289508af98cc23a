"""`maskserve evaluate | calibrate`: what can be typed. cli_evaluate.py and cli_calibrate.py do it, and import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import read_settings
from app.commands.source import Source

Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="shapes|PATH",
        help="`shapes`: scenes that maskserve draws; else a folder in COCO's format (instances.json or "
        "annotations/….json, and images/), the JSON file itself, or the folder with Cityscapes' leftImg8bit/ "
        "and gtFine/.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option("--images", metavar="DIR", show_default=False, help="Where the images of a JSON file lie."),
]
Split = Annotated[
    str | None,
    typer.Option(metavar="train|val", show_default="train, and val to measure on", help="Of Cityscapes."),
]
SkipDamaged = Annotated[
    bool,
    typer.Option(
        "--skip-damaged",
        help="Leave out images and annotations that cannot be used, which otherwise stop the start.",
    ),
]


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name from `maskserve weights list`, or a model file.")
    ] = "auto",
    *,
    data: Data = "shapes",
    images: Images = None,
    split: Split = None,
    skip_damaged: SkipDamaged = False,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="`auto`, `cpu`, `cuda` …")] = "auto",
    precision: Annotated[
        str,
        typer.Option(metavar="auto|float32|bfloat16|float16|int8", help="Number format of the forward pass."),
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="Draw curves, confusion, sample predictions and the worst images there.",
        ),
    ] = None,
) -> None:
    """Measure a model's box and mask AP by COCO's protocol, on drawn scenes or a labelled folder.

    On Cityscapes its own instance AP is measured besides. It runs through the same engine that serves.
    """
    from app.commands.evaluate import run_evaluation  # noqa: PLC0415 - imports torch

    raise typer.Exit(
        run_evaluation(
            model,
            Source(data, images, split=split, skip_damaged=skip_damaged),
            device,
            precision,
            read_settings().weights_dir,
            as_json=as_json,
            plots=plots,
        )
    )


def calibrate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name from `maskserve weights list`, or a model file.")
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGE…",
            show_default=False,
            help="Files, or folders of files: a few dozen images of the kind that the model will see. None for a "
            "model of drawn shapes, which draws them itself.",
        ),
    ] = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="File to write; by default the model's own, for a COCO model NAME.safetensors.",
        ),
    ] = None,
) -> None:
    """Prepare a model for `--precision int8`: measure what its activations reach, and write that into its file.

    Models that `maskserve train` makes are calibrated already, on their training images.
    """
    from app.commands.calibrate import run_calibration  # noqa: PLC0415 - imports torch

    raise typer.Exit(run_calibration(model, images or [], out, read_settings().weights_dir))
