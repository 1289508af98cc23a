"""`maskserve segment`: image files through the engine in this process, with the service's code around it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import typer

from app.api import query as options
from app.api import responses
from app.commands.terminal import BAD_FILE, BAD_USAGE, checked, complain, table
from app.problems import InvalidParameter
from app.runtime.loading import LOAD_ERRORS, load_engine
from model.images.decode import ImageError, decode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from app.settings import Settings

PICTURES = {".png": options.PNG, ".jpg": options.JPEG, ".jpeg": options.JPEG}


def run(
    images: Sequence[Path],
    query: Mapping[str, Any],
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
        pictures = {} if overlay is None else destinations(images, overlay)
    except ValueError as error:
        return complain(str(error), BAD_USAGE)
    try:
        engine = load_engine(settings)
        given = {name: value for name, value in query.items() if value is not None}
        wanted = options.parse(given, engine.model.categories)
    except LOAD_ERRORS as error:
        return complain(str(error), BAD_FILE)
    except InvalidParameter as problem:
        return complain(problem.detail, BAD_USAGE)
    if engine.model.notice:
        typer.echo(engine.model.notice, err=True)
    status = 0
    for path in dict.fromkeys(images):
        try:
            image = decode(path.read_bytes())
            begun = time.perf_counter()
            (instances,) = engine.segment([image], [wanted])
            seconds = time.perf_counter() - begun
            if (picture := pictures.get(path)) is not None:
                kind = PICTURES[picture.suffix.lower()]
                picture.write_bytes(responses.encode(kind, str(path), engine.model, image, instances))
        except OSError as error:
            status = complain(f"{error.filename or path}: {error.strerror or error}", BAD_FILE)
        except ImageError as error:
            status = complain(f"{path}: {error}", BAD_FILE)
        else:
            if as_json:
                answer = responses.encode(
                    options.JSON, str(path), engine.model, image, instances, mask_format=wanted.mask_format
                )
                typer.echo(answer)
            else:
                table(str(path), responses.document(engine.model, instances), seconds * 1000)
    return status


def destinations(images: Sequence[Path], overlay: Path) -> Mapping[Path, Path]:
    """Where each image's picture goes: into the file `overlay`, or into that folder with several images.

    Raises ValueError, fit for the user, if that cannot be done.
    """
    if len(images) > 1 and not overlay.is_dir():
        raise ValueError(f"{overlay}: with several images this must be a folder that exists")
    if len(images) == 1 and overlay.suffix.lower() not in PICTURES:
        raise ValueError(f"{overlay}: the picture's name must end in .png or .jpg")
    return checked({image: overlay / f"{image.stem}.png" if len(images) > 1 else overlay for image in images})
