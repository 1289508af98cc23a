"""`maskserve serve | healthcheck | segment | train | evaluate | calibrate | data | weights | key`: what can be typed.

Only so much is imported at the start: torch takes seconds, and `--help` should not.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from app import settings
from app.cli_data import data as data_commands
from app.cli_weights import weights
from app.source import Source
from app.version import version

cli = typer.Typer(
    name="maskserve",
    help="Mask R-CNN as a REST service: post an image, get category, score, box and mask of every object.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
cli.add_typer(weights, name="weights")
cli.add_typer(data_commands, name="data")


def setting_help(field: str) -> str:
    """What a setting means, from the one place that says it, and the variable that sets it too."""
    return f"{settings.Settings.model_fields[field].description} [{settings.variable(field)}]"


def all_settings() -> str:
    """Every setting with its default, for the end of a help text."""
    defaults = settings.Settings()
    lines = [
        f"- `{settings.variable(field)}` ({getattr(defaults, field)}): {known.description}"
        for field, known in settings.Settings.model_fields.items()
        if field != "weights_dir"
    ]
    return "\n".join(["Every setting is an environment variable, with its default:", "", *lines])


def flag(field: str, name: str, metavar: str) -> typer.models.OptionInfo:
    """An option that overrides a setting."""
    option: typer.models.OptionInfo = typer.Option(
        name, metavar=metavar, show_default=False, help=setting_help(field)
    )
    return option


Model = Annotated[str | None, flag("model", "--model", "NAME")]
Device = Annotated[str | None, flag("device", "--device", "DEVICE")]
Precision = Annotated[str | None, flag("precision", "--precision", "FORMAT")]


def show_version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        typer.echo(f"maskserve {version()}")
        raise typer.Exit


@cli.callback()
def maskserve(
    _: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and end."),
    ] = False,
) -> None:
    """Mask R-CNN as a REST service: post an image, get category, score, box and mask of every object."""


@cli.command(epilog=all_settings())
def serve(
    host: Annotated[str | None, flag("host", "--host", "ADDRESS")] = None,
    port: Annotated[int | None, flag("port", "--port", "PORT")] = None,
    model: Model = None,
    device: Device = None,
    precision: Precision = None,
) -> None:
    """Serve a model over HTTP until Ctrl-C or SIGTERM.

    It listens at once and says when it is ready. The address has a page then, and documentation at /docs.
    """
    given = read_settings(host=host, port=port, model=model, device=device, precision=precision)
    # Until the server handles it: as process 1 of a container nobody else does, and `docker stop` would wait.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from app.server import serve as run  # noqa: PLC0415 - imports torch

    raise typer.Exit(run(given))


@cli.command()
def healthcheck(
    host: Annotated[str | None, flag("host", "--host", "ADDRESS")] = None,
    port: Annotated[int | None, flag("port", "--port", "PORT")] = None,
    *,
    ready: Annotated[
        bool,
        typer.Option("--ready", help="Ask /readyz, whether it takes requests, instead of /healthz."),
    ] = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="How long an answer may take.")
    ] = 3.0,
) -> None:
    """Ask the service on this machine how it is; exit code 0 if it is well, else 1 and one line that says why.

    It finds the service by the same settings that the service was started with.
    """
    from app.healthcheck import check  # noqa: PLC0415 - http.client, which no other command needs

    status, line = check(read_settings(host=host, port=port), "/readyz" if ready else "/healthz", timeout)
    typer.echo(line, err=status != 0)
    raise typer.Exit(status)


@cli.command()
def segment(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE…", show_default=False, help="Files; with --url folders too."),
    ],
    *,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            show_default=False,
            help="Let a running service do it, as http://localhost:8000. What it sheds is tried again.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default=False, help="With --url: file whose first line is the service's key."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="With --url: one file of all results. The same command goes on where it was interrupted.",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format", metavar="coco|coco-dataset|cvat|label-studio", help="What that file is to be."
        ),
    ] = "coco",
    overlay_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="With --url: draw each image's instances into this folder.",
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="With --url: requests open at once.")] = 8,
    deadline: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="With --url: for each image, over all tries.")
    ] = 300.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what the service would answer: one JSON document a line.")
    ] = False,
    overlay: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            show_default=False,
            help="Draw the instances on the image, into this PNG or JPEG file; with several images, "
            "into this folder.",
        ),
    ] = None,
    score_threshold: Annotated[
        str | None,
        typer.Option(metavar="0–1", show_default="0.5", help="Instances that score at least this."),
    ] = None,
    max_instances: Annotated[
        str | None, typer.Option(metavar="1–100", show_default="100", help="At most so many, the best ones.")
    ] = None,
    categories: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", show_default="all", help="Only these categories, by name or id."),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(
            metavar="rle|polygon|png|none",
            show_default="rle",
            help="How JSON spells masks; `none`: boxes only, quicker.",
        ),
    ] = None,
    model: Model = None,
    device: Device = None,
    precision: Precision = None,
) -> None:
    """Find the instances in image files, by a service or, without one, with the same code.

    Prints a table for each image, or with --json a line that `jq` and `COCO.loadRes` take.
    """
    query = {
        "score_threshold": score_threshold,
        "max_instances": max_instances,
        "categories": categories,
        "masks": masks,
    }
    if url is not None:
        if model or device or precision or overlay:
            raise typer.BadParameter(
                "--model, --device, --precision and --overlay are for work without --url."
            )
        from app.cli_remote import Output, Service, ask  # noqa: PLC0415 - nobody else needs it

        service = Service(url, api_key_file, deadline, concurrency)
        raise typer.Exit(ask(images, query, service, Output(out, form, overlay_dir, as_json=as_json)))
    if out or overlay_dir:
        raise typer.BadParameter(
            "--out and --overlay-dir need --url; without it there are --json and --overlay."
        )
    given = read_settings(model=model, device=device, precision=precision)
    from app.cli_segment import run  # noqa: PLC0415 - imports torch

    raise typer.Exit(run(images, query, given, as_json=as_json, overlay=overlay))


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


@cli.command()
def train(
    *,
    data: Data = "shapes",
    images: Images = None,
    split: Split = None,
    skip_damaged: SkipDamaged = False,
    validation: Annotated[
        str | None,
        typer.Option(metavar="shapes|PATH", show_default=False, help="What to measure the result on."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Run folder: log, checkpoint, model, card. A run in it is resumed."),
    ] = Path("runs/model"),
    architecture: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="`small` (ResNet-18, 64 channels), a backbone with FPN: resnet50, vgg16, …, or resnet50-c4.",
        ),
    ] = "small",
    pooling: Annotated[
        str, typer.Option(metavar="align|pool", help="RoIAlign, or RoIPool to compare with.")
    ] = "align",
    masks: Annotated[
        str,
        typer.Option(
            metavar="sigmoid|softmax|agnostic|none",
            help="A mask for each class; masks whose classes compete; one mask for all; or a Faster R-CNN.",
        ),
    ] = "sigmoid",
    input_sides: Annotated[
        tuple[int, int] | None,
        typer.Option(
            "--input",
            metavar="SHORT LONG",
            show_default="the architecture's",
            help="What images are resized to when the model is used: the shorter side, and most for the longer one.",
        ),
    ] = None,
    initial: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            show_default="random weights",
            help="Go on from a model (a name or a file), whose architecture is taken too. Categories that it knows by "
            "name keep what they learned.",
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
            help="What the options below default to: small, paper, paper-c4, torchvision or cityscapes; the values "
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
        int | None, typer.Option(min=0, show_default="250", help="Steps until the full learning rate.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="linear|step|cosine",
            show_default="linear",
            help="How the learning rate falls: from 65 % of the run on to 0, by ×0.1 at 65 % and 90 %, or as a cosine.",
        ),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[STEP:]A,B,…",
            show_default="around the architecture's",
            help="Shorter image sides to draw from. With STEP, from that step on; may be given several times: small "
            "images first teach as much in less time.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="auto|float32|bfloat16",
            show_default="auto",
            help="`auto`: bfloat16 where the hardware computes in it.",
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
        float | None, typer.Option(min=0, show_default="10", help="Most that the gradient's norm may be.")
    ] = None,
    flip: Annotated[
        float | None, typer.Option(min=0, max=1, show_default="0.5", help="How often images are mirrored.")
    ] = None,
    jitter: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LEAST MOST",
            show_default="none",
            help="Large-scale jitter: random scales on a square canvas, like 0.1 2.0.",
        ),
    ] = None,
    jitter_side: Annotated[
        int | None, typer.Option(min=32, show_default="1024", help="Of that canvas, pixels.")
    ] = None,
    copy_paste: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            show_default="0",
            help="How often objects of another image are pasted on; with --jitter.",
        ),
    ] = None,
    frozen_stages: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=4,
            show_default="0, or 1 with --backbone",
            help="Stages of the backbone, from the first, that are not trained.",
        ),
    ] = None,
    rois: Annotated[
        int | None,
        typer.Option(min=1, show_default="96", help="Boxes of an image that the heads learn from."),
    ] = None,
    validate_every: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default="only in the end",
            help="Steps between measurements; best.safetensors is then the best model so far.",
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default="no end",
            help="End after so many measurements without a better model.",
        ),
    ] = None,
) -> None:
    """Train a Mask R-CNN on a labelled folder and write it as one file that `maskserve serve` takes.

    An interrupted run goes on where its last checkpoint was when the same command is typed again. With several
    GPUs: `torchrun --nproc-per-node 8 -m app.cli train --device cuda …`; the batch size is that of all together.
    """
    # Batches come in a hundred shapes, each with some 150 oneDNN primitives; its cache of 1,024 would build them anew
    # for nearly every step. Seen in one run on 2 cores: about 1.05 s a step before, 0.8 s after a restart with it;
    # other work shared the machine, so the gain was not measured by itself. Read at first use.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32768")
    from app.cli_train import Start, run_training  # noqa: PLC0415 - imports torch

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
        "jitter": jitter,
        "jitter_side": jitter_side,
        "copy_paste": copy_paste,
        "frozen_stages": frozen_stages,
        "rois": rois,
        "validate_every": validate_every,
        "patience": patience,
    }
    source = Source(data, images, validation, split, skip_damaged)
    start = Start(architecture, pooling, masks, initial, backbone, input_sides)
    raise typer.Exit(run_training(source, out, start, device, overrides, recipe=recipe))


@cli.command()
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
    from app.cli_evaluate import run_evaluation  # noqa: PLC0415 - imports torch

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


@cli.command()
def key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is; appears in the log.")],
) -> None:
    """Make an API key: the key itself on stderr, for its owner, and on stdout the line for the file of keys.

    maskserve key phone-app >> keys.txt; MASKSERVE_API_KEYS_FILE=keys.txt maskserve serve
    """
    from app.keys import LINE, digest, new_key  # noqa: PLC0415

    made = new_key()
    line = f"{digest(made).hex()} {name}"
    if "#" in name or name != name.strip() or not LINE.fullmatch(line):
        typer.echo("maskserve: a name has 1 to 64 characters, no # and no space at its ends", err=True)
        raise typer.Exit(2)
    typer.echo(made, err=True)
    typer.echo(line)


@cli.command()
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
    from app.cli_calibrate import run  # noqa: PLC0415 - imports torch

    raise typer.Exit(run(model, images or [], out, read_settings().weights_dir))


def read_settings(**overrides: str | int | None) -> settings.Settings:
    """The settings with the command line's on top; what is wrong with them ends the program, a line each."""
    try:
        return settings.load(overrides)
    except settings.SettingsError as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from None


def main() -> None:
    """The console script."""
    cli()


if __name__ == "__main__":
    main()
