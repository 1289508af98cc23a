"""`maskserve segment` without --url: image files through an engine in this process, answered as the service does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import typer

from app.api import query, responses
from app.commands.terminal import (
    BAD_FILE,
    BAD_USAGE,
    check_overlays,
    complain,
    file_error,
    print_instances,
)
from app.problems import InvalidParameter
from app.runtime.loading import LOAD_ERRORS, load_engine
from model.images.decode import ImageError, decode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from app.settings import Settings

# Media type of an overlay by the suffix of its file.
MEDIA_TYPES = {".png": query.PNG, ".jpg": query.JPEG, ".jpeg": query.JPEG}


def run(
    images: Sequence[Path],
    parameters: Mapping[str, Any],
    settings: Settings,
    *,
    as_json: bool,
    overlay: Path | None,
) -> int:
    """Segment the files one after the other; return the exit code of the program.

    Args:
        images: the files.
        parameters: of POST /segment, None where not given.
        settings: of the engine.
        as_json: print the answers of the service, a line for each image with the file's path as its id, instead of
            tables.
        overlay: file, or for several images folder, of the images with their instances drawn on them.
    """
    try:
        overlays = {} if overlay is None else overlay_paths(images, overlay)
    except ValueError as error:
        return complain(str(error), BAD_USAGE)
    try:
        engine = load_engine(settings)
        given = {name: value for name, value in parameters.items() if value is not None}
        params = query.parse(given, engine.model)
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
            start = time.perf_counter()
            (instances,) = engine.segment([image], [params])
            seconds = time.perf_counter() - start
            if (target := overlays.get(path)) is not None:
                media_type = MEDIA_TYPES[target.suffix.lower()]
                target.write_bytes(responses.encode(media_type, str(path), engine.model, image, instances))
        except OSError as error:
            status = complain(file_error(error, path), BAD_FILE)
        except ImageError as error:
            status = complain(f"{path}: {error}", BAD_FILE)
        else:
            if as_json:
                answer = responses.encode(
                    query.JSON, str(path), engine.model, image, instances, mask_format=params.mask_format
                )
                typer.echo(answer)
            else:
                print_instances(str(path), responses.document(engine.model, instances), seconds * 1000)
    return status


def overlay_paths(images: Sequence[Path], overlay: Path) -> Mapping[Path, Path]:
    """Image → the file of its overlay: `overlay` itself, or with several images a file in that folder.

    Raises ValueError, with a message for the user, if that cannot be done.
    """
    if len(images) > 1 and not overlay.is_dir():
        raise ValueError(f"{overlay}: with several images this must be a folder that exists")
    if len(images) == 1 and overlay.suffix.lower() not in MEDIA_TYPES:
        raise ValueError(f"{overlay}: the file's name must end in .png or .jpg")
    return check_overlays(
        {image: overlay / f"{image.stem}.png" if len(images) > 1 else overlay for image in images}
    )
