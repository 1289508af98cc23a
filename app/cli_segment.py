"""`maskserve segment`: image files through the engine in this process, with the service's code around it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import typer
from rich.console import Console
from rich.table import Table

from app import options, responses
from app.loading import LOAD_ERRORS, load_engine
from app.problems import InvalidParameter
from model.image import ImageError, decode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from app.settings import Settings
    from model.instances import Instances
    from model.zoo import Model

PICTURES = {".png": responses.PNG, ".jpg": responses.JPEG, ".jpeg": responses.JPEG}
BAD_FILE, BAD_USAGE = 1, 2  # exit codes


def run(
    images: Sequence[Path],
    query: Mapping[str, str | None],
    settings: Settings,
    *,
    as_json: bool,
    overlay: Path | None,
) -> int:
    """Segment the files one after the other; the exit code of the program.

    query: the parameters of POST /segment, None where not given. as_json: print the service's JSON, a line
    for each image with the file's path for an id; else a table. overlay: where the pictures go.
    """
    try:
        pictures = dict.fromkeys(images) if overlay is None else destinations(images, overlay)
    except ValueError as error:
        return complain(str(error), BAD_USAGE)
    try:
        engine = load_engine(settings)
        given = {name: value for name, value in query.items() if value is not None}
        wanted = options.parse(urlencode(given), engine.model.categories)
    except LOAD_ERRORS as error:
        return complain(str(error), BAD_FILE)
    except InvalidParameter as problem:
        return complain(problem.detail, BAD_USAGE)
    if engine.model.notice:
        typer.echo(engine.model.notice, err=True)
    status = 0
    for path, picture in pictures.items():
        try:
            image = decode(path.read_bytes())
            begun = time.perf_counter()
            (instances,) = engine.segment([image], [wanted])
            seconds = time.perf_counter() - begun
            if picture is not None:
                kind = PICTURES[picture.suffix.lower()]
                picture.write_bytes(responses.encode(kind, str(path), engine.model, image, instances))
        except OSError as error:
            status = complain(f"{error.filename or path}: {error.strerror or error}", BAD_FILE)
        except ImageError as error:
            status = complain(f"{path}: {error}", BAD_FILE)
        else:
            if as_json:
                answer = responses.encode(
                    responses.JSON, str(path), engine.model, image, instances, mask_format=wanted.mask_format
                )
                typer.echo(answer)
            else:
                show(path, engine.model, instances, seconds)
    return status


def destinations(images: Sequence[Path], overlay: Path) -> dict[Path, Path | None]:
    """Where each image's picture goes: into the file `overlay`, or into that folder with several images.

    Raises ValueError, fit for the user, if that cannot be done.
    """
    if len(images) == 1:
        if overlay.suffix.lower() not in PICTURES:
            raise ValueError(f"{overlay}: the picture's name must end in .png or .jpg")
        return {images[0]: overlay}
    if not overlay.is_dir():
        raise ValueError(f"{overlay}: with several images this must be a folder that exists")
    pictures: dict[Path, Path | None] = {image: overlay / f"{image.stem}.png" for image in images}
    if len(set(pictures.values())) < len(pictures):
        raise ValueError(f"two of the images would be drawn into the same file in {overlay}")
    return pictures


def show(path: Path, model: Model, instances: Instances, seconds: float) -> None:
    """A table of the instances, for people."""
    height, width = instances.size
    found = f"{len(instances)} instance{'' if len(instances) == 1 else 's'}"
    table = Table(box=None, pad_edge=False)
    table.add_column("category")
    for heading in ("score", "x", "y", "width", "height", "area"):
        table.add_column(heading, justify="right")
    for record in responses.records(model, instances):
        box = [f"{number:.1f}" for number in record["bbox"]]
        table.add_row(record["category"], f"{record['score']:.4f}", *box, f"{record['area']:.0f}")
    console = Console(highlight=False)
    title = f"{path}: {width} × {height}, {found}, {seconds * 1000:.0f} ms ({model.name})"
    console.print(title, style="bold", markup=False, soft_wrap=True)
    console.print(table)


def complain(message: str, status: int) -> int:
    """Say on stderr what is wrong, and return the exit code for it."""
    typer.echo(f"maskserve: {message}", err=True)
    return status
