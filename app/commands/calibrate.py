"""`maskserve calibrate`: measure the range of a model's activations on a few images, for `--precision int8`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import typer

from app.commands.terminal import BAD_FILE, BAD_USAGE, complain, file_error, progress_bar
from app.runtime.cpus import usable_cpus
from app.runtime.loading import LOAD_ERRORS
from model.data.shapes import CATEGORIES, training_scenes
from model.images.decode import ImageError, decode
from model.images.files import find_images
from model.inference.calibration import (
    MAX_IMAGES,
    measure_ranges,
    take_samples,
    why_not_int8,
)
from model.zoo import catalogue, model_file, zoo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np


def run_calibration(name: str, images: Sequence[Path], out: Path | None, weights_folder: Path) -> int:
    """Measure activation ranges on images and write them into the model's file; return the exit code.

    Args:
        name: a model's name or file.
        images: image files and folders of them. A model of drawn shapes needs none: it is calibrated on drawn scenes.
        out: the file to write. None overwrites a model's file that was named, and writes NAME.safetensors for a name:
            what comes with maskserve stays as it is.
        weights_folder: where downloaded weights are.
    """
    if name == zoo.AUTO:
        return complain("name a model: a name from `maskserve weights list`, or a file", BAD_USAGE)
    torch.set_num_threads(usable_cpus())
    try:
        network, model = zoo.load(name, weights_folder, runnable=False)
        if why := why_not_int8(model.architecture):
            return complain(why, BAD_FILE)
        if not images and model.categories != CATEGORIES:
            return complain(
                f"give images like those that {model.name} will segment: maskserve calibrate {name} IMAGE…",
                BAD_USAGE,
            )
        files, skipped = find_files(images)
        if images and not files:
            first = f"; {skipped[0]}" if skipped else ""
            return complain(f"no images in {', '.join(map(str, images))}{first}", BAD_USAGE)
        unread = len(skipped)
        pixels, count = (
            (decode_files(files, skipped), len(files))
            if images
            else ((sample.pixels for sample in take_samples(training_scenes())), MAX_IMAGES)
        )
        with progress_bar(transient=True) as bar:
            shown = bar.track(pixels, count, description="calibrating")
            try:
                model = replace(model, ranges=measure_ranges(network, model.architecture, shown))
            except ValueError as error:
                return complain(skipped[unread] if len(skipped) > unread else str(error), BAD_FILE)
        count -= len(skipped) - unread
        for reason in skipped:
            typer.echo(f"skipped: {reason}", err=True)
        source = zoo.file_of(name)
        own = None if name in catalogue.bundled() else source
        target = out or own or Path(f"{model.name}.safetensors")
        if source is None:
            model_file.save(target, network, model)
        else:
            model_file.rewrite_metadata(target, source, model)
    except LOAD_ERRORS as error:
        return complain(str(error), BAD_FILE)
    except OSError as error:
        return complain(file_error(error), BAD_FILE)
    typer.echo(
        f"wrote {target}, calibrated on {count} images; "
        f"serve it with: maskserve serve --model {target} --precision int8"
    )
    return 0


def find_files(images: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The image files among files and in folders, and why other pictures in the folders are not read."""
    files: list[Path] = []
    skipped: list[str] = []
    for path in images:
        if path.is_dir():
            found, others = find_images(path, recursive=True)
            files += found
            skipped += [f"{other}: {reason}" for other, reason in others.items()]
        else:
            files.append(path)
    return files, skipped


def decode_files(files: Sequence[Path], skipped: list[str]) -> Iterator[np.ndarray]:
    """The pixels of each file; why a damaged one has none is added to `skipped`. Raises OSError."""
    for file in files:
        try:
            pixels = decode(file.read_bytes())
        except ImageError as error:
            skipped.append(f"{file}: {error}")
        else:
            yield pixels
