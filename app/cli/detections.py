"""The options of `maskserve train` that say which detections a model keeps, and how it pastes their masks."""

from __future__ import annotations

from typing import Annotated

import typer

Detections = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1000,
        show_default="the architecture's: 100",
        help="Instances that the model finds in an image at most. For more than half as many as it has proposals, "
        "it makes twice as many of those.",
    ),
]
Nms = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        metavar="IOU",
        show_default="the architecture's: 0.5",
        help="Of two boxes of a category with a larger IoU, only the surer one is kept. Less suits objects that "
        "hardly overlap.",
    ),
]
Paste = Annotated[
    str | None,
    typer.Option(
        metavar="torchvision|detectron2",
        show_default="torchvision, or the model's of --initial",
        help="Rule by which masks are pasted into the image, in training's targets, in evaluation and in use.",
    ),
]
