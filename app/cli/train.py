"""`maskserve train`: the arguments. The work is in app/commands/train.py, which imports torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from app.cli.augmentation import (  # noqa: TC001 - typer reads them
    Brightness,
    Contrast,
    CopyPaste,
    Flip,
    FlipVertical,
    Gamma,
    Grey,
    Invert,
    Jitter,
    JitterSide,
    Rotate,
    Saturation,
    Stain,
)
from app.cli.detections import Detections, Nms, Paste  # noqa: TC001 - typer reads them
from app.cli.evaluate import Data, Images, LooseNames, SkipDamaged, Split  # noqa: TC001 - typer reads them
from app.cli.options import read_settings
from app.commands.source import Source


def train(
    *,
    data: Data = "shapes",
    images: Images = None,
    split: Split = None,
    skip_damaged: SkipDamaged = False,
    backgrounds: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="Folder of photos as backgrounds of some of the `shapes` scenes, against false positives on photos.",
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="shapes|figures|PATH", show_default=False, help="Dataset to evaluate the result on."
        ),
    ] = None,
    validation_images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", show_default=False, help="Where the images of the validation's JSON file lie."
        ),
    ] = None,
    loose_names: LooseNames = False,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Run folder: log, checkpoint, model, card. An interrupted run in it is resumed.",
        ),
    ] = Path("runs/model"),
    architecture: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="`small` (ResNet-18, 64 channels), a backbone with FPN (resnet50, vgg16, …), or resnet50-c4.",
        ),
    ] = "small",
    pooling: Annotated[
        str, typer.Option(metavar="align|pool", help="RoIAlign, or RoIPool to compare with.")
    ] = "align",
    masks: Annotated[
        str,
        typer.Option(
            metavar="sigmoid|softmax|agnostic|none",
            help="One mask for each class; masks of competing classes; one mask for all classes; or a Faster R-CNN.",
        ),
    ] = "sigmoid",
    keypoints: Annotated[
        str,
        typer.Option(
            metavar="auto|none",
            help="`auto`: learn keypoints where the labels have some, as those of COCO's people do. `none`: never.",
        ),
    ] = "auto",
    paste: Paste = None,
    nms: Nms = None,
    channels: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default="the architecture's",
            help="Channels of the FPN and the heads. A model of --initial is widened; at first it computes the same.",
        ),
    ] = None,
    input_sides: Annotated[
        tuple[int, int] | None,
        typer.Option(
            "--input",
            metavar="SHORT LONG",
            show_default="the architecture's",
            help="Size that images are resized to for the model: the shorter side, and the maximum for the longer one.",
        ),
    ] = None,
    anchors: Annotated[
        str | None,
        typer.Option(
            metavar="A[,B,C,D,E]",
            show_default="the architecture's",
            help="Anchor sizes in pixels of the input, one for each of P2 to P6; a single one is doubled from level to "
            "level. Small objects need small anchors, from 8 up.",
        ),
    ] = None,
    detections: Detections = None,
    initial: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            show_default="random weights",
            help="Start from a model (a name or a file), with its architecture. Categories with the same name keep "
            "their weights.",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="imagenet|FILE",
            show_default="random weights",
            help="Weights of a classifier for the backbone: torchvision's (fetched once), or a file of them.",
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Defaults of the options below: small, nuclei, paper, paper-c4, torchvision or cityscapes. The values "
            "shown are those of small.",
        ),
    ] = "small",
    device: Annotated[str, typer.Option(metavar="DEVICE", help="`cpu`, `cuda`, `cuda:1` …")] = "cpu",
    steps: Annotated[
        int | None, typer.Option(min=1, show_default="5000", help="Steps of the optimiser.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, show_default="8", help="Images a step.")] = None,
    optimizer: Annotated[str | None, typer.Option(metavar="adamw|sgd", show_default="adamw")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, show_default="0.0007")] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0, show_default="0.05")] = None,
    warmup: Annotated[
        int | None,
        typer.Option(min=0, show_default="250", help="Steps until the full learning rate is reached."),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="linear|step|cosine",
            show_default="linear",
            help="Decay of the learning rate: linear to 0 from 40 % of the run, ×0.1 at 40 % and 90 %, or a cosine.",
        ),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[STEP:]A,B,…",
            show_default="around the architecture's",
            help="Shorter image sides to choose from at random. With STEP, from that step on; may be repeated: "
            "training on small images first takes less time.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="auto|float32|bfloat16|float64",
            show_default="auto",
            help="`auto`: bfloat16 where the hardware computes in it. float64 is slow, and for comparisons.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, show_default="0")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, show_default="1", help="Processes that prepare images.")
    ] = None,
    checkpoint_every: Annotated[int | None, typer.Option(min=1, show_default="500", help="Steps.")] = None,
    ema: Annotated[
        float | None,
        typer.Option(
            min=0,
            show_default="0.999",
            help="Decay of the averaged weights that are written; 0 writes the last ones.",
        ),
    ] = None,
    clip: Annotated[
        float | None,
        typer.Option(show_default="10", help="Maximum norm of the gradient, above 0."),
    ] = None,
    flip: Flip = None,
    flip_vertical: FlipVertical = None,
    rotate: Rotate = None,
    gamma: Gamma = None,
    brightness: Brightness = None,
    contrast: Contrast = None,
    saturation: Saturation = None,
    stain: Stain = None,
    grey: Grey = None,
    invert: Invert = None,
    jitter: Jitter = None,
    jitter_side: JitterSide = None,
    copy_paste: CopyPaste = None,
    frozen_stages: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=4,
            show_default="0, or 1 with --backbone",
            help="Number of stages of the backbone, from the first, that are not trained.",
        ),
    ] = None,
    rois: Annotated[
        int | None,
        typer.Option(min=1, show_default="160", help="Boxes of each image that the heads are trained on."),
    ] = None,
    positives: Annotated[
        float | None,
        typer.Option(min=0, max=1, show_default="0.2", help="Maximum part of them that are objects."),
    ] = None,
    box_weight: Annotated[
        float | None, typer.Option(min=0, show_default="2", help="Weight of L_box in the sum of the losses.")
    ] = None,
    validate_every: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default="only at the end",
            help="Steps between evaluations; best.safetensors is then the best model so far.",
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default="no limit",
            help="Stop after this many evaluations without a better model.",
        ),
    ] = None,
) -> None:
    """Train a Mask R-CNN on a labelled folder and write it as one file that `maskserve serve` takes.

    The same command resumes an interrupted run from its last checkpoint. With several GPUs: `torchrun
    --nproc-per-node 8 -m maskserve train --device cuda …`; the batch size is that of all together.
    """
    # Batches come in a hundred shapes, each with some 150 oneDNN primitives; its cache of 1,024 would build them again
    # for nearly every step. Seen in one run on 2 cores: about 1.05 s a step before, 0.8 s after a restart with it;
    # other work shared the machine, so the gain was not measured by itself. Read at first use.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32768")
    from app.commands.network import NetworkOptions  # noqa: PLC0415 - imports torch
    from app.commands.train import run_training  # noqa: PLC0415 - imports torch

    overrides = {
        "sizes": sizes,
        "steps": steps,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "schedule": schedule,
        "precision": precision,
        "seed": seed,
        "workers": workers,
        "checkpoint_every": checkpoint_every,
        "ema": ema,
        "clip": clip,
        "flip": flip,
        "flip_vertical": flip_vertical,
        "rotate": rotate,
        "gamma": gamma,
        "brightness": brightness,
        "contrast": contrast,
        "saturation": saturation,
        "stain": stain,
        "grey": grey,
        "invert": invert,
        "jitter": jitter,
        "jitter_side": jitter_side,
        "copy_paste": copy_paste,
        "frozen_stages": frozen_stages,
        "rois": rois,
        "positives": positives,
        "box_weight": box_weight,
        "validate_every": validate_every,
        "patience": patience,
    }
    source = Source(
        data, images, validation, split, backgrounds, skip_damaged, validation_images, loose_names
    )
    if keypoints not in ("auto", "none"):
        raise typer.BadParameter(f"--keypoints is auto or none, not {keypoints!r:.60}")
    network = NetworkOptions(
        architecture, pooling, masks, initial, backbone, channels, input_sides, detections, anchors, paste, nms,
        keypoints == "auto", read_settings().weights_dir,
    )  # fmt: skip
    raise typer.Exit(run_training(source, out, network, device, overrides, recipe=recipe))
