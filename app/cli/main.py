"""`maskserve serve | segment | train | evaluate | import | …`: the commands and their arguments.

Commands import what they need when they run: torch takes seconds, and `--help` should not.
"""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.data import data as data_commands
from app.cli.evaluate import calibrate, evaluate
from app.cli.import_model import import_model
from app.cli.merge import merge
from app.cli.options import (
    Device,
    FileFormat,
    Ids,
    Model,
    Overlap,
    Precision,
    Tile,
    Whole,
    list_settings,
    read_settings,
    setting_option,
)
from app.cli.train import train
from app.cli.weights import weights
from app.runtime.openmp import configure_openmp
from app.version import version

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from app.commands.segmenter import Segmenter

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


def show_version(given: bool) -> None:
    """Print the version and exit."""
    if given:
        typer.echo(f"maskserve {version()}")
        raise typer.Exit


@cli.callback()
def maskserve(
    _: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Mask R-CNN as a REST service: post an image, get category, score, box and mask of every object."""


@cli.command(epilog=list_settings())
def serve(
    host: Annotated[str | None, setting_option("host", "--host", "ADDRESS")] = None,
    port: Annotated[int | None, setting_option("port", "--port", "PORT")] = None,
    model: Model = None,
    device: Device = None,
    precision: Precision = None,
) -> None:
    """Serve a model over HTTP until Ctrl-C or SIGTERM.

    It listens at once and logs when it is ready. Then there is a page at its address, and the API's documentation at
    /docs.
    """
    settings = read_settings(host=host, port=port, model=model, device=device, precision=precision)
    # Until the server handles SIGTERM: process 1 of a container ignores it by default, and `docker stop` would wait.
    # The process ends at once, because an exception could be caught by whatever import it interrupts.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Imports make next to no garbage, and looking for it takes a seventh of their time.
    gc.disable()
    from app.server import serve as run  # noqa: PLC0415 - imports torch

    gc.freeze()
    gc.enable()
    run(settings)


@cli.command()
def healthcheck(
    host: Annotated[str | None, setting_option("host", "--host", "ADDRESS")] = None,
    port: Annotated[int | None, setting_option("port", "--port", "PORT")] = None,
    *,
    ready: Annotated[
        bool,
        typer.Option("--ready", help="Ask /readyz (whether it admits requests) instead of /healthz."),
    ] = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Time limit for the answer.")
    ] = 3.0,
) -> None:
    """Check the health of the service on this machine: exit code 0 if it is healthy, else 1 and one line that says why.

    It finds the service by the settings that the service was started with.
    """
    from app.commands.healthcheck import check  # noqa: PLC0415 - no other command needs http.client

    status, line = check(read_settings(host=host, port=port), "/readyz" if ready else "/healthz", timeout)
    typer.echo(line, err=status != 0)
    raise typer.Exit(status)


@cli.command()
def segment(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE…", show_default=False, help="Files, and folders of files."),
    ],
    *,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            show_default=False,
            help="Use a running service, as http://localhost:8000. What it refuses under load is sent again.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default=False, help="With --url: file whose first line is the API key."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="One file for all results. An interrupted command continues when it is run again.",
        ),
    ] = None,
    file_format: FileFormat = "coco",
    ids: Ids = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            show_default=False,
            help="Only the I-th of N parts of the images, which are told by their names: for N commands on one machine "
            "or many. With --out FILE.json the part is FILE.I-of-N.jsonl; `maskserve merge FILE.json` joins them.",
        ),
    ] = None,
    overlay_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="Folder for the images with their instances drawn on them; it is made if it is missing.",
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=256, help="With --url: requests open at the same time.")
    ] = 8,
    deadline: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="With --url: limit for each image, over all attempts."),
    ] = 300.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the answers of the service, one JSON document on each line.")
    ] = False,
    overlay: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            show_default=False,
            help="PNG or JPEG file for the image with its instances drawn on it; with several images, a folder.",
        ),
    ] = None,
    score_threshold: Annotated[
        str | None,
        typer.Option(metavar="0–1", show_default="0.5", help="Only instances with at least this score."),
    ] = None,
    max_instances: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            show_default="the model's own number",
            help="At most this many, those with the highest scores. No more than the model finds; with --tile up to "
            "100,000.",
        ),
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
            help="Format of the masks in JSON; `none`: boxes only, which is faster without --tile.",
        ),
    ] = None,
    keypoints: Annotated[
        str | None,
        typer.Option(
            metavar="coco|none",
            show_default="coco",
            help="Keypoints of models that find some; `none`: none of them, which is faster.",
        ),
    ] = None,
    tile: Tile = None,
    overlap: Overlap = None,
    whole: Whole = None,
    model: Model = None,
    device: Device = None,
    precision: Precision = None,
) -> None:
    """Find the instances in image files, in this process or with --url by a service.

    Prints a table for each image, or with --json a line for `jq` and `COCO.loadRes`.
    """
    parameters = {
        "score_threshold": score_threshold,
        "max_instances": max_instances,
        "categories": categories or None,
        "masks": masks,
        "keypoints": keypoints,
        "tile": tile,
        "overlap": overlap,
        "whole": whole,
    }
    from app.commands.results_file import ResultsFile  # noqa: PLC0415 - imports httpx
    from app.commands.segment import Output, run  # noqa: PLC0415 - imports httpx
    from app.commands.shard import Shard  # noqa: PLC0415 - no other command needs it

    if overlay and overlay_dir:
        raise typer.BadParameter("--overlay and --overlay-dir cannot be combined.")
    if ids and out is None:
        raise typer.BadParameter("--ids needs --out, in the format coco.")
    if shard and (ids or file_format != "coco"):
        raise typer.BadParameter("--format and --ids belong to `maskserve merge` where there is a --shard.")
    try:
        part = None if shard is None else Shard.parse(shard)
    except ValueError as error:
        raise typer.BadParameter(f"--shard: {error}.") from error
    results = None if out is None else ResultsFile(out, file_format, ids)
    output = Output(results, overlay_dir, as_json, overlay, part)
    if url is not None:
        if model or device or precision or overlay:
            raise typer.BadParameter(
                "--model, --device, --precision and --overlay cannot be combined with --url."
            )
        from app.commands.segment_url import RemoteService  # noqa: PLC0415 - no other command needs it

        service = RemoteService(url, api_key_file, deadline, concurrency)
        raise typer.Exit(run(images, parameters, service.open_client, output))
    settings = read_settings(model=model, device=device, precision=precision)

    def load() -> AbstractContextManager[Segmenter]:
        from app.commands.segment_files import load_segmenter  # noqa: PLC0415 - imports torch

        return load_segmenter(settings, parameters)

    identity = {"model": settings.model, "precision": settings.precision}
    raise typer.Exit(run(images, parameters, load, output, identity))


for command in (merge, train, evaluate, calibrate):
    cli.command()(command)
cli.command("import")(import_model)


@cli.command()
def key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The owner of the key, for the log.")],
) -> None:
    """Generate an API key: print the key on stderr, for its owner, and the line for the file of keys on stdout.

    maskserve key phone-app >> keys.txt; MASKSERVE_API_KEYS_FILE=keys.txt maskserve serve
    """
    from app.keys import LINE, generate_key, hash_key  # noqa: PLC0415 - imports Starlette

    secret = generate_key()
    line = f"{hash_key(secret).hex()} {name}"
    if "#" in name or name != name.strip() or not LINE.fullmatch(line):
        typer.echo(
            "maskserve: a name must have 1 to 64 characters, no # and no space at either end", err=True
        )
        raise typer.Exit(2)
    typer.echo(secret, err=True)
    typer.echo(line)


def main() -> None:
    """Run the command line."""
    configure_openmp()
    cli()
