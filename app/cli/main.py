"""`maskserve serve | segment | train | evaluate | import | …`: what can be typed.

Only so much is imported at the start: torch takes seconds, and `--help` should not.
"""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from app.cli.data import data as data_commands
from app.cli.evaluate import calibrate, evaluate
from app.cli.import_model import import_model
from app.cli.options import Device, Model, Precision, all_settings, flag, read_settings
from app.cli.train import train
from app.cli.weights import weights
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
    # At once: an exception would come up in the middle of some import, which may take it for its own affair.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Imports make next to no garbage, and looking for it takes a seventh of their time.
    gc.disable()
    from app.server import serve as run  # noqa: PLC0415 - imports torch

    gc.freeze()
    gc.enable()
    run(given)


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
    from app.commands.healthcheck import check  # noqa: PLC0415 - http.client, which no other command needs

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
    file_format: Annotated[
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
        list[str] | None,
        typer.Option(
            metavar="A,B,…",
            show_default="all",
            help="Only these categories, by name or id. Repeat the option for a name that has a comma.",
        ),
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
    parameters = {
        "score_threshold": score_threshold,
        "max_instances": max_instances,
        "categories": categories or None,
        "masks": masks,
    }
    if url is not None:
        if model or device or precision or overlay:
            raise typer.BadParameter(
                "--model, --device, --precision and --overlay are for work without --url."
            )
        from app.commands.segment_url import Connection, Output, run  # noqa: PLC0415 - imports httpx

        connection = Connection(url, api_key_file, deadline, concurrency)
        output = Output(out, file_format, overlay_dir, as_json=as_json)
        raise typer.Exit(run(images, parameters, connection, output))
    if out or overlay_dir:
        raise typer.BadParameter(
            "--out and --overlay-dir need --url; without it there are --json and --overlay."
        )
    given = read_settings(model=model, device=device, precision=precision)
    from app.commands.segment_files import run as run_here  # noqa: PLC0415 - imports torch

    raise typer.Exit(run_here(images, parameters, given, as_json=as_json, overlay=overlay))


for command in (train, evaluate, calibrate):
    cli.command()(command)
cli.command("import")(import_model)


@cli.command()
def key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is; appears in the log.")],
) -> None:
    """Make an API key: the key itself on stderr, for its owner, and on stdout the line for the file of keys.

    maskserve key phone-app >> keys.txt; MASKSERVE_API_KEYS_FILE=keys.txt maskserve serve
    """
    from app.keys import LINE, digest, new_key  # noqa: PLC0415 - imports Starlette, which `--help` does without

    made = new_key()
    line = f"{digest(made).hex()} {name}"
    if "#" in name or name != name.strip() or not LINE.fullmatch(line):
        typer.echo("maskserve: a name has 1 to 64 characters, no # and no space at its ends", err=True)
        raise typer.Exit(2)
    typer.echo(made, err=True)
    typer.echo(line)


def main() -> None:
    """The console script."""
    cli()
