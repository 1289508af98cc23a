"""`maskserve evaluate | calibrate`: the arguments. The work is in app/commands, which imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import Overlap, Tile, Whole, read_settings
from app.commands.source import SHAPES, Source

Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="shapes|figures|PATH",
        help="`shapes` or `figures`: scenes or people that maskserve draws; or a labelled folder as COCO, "
        "Roboflow, CVAT, Label Studio and others leave it, its JSON file, or the folder with Cityscapes' leftImg8bit/ "
        "and gtFine/.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option("--images", metavar="DIR", show_default=False, help="Folder of the images of a JSON file."),
]
Split = Annotated[
    str | None,
    typer.Option(
        metavar="train|val|…",
        show_default="train, and val for evaluation",
        help="Which part of a folder that has several.",
    ),
]
SkipDamaged = Annotated[
    bool,
    typer.Option(
        "--skip-damaged",
        help="Leave out images and annotations that cannot be used. Without it, they are an error.",
    ),
]

LooseNames = Annotated[
    bool,
    typer.Option(
        "--loose-names",
        help="Take categories of model and data for the same whose names differ only by capitals, blanks, hyphens or "
        "underscores.",
    ),
]


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            show_default="auto, or shapes for drawn scenes",
            help="A name from `maskserve weights list`, or a model file.",
        ),
    ] = None,
    *,
    data: Data = "shapes",
    images: Images = None,
    split: Split = None,
    skip_damaged: SkipDamaged = False,
    loose_names: LooseNames = False,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="`auto`, `cpu`, `cuda` …")] = "auto",
    precision: Annotated[
        str,
        typer.Option(metavar="auto|float32|bfloat16|float16|int8", help="Number format of the forward pass."),
    ] = "auto",
    score_threshold: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="0–1",
            help="Detections with at least this score are matched one-to-one with objects, in the figures of matching "
            "and the confusion of categories. The default is that of the service. COCO's AP counts all.",
        ),
    ] = 0.5,
    tile: Tile = None,
    overlap: Overlap = None,
    whole: Whole = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="Folder for plots: curves, confusion matrix, sample predictions and the worst images.",
        ),
    ] = None,
) -> None:
    """Evaluate a model on drawn scenes or a labelled folder, in the engine that serves it.

    Prints COCO's AP of boxes and masks; TP/(TP+FP+FN), F1 and panoptic quality of masks at fixed IoU thresholds; and on
    Cityscapes its own instance AP.
    """
    from app.commands.evaluate import run_evaluation  # noqa: PLC0415 - imports torch

    raise typer.Exit(
        run_evaluation(
            model if model is not None else SHAPES if data == SHAPES else "auto",
            Source(data, images, split=split, skip_damaged=skip_damaged, loose_names=loose_names),
            device,
            precision,
            read_settings().weights_dir,
            as_json=as_json,
            plots=plots,
            score_threshold=score_threshold,
            tiles={"tile": tile, "overlap": overlap, "whole": whole},
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
            help="Image files, or folders of them: a few dozen of the kind that the model will see. A model of drawn "
            "shapes needs none.",
        ),
    ] = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="File to write; by default the model's own, or NAME.safetensors for a name.",
        ),
    ] = None,
) -> None:
    """Prepare a model for `--precision int8`: measure the ranges of its activations, and write them into its file.

    Models from `maskserve train` have been calibrated on their training images.
    """
    from app.commands.calibrate import run_calibration  # noqa: PLC0415 - imports torch

    raise typer.Exit(run_calibration(model, images or [], out, read_settings().weights_dir))
