"""`maskserve weights list | fetch | verify`: the models' weights, and their state on this machine.

model/zoo/catalogue.py has the catalogue and the checks; here they are presented on a terminal.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import DownloadColumn, TransferSpeedColumn
from rich.table import Table
from safetensors import SafetensorError, safe_open

from app.commands.terminal import progress_bar
from model.zoo import catalogue
from model.zoo.errors import DamagedWeightsError, MissingWeightsError, WeightsError
from model.zoo.partial import Partial, digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.zoo.download import Progress as Report
    from model.zoo.download import Tell

# Between two lines of progress, if stderr is not a terminal and the size of the file is unknown.
LINE_BYTES = 20_000_000

weights = typer.Typer(help="List, fetch and verify the models' weights.", no_args_is_help=True)

Folder = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        envvar="MASKSERVE_WEIGHTS_DIR",
        metavar="DIR",
        show_default=False,
        help="Folder of downloaded weights. By default weights/ in the checkout that maskserve runs from, or else "
        "maskserve/weights in your cache folder.",
    ),
]


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model, and the state of its weights on this machine, as `list` shows them."""

    name: str
    # The dataset that it was trained on.
    dataset: str
    # Average precision in percent.
    box_ap: float | None
    mask_ap: float | None
    keypoint_ap: float | None
    # Bytes of the complete file.
    size: int | None
    # verified, partial, missing or damaged; of a bundled model bundled, missing or damaged.
    state: str
    # Bytes that are on this machine.
    received: int
    path: str
    url: str | None


