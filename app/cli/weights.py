"""`maskserve weights list | fetch | verify`: the models that can be downloaded, and what is here of them.

The catalogue, the transfer and the checks are those of model/zoo/catalogue.py; this is how they look on a terminal.
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
from model.zoo import catalogue as downloadable
from model.zoo.errors import DamagedWeightsError, MissingWeightsError, WeightsError
from model.zoo.partial import Partial, digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.zoo.download import Progress as Report
    from model.zoo.download import Tell

BUNDLED = "shapes"
LINE_BYTES = 20_000_000  # where nobody watches and the end is not known, a line each so many bytes

weights = typer.Typer(help="List, fetch and verify the models' weights.", no_args_is_help=True)

Folder = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        envvar="MASKSERVE_WEIGHTS_DIR",
        metavar="DIR",
        show_default=False,
        help="Folder of downloaded weights. By default it is weights/ in the checkout that maskserve runs "
        "from, else maskserve/weights in your cache folder.",
    ),
]


@dataclass(frozen=True, slots=True)
class Row:
    """One model as `list` shows it."""

    name: str
    dataset: str  # what it was trained on
    box_ap: float | None  # percent
    mask_ap: float | None
    size: int | None  # bytes of the whole file
    state: str  # verified, partial, missing or damaged; the bundled model: bundled, missing or damaged
    received: int  # bytes that are here
    path: str
    url: str | None


@weights.command("list")
def list_weights(
    folder: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show every model by name, how good it is, and whether its weights are here.

    AP: mean average precision at IoU .50 to .95, percent, on validation data of what it was trained on.
    """
    with errors_in_one_line():
        place = resolve(folder)
        rows = [bundled(), *(row(entry, place) for entry in downloadable.catalogue())]
    if as_json:
        typer.echo(json.dumps({"folder": str(place), "weights": [asdict(each) for each in rows]}, indent=2))
        return
    table = Table("name", "trained on", box=None, pad_edge=False)
    for heading in ("box AP", "mask AP", "size"):
        table.add_column(heading, justify="right")
    table.add_column("state")
    for each in rows:
        share = f", {each.received / each.size:.0%}" if each.state == "partial" and each.size else ""
        table.add_row(
            each.name,
            each.dataset,
            "–" if each.box_ap is None else f"{each.box_ap:.1f}",
            "–" if each.mask_ap is None else f"{each.mask_ap:.1f}",
            "–" if each.size is None else megabytes(each.size),
            each.state + share,
        )
    Console(highlight=False).print(table)
    typer.echo(f"\nFolder: {place}")
    if any(each.url and each.state != "verified" for each in rows):
        typer.echo("To download one: maskserve weights fetch NAME")


@weights.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `maskserve weights list`.")],
    folder: Folder = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            metavar="URL", show_default=False, help="Take URL/FILE instead of the official address."
        ),
    ] = None,
) -> None:
    """Download the weights of one model and verify them.

    An interrupted download continues where it stopped. Behind a proxy, set HTTPS_PROXY.
    """
    if name == BUNDLED:
        typer.echo(f"{BUNDLED} comes with maskserve: there is nothing to fetch", err=True)
        typer.echo(bundled().path)
        return
    try:
        with errors_in_one_line(), display(name) as (progress, tell):
            file = downloadable.fetch(name, resolve(folder), base_url=mirror, progress=progress, tell=tell)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command continues where it stopped", err=True)
        raise typer.Exit(130) from None
    typer.echo(file)


@weights.command()
def verify(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this model.", show_default=False)
    ] = None,
    folder: Folder = None,
) -> None:
    """Read the weights that are here and compare their sha256 with the official one, or the bundled model's own.

    Exits with 1 if a file is damaged, or if the model that was asked for is not here.
    """
    failed = False
    with errors_in_one_line():
        place = resolve(folder)
        if name in (None, BUNDLED):
            own = bundled()
            if own.state == "missing":
                failed = name is not None
                typer.echo(f"{BUNDLED}: missing: {own.path}", err=failed)
            elif (found := digest(Path(own.path))) == downloadable.bundled_sha256():
                typer.echo(f"{BUNDLED}: verified, sha256 {found}")
            else:
                failed = True
                typer.echo(f"{BUNDLED}: damaged, sha256 {found}: {own.path}", err=True)
        for entry in chosen(name):
            try:
                found = downloadable.verify(entry.path(place), entry.sha256)
                typer.echo(f"{entry.name}: verified, sha256 {found}")
            except DamagedWeightsError as error:
                failed = True
                typer.echo(f"{error}; `maskserve weights fetch {entry.name}` replaces it", err=True)
            except MissingWeightsError as error:
                failed = failed or name is not None
                typer.echo(f"{entry.name}: {error}", err=name is not None)
    if failed:
        raise typer.Exit(1)


def chosen(name: str | None) -> tuple[downloadable.Weights, ...]:
    """The catalogue's entries of that name, which are all if there is none and none for the bundled model."""
    if name is None:
        return downloadable.catalogue()
    return () if name == BUNDLED else (downloadable.find(name),)


def row(entry: downloadable.Weights, folder: Path) -> Row:
    """What is known of downloadable weights and what the folder has of them."""
    path = entry.path(folder)
    received = path.stat().st_size if path.exists() else Partial(path).size
    state = downloadable.state(entry, folder)
    return Row(
        entry.name,
        entry.dataset,
        entry.box_ap,
        entry.mask_ap,
        entry.size,
        state,
        received,
        str(path),
        entry.url,
    )


def bundled() -> Row:
    """The model that comes with maskserve. Its AP is in the file itself, see model/zoo/zoo.py."""
    path = downloadable.bundled_folder() / f"{BUNDLED}.safetensors"
    if not path.exists():
        return Row(BUNDLED, BUNDLED, None, None, None, "missing", 0, str(path), None)
    size = path.stat().st_size
    try:
        with safe_open(path, framework="np") as file:  # reads the header and compares it with the size
            ap = json.loads(file.metadata()["maskserve"])["ap"]
        box, mask = (100 * float(ap[kind]) if kind in ap else None for kind in ("box", "mask"))
    except (SafetensorError, OSError, ValueError, TypeError, KeyError):
        return Row(BUNDLED, BUNDLED, None, None, size, "damaged", size, str(path), None)
    return Row(BUNDLED, BUNDLED, box, mask, size, "bundled", size, str(path), None)


def resolve(folder: Path | None) -> Path:
    """The folder that was asked for, with ~ as the user's own, else the default one."""
    return downloadable.default_folder() if folder is None else folder.expanduser()


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn what may go wrong into one line on stderr and exit code 1."""
    try:
        yield
    except WeightsError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


@contextlib.contextmanager
def display(name: str) -> Iterator[tuple[Report, Tell]]:
    """Show a transfer on stderr: as a bar on a terminal, else as a line for every tenth of the file."""
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
    """A number of bytes as a person reads it."""
    return f"{count / 1e6:.0f} MB"
