"""`maskserve import`: a checkpoint of another framework becomes a model file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import typer

from app.api import responses
from app.commands.terminal import BAD_FILE, BAD_USAGE, complain, file_error, print_instances
from app.runtime.cpus import usable_cpus
from model.images.decode import ImageError, decode
from model.importing.categories import read_categories
from model.importing.changes import read_changes
from model.importing.importer import import_model
from model.importing.result import ImportingError
from model.inference.engine import Engine
from model.instances import Options
from model.zoo import model_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.importing.importer import ImportedModel


def run(
    file: Path,
    config: Path | None,
    categories: str | None,
    settings: Sequence[str],
    *,
    out: Path | None,
    name: str | None,
    check: Sequence[Path],
) -> int:
    """Import the file, write the model and say what it is; the program's exit code.

    Args:
        file: the checkpoint.
        config: its framework's configuration.
        categories: names with commas between them, or the path of a file of them.
        settings: NAME=VALUE each, in place of what is assumed.
        out: the file to write.
        name: of the model.
        check: images to run it on.
    """
    torch.set_num_threads(usable_cpus())
    try:
        changes = read_changes(settings)
        named = None if categories is None else read_categories(categories, _as_file(categories))
    except ImportingError as error:
        return complain(str(error), BAD_USAGE)
    target = out or Path(f"{name or file.stem}.safetensors")
    if target.exists() and file.exists() and target.samefile(file):
        return complain(f"{target} is the file that is imported: say --out another one", BAD_USAGE)
    try:
        imported = import_model(file, config=config, categories=named, changes=changes, name=name)
        model_file.save(target, imported.network, imported.model)
    except ImportingError as error:
        return complain(str(error), BAD_FILE)
    except OSError as error:
        return complain(file_error(error, target), BAD_FILE)
    for line in imported.report.lines():
        typer.echo(line)
    status = _check(imported, check) if check else 0
    typer.echo(f"wrote {target}; serve it: maskserve serve --model {target}")
    return status


def _as_file(text: str) -> Path | None:
    path = Path(text)
    try:
        return path if path.suffix in (".txt", ".json", ".names") or path.is_file() else None
    except OSError:
        # Longer than a file's name may be: names, separated by commas.
        return None


def _check(imported: ImportedModel, images: Sequence[Path]) -> int:
    """Print what the model finds in images; the exit code."""
    engine = Engine(imported.network, imported.model, torch.device("cpu"))
    status = 0
    for path in images:
        try:
            image = decode(path.read_bytes())
        except OSError as error:
            status = complain(file_error(error, path), BAD_FILE)
            continue
        except ImageError as error:
            status = complain(f"{path}: {error}", BAD_FILE)
            continue
        started = time.perf_counter()
        (found,) = engine.segment([image], [Options()])
        seconds = time.perf_counter() - started
        print_instances(str(path), responses.document(engine.model, found), seconds * 1000)
    return status