@weights.command("list")
def list_weights(
    folder: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List every model with its average precision and the state of its weights on this machine.

    AP: mean average precision at IoU .50 to .95, percent, on the validation split of its training data.
    """
    with errors_in_one_line():
        place = resolve_folder(folder)
        models = [
            *(bundled_status(entry) for entry in catalogue.bundled().values()),
            *(download_status(entry, place) for entry in catalogue.catalogue()),
        ]
    if as_json:
        typer.echo(
            json.dumps({"folder": str(place), "weights": [asdict(model) for model in models]}, indent=2)
        )
        return
    table = Table("name", "trained on", box=None, pad_edge=False)
    for heading in ("box AP", "mask AP", "keypoint AP", "size"):
        table.add_column(heading, justify="right")
    table.add_column("state")
    for model in models:
        share = f", {model.received / model.size:.0%}" if model.state == "partial" and model.size else ""
        table.add_row(
            model.name,
            model.dataset,
            *("–" if ap is None else f"{ap:.1f}" for ap in (model.box_ap, model.mask_ap, model.keypoint_ap)),
            "–" if model.size is None else megabytes(model.size),
            model.state + share,
        )
    Console(highlight=False).print(table)
    typer.echo(f"\nFolder: {place}")
    if any(model.url and model.state != "verified" for model in models):
        typer.echo("To download one: maskserve weights fetch NAME")


@weights.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `maskserve weights list`.")],
    folder: Folder = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            metavar="URL", show_default=False, help="Download URL/FILE instead of the official URL."
        ),
    ] = None,
) -> None:
    """Download the weights of one model and verify them.

    An interrupted download continues when it is run again. Behind a proxy, set HTTPS_PROXY.
    """
    if name in catalogue.bundled():
        typer.echo(f"{name} comes with maskserve: there is nothing to fetch", err=True)
        typer.echo(catalogue.bundled()[name].path)
        return
    try:
        with errors_in_one_line(), show_progress(name) as (progress, tell):
            file = catalogue.fetch(
                name, resolve_folder(folder), base_url=mirror, progress=progress, tell=tell
            )
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues from here", err=True)
        raise typer.Exit(130) from None
    typer.echo(file)


@weights.command()
def verify(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this model.", show_default=False)
    ] = None,
    folder: Folder = None,
) -> None:
    """Compare the sha256 of the weights on this machine with the official one, or a bundled model's own.

    The exit code is 1 if a file is damaged, or if the weights of the named model are missing.
    """
    failed = False
    with errors_in_one_line():
        place = resolve_folder(folder)
        bundled, downloads = select(name)
        for own in bundled:
            if not own.path.exists():
                failed = failed or name is not None
                typer.echo(f"{own.name}: missing: {own.path}", err=name is not None)
            elif (found := digest(own.path)) == own.sha256:
                typer.echo(f"{own.name}: verified, sha256 {found}")
            else:
                failed = True
                typer.echo(f"{own.name}: damaged, sha256 {found}: {own.path}", err=True)
        for entry in downloads:
            try:
                found = catalogue.verify(entry.path(place), entry.sha256)
                typer.echo(f"{entry.name}: verified, sha256 {found}")
            except DamagedWeightsError as error:
                failed = True
                typer.echo(f"{error}; `maskserve weights fetch {entry.name}` replaces it", err=True)
            except MissingWeightsError as error:
                failed = failed or name is not None
                typer.echo(f"{entry.name}: {error}", err=name is not None)
    if failed:
        raise typer.Exit(1)


def select(name: str | None) -> tuple[list[catalogue.Bundled], list[catalogue.Weights]]:
    """The model of that name, bundled or to be downloaded; without a name all."""
    bundled = catalogue.bundled()
    if name is None:
        return list(bundled.values()), list(catalogue.catalogue())
    return ([bundled[name]], []) if name in bundled else ([], [catalogue.find(name)])


def download_status(entry: catalogue.Weights, folder: Path) -> ModelStatus:
    """The status of weights that can be downloaded into a folder."""
    path = entry.path(folder)
    received = path.stat().st_size if path.exists() else Partial(path).size
    state = catalogue.state(entry, folder)
    return ModelStatus(
        entry.name,
        entry.dataset,
        entry.box_ap,
        entry.mask_ap,
        entry.keypoint_ap,
        entry.size,
        state,
        received,
        str(path),
        entry.url,
    )


def bundled_status(entry: catalogue.Bundled) -> ModelStatus:
    """The status of a model that comes with maskserve."""
    name, dataset, path = entry.name, entry.dataset, entry.path
    if not path.exists():
        return ModelStatus(name, dataset, None, None, None, None, "missing", 0, str(path), None)
    size = path.stat().st_size
    try:
        # Opening reads the header and compares it with the size of the file.
        with safe_open(path, framework="np") as file:
            ap = json.loads(file.metadata()["maskserve"])["ap"]
        box, mask, keypoints = (
            100 * float(ap[kind]) if kind in ap else None for kind in ("box", "mask", "keypoints")
        )
    except (SafetensorError, OSError, ValueError, TypeError, KeyError):
        return ModelStatus(name, dataset, None, None, None, size, "damaged", size, str(path), None)
    return ModelStatus(name, dataset, box, mask, keypoints, size, "bundled", size, str(path), None)


def resolve_folder(folder: Path | None) -> Path:
    """The folder as given, with ~ expanded, or else the default one."""
    return catalogue.default_folder() if folder is None else folder.expanduser()


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print an error as one line on stderr, and exit with 1."""
    try:
        yield
    except (WeightsError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


@contextlib.contextmanager
def show_progress(name: str) -> Iterator[tuple[Report, Tell]]:
    """Show a download on stderr: as a bar on a terminal, else as a line for each tenth of the file."""
    bar = progress_bar(DownloadColumn(), TransferSpeedColumn())
    if bar.console.is_terminal:
        with bar:
            task = bar.add_task(name, total=None)
            yield (
                lambda done, total: bar.update(task, completed=done, total=total),
                lambda line: bar.console.print(line, markup=False),
            )
        return

    shown = -1

    def report(done: int, total: int | None) -> None:
        nonlocal shown
        step = 10 * done // total if total else done // LINE_BYTES
        if step != shown:
            shown = step
            end = f" of {megabytes(total)} ({done / total:.0%})" if total else ""
            typer.echo(f"{name}: {megabytes(done)}{end}", err=True)

    yield report, lambda line: typer.echo(line, err=True)


def megabytes(count: int) -> str:
    """A number of bytes in megabytes."""
    return f"{count / 1e6:.0f} MB"
