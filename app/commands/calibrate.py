"""`maskserve calibrate`: measure on a few images what a model's activations reach, for `--precision int8`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import typer

from app.commands.terminal import BAD_FILE, BAD_USAGE, complain, file_error, progress_bar
from app.runtime.cpus import usable_cpus
from app.runtime.loading import LOAD_ERRORS
from model.data.shapes import CATEGORIES, training
from model.images.decode import ImageError, decode
from model.images.files import images_in
from model.inference.calibration import IMAGES, INT8_BACKBONES, examples, measured, supports_int8
from model.zoo import model_file, zoo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np


def run(name: str, images: Sequence[Path], out: Path | None, weights_folder: Path) -> int:
    """Write the model's file anew with the ranges measured on the images; the program's exit code.

    images: files, and folders of which all images are taken; none for drawn scenes, which a model of drawn shapes was
    trained on. out: the file to write; by default the model's own, or NAME.safetensors for one that has no such file.
    """
    if name == zoo.AUTO:
        return complain("say which model: a name from `maskserve weights list`, or a file", BAD_USAGE)
    torch.set_num_threads(usable_cpus())
    try:
        network, model = zoo.load(name, weights_folder)
        if not supports_int8(model.architecture):
            return complain(f"{model.architecture.backbone} cannot run in int8; {INT8_BACKBONES}", BAD_FILE)
        if not images and model.categories != CATEGORIES:
            return complain(
                f"give some images of the kind that {model.name} will see: maskserve calibrate {name} IMAGE…",
                BAD_USAGE,
            )
        files = [file for path in images for file in files_of(path)]
        if images and not files:
            return complain(f"no image in {', '.join(map(str, images))}", BAD_USAGE)
        pixels, count = (decoded(files), len(files)) if images else (examples(training()), IMAGES)
        with progress_bar(transient=True) as bar:
            shown = bar.track(pixels, count, description="calibrating")
            model = replace(model, ranges=measured(network, model.architecture, shown))
        source = zoo.file_of(name)
        target = out or source or Path(f"{model.name}.safetensors")
        if source is None:
            model_file.save(target, network, model)
        else:
            model_file.rewrite_metadata(target, source, model)
    except (*LOAD_ERRORS, ImageError) as error:
        return complain(str(error), BAD_FILE)
    except OSError as error:
        return complain(file_error(error), BAD_FILE)
    typer.echo(
        f"wrote {target}, calibrated on {count} images; serve it: maskserve serve --model {target} --precision int8"
    )
    return 0


def files_of(path: Path) -> list[Path]:
    """The image files that a path stands for: itself, or those in a folder."""
    return images_in(path) if path.is_dir() else [path]


def decoded(files: Sequence[Path]) -> Iterator[np.ndarray]:
    """The files' pixels. Raises OSError and ImageError, which names the file."""
    for file in files:
        try:
            yield decode(file.read_bytes())
        except ImageError as error:
            raise ImageError(f"{file}: {error}") from None
