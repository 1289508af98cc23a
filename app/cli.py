"""`maskserve serve | segment | weights …`: what can be typed, and what each word means.

Only so much is imported at the start: torch takes seconds, and `--help` should not.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from app import settings
from app.cli_weights import weights
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
