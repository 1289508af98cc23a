"""`maskserve serve | healthcheck | segment | …`: what can be typed, and what each word means.

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
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", show_default=False, help="Files.")],
    *,
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
        typer.Option(metavar="rle|none", show_default="rle", help="`none`: boxes only, quicker."),
    ] = None,
    model: Model = None,
    device: Device = None,
    precision: Precision = None,
) -> None:
    """Find the instances in image files, without a service but with the same code.

    Prints a table for each image, or with --json a line that `jq` and `COCO.loadRes` take.
    """
    given = read_settings(model=model, device=device, precision=precision)
    query = {
        "score_threshold": score_threshold,
        "max_instances": max_instances,
        "categories": categories,
        "masks": masks,
    }
    from app.cli_segment import run  # noqa: PLC0415 - imports torch

    raise typer.Exit(run(images, query, given, as_json=as_json, overlay=overlay))


Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="shapes|PATH",
        help="`shapes`: scenes that maskserve draws; else a folder in COCO's format (instances.json or "
        "annotations/….json, and images/), or the JSON file itself.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option("--images", metavar="DIR", show_default=False, help="Where the images of a JSON file lie."),
]


@cli.command()
def train(
    *,
    data: Data = "shapes",
    images: Images = None,
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
            metavar="NAME", help="`small` (ResNet-18, 64 channels), or a backbone: resnet50, vgg16, …"
        ),
    ] = "small",
    initial: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            show_default="random weights",
            help="Go on from a model (a name or a file) of the same categories; its architecture is taken too.",
        ),
    ] = None,
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
) -> None:
    """Train a Mask R-CNN on a labelled folder and write it as one file that `maskserve serve` takes.

    An interrupted run goes on where its last checkpoint was when the same command is typed again.
    """
    # Batches come in a hundred shapes, each with some 150 oneDNN primitives; its cache of 1,024 would build them anew
    # for nearly every step. Seen in one run on 2 cores: about 1.05 s a step before, 0.8 s after a restart with it;
    # other work shared the machine, so the gain was not measured by itself. Read at first use.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32768")
    from app.cli_train import run_training  # noqa: PLC0415 - imports torch

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
    }
    source = Source(data, images, validation)
    raise typer.Exit(run_training(source, out, architecture, device, overrides, initial=initial))


@cli.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name from `maskserve weights list`, or a model file.")
    ] = "auto",
    *,
    data: Data = "shapes",
    images: Images = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="`auto`, `cpu`, `cuda` …")] = "auto",
    precision: Annotated[
        str,
        typer.Option(metavar="auto|float32|bfloat16|float16", help="Number format of the forward pass."),
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="DIR", show_default=False, help="Draw curves and sample predictions there."),
    ] = None,
) -> None:
    """Measure a model's box and mask AP by COCO's protocol, on drawn scenes or a labelled folder.

    It runs through the same engine that serves.
    """
    from app.cli_train import run_evaluation  # noqa: PLC0415 - imports torch

    raise typer.Exit(
        run_evaluation(
            model,
            Source(data, images),
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
