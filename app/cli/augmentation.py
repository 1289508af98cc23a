"""The options of `maskserve train` that change images while training."""

from __future__ import annotations

from typing import Annotated

import typer

PANEL = "Augmentation"


def _probability(help_text: str, default: str = "0") -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        min=0, max=1, metavar="P", show_default=default, help=help_text, rich_help_panel=PANEL
    )
    return option


def _strength(help_text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        min=0,
        max=4,
        metavar="S",
        show_default="0",
        help=f"{help_text} by a random factor from 1 / (1 + S) to 1 + S.",
        rich_help_panel=PANEL,
    )
    return option


Flip = Annotated[float | None, _probability("Probability that left and right are exchanged.", "0.5")]
FlipVertical = Annotated[float | None, _probability("Probability that top and bottom are exchanged.")]
Rotate = Annotated[
    float | None, _probability("Probability of a rotation by one, two or three quarter turns.")
]
Gamma = Annotated[float | None, _strength("Change the exponent of all values, which are from 0 to 1,")]
Brightness = Annotated[float | None, _strength("Change all values")]
Contrast = Annotated[float | None, _strength("Change differences from the image's mean grey value")]
Saturation = Annotated[float | None, _strength("Change differences of each pixel from its grey value")]
Stain = Annotated[
    float | None,
    _strength("Change the amounts of hematoxylin, eosin and diaminobenzidine in the image, each"),
]
Grey = Annotated[float | None, _probability("Probability of grey in place of colours.")]
Invert = Annotated[float | None, _probability("Probability of a negative.")]
Jitter = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="MIN MAX",
        show_default="none",
        help="Large-scale jitter: random scales and crops on a square canvas, for example 0.1 2.0.",
        rich_help_panel=PANEL,
    ),
]
JitterSide = Annotated[
    int | None,
    typer.Option(min=32, show_default="1024", help="Side of that canvas in pixels.", rich_help_panel=PANEL),
]
CopyPaste = Annotated[
    float | None,
    _probability("Probability that objects of another image are pasted; with --jitter."),
]
