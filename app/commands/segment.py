"""`maskserve segment`: images and folders of images through a service or an engine, into tables, files and pictures.

`segment_url.py` and `segment_files.py` have the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import orjson
import typer
from rich.progress import MofNCompleteColumn, TimeElapsedColumn

from app.commands.journal import AnswerJournal
from app.commands.label_ids import LabelIds
from app.commands.terminal import (
    BAD_FILE,
    BAD_USAGE,
    check_overlays,
    complain,
    file_error,
    print_instances,
    progress_bar,
)
from maskserve import AnswerError, MaskserveError, Result
from maskserve.export import coco_dataset, coco_results, cvat, image_ids, label_studio
from model.data import DatasetError
from model.images.files import find_images, nothing_found

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from rich.progress import Progress

    from maskserve.requests import SegmentOptions

Outcome = Result | MaskserveError | OSError

FORMATS = ("coco", "coco-dataset", "cvat", "label-studio")
# What the suffix of an overlay's file may be.
OVERLAY_SUFFIXES = (".png", ".jpg", ".jpeg")
# Exit code that shells use for Ctrl-C.
INTERRUPTED = 130


class Segmenter(Protocol):
    """What finds the instances: a client of a service, or an engine in this process."""

    def segment_many(self, images: Iterable[Path], **options: Unpack[SegmentOptions]) -> Iterator[Outcome]:
        """The outcome for each image, in their order."""

    def model(self) -> Mapping[str, Any]:
        """Which model answers, with its categories."""


class CannotStart(Exception):  # noqa: N818 - says what happened
    """Nothing can be segmented. The message says why, `status` is the exit code."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Output:
    """Where the answers go."""

    # One file of all results, in one of FORMATS.
    file: Path | None
    file_format: str
    # Folder of the images with their instances drawn on them.
    overlay_folder: Path | None
    # Whether they are printed as JSON rather than as tables.
    as_json: bool
    # Label file whose image and category ids the results get.
    ids: Path | None = None
    # The one image with its instances drawn on it, or with several images a folder that exists.
    overlay: Path | None = None

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError, with a message for the user, if this cannot be written."""
        if self.file_format not in FORMATS:
            raise ValueError(f"--format must be one of {', '.join(FORMATS)}, not {self.file_format}")
        if self.file_format in ("cvat", "label-studio") and options.get("masks") == "none":
            raise ValueError(f"--format {self.file_format} needs masks")
        if self.ids is not None and (self.file is None or self.file_format != "coco"):
            raise ValueError("--ids needs --out, in the format coco")


def run(
    images: Sequence[Path],
    query: Mapping[str, Any],
    start: Callable[[], AbstractContextManager[Segmenter]],
    output: Output,
    identity: Mapping[str, Any] | None = None,
) -> int:
    """Segment files and folders of files; return the exit code of the program.

    Args:
        images: files, and folders whose images are all taken.
        query: the parameters of POST /segment, None where not given.
        start: opens what segments, when all else is known to be right. Raises CannotStart, OSError.
        output: where the answers go.
        identity: what else tells these answers from those of other commands, for the journal.
    """
    options: dict[str, Any] = {name: value for name, value in query.items() if value is not None}
    try:
        output.check(options)
        files, unread = expand_folders(images)
        labels = None if output.ids is None else LabelIds.read(output.ids)
        if labels is not None:
            labels.image_ids(files)  # what has no id is said before the work
        overlays = overlay_paths(files, images, output)
        opened = start()
        journal = None if output.file is None else AnswerJournal(output.file, {**options, **(identity or {})})
    except (ValueError, DatasetError) as error:
        return complain(str(error), BAD_USAGE)
    except CannotStart as error:
        return complain(str(error), error.status)
    except OSError as error:
        return complain(file_error(error), BAD_FILE)
    for path, reason in unread.items():
        typer.echo(f"maskserve: {path}: {reason}", err=True)
    done = {} if journal is None else journal.read(files)
    if done:
        typer.echo(f"maskserve: {len(done)} of {len(files)} images have their results already", err=True)
    pending = [path for path in files if path not in done]
    bar = progress_bar(MofNCompleteColumn(), TimeElapsedColumn(), hidden=output.file is None)
    try:
        with opened as segmenter, bar:
            task = bar.add_task("segmenting", total=len(files), completed=len(done))
            failed = 0
            outcomes = zip(pending, segmenter.segment_many(pending, **options), strict=True)
            for path, outcome in (
                write_overlays(outcomes, overlays, segmenter.model) if overlays else outcomes
            ):
                bar.advance(task)
                if isinstance(outcome, Exception):
                    failed += 1
                    print_failure(bar, path, outcome)
                    continue
                if journal is not None:
                    journal.add(path, outcome)
                else:
                    print_result(path, outcome, as_json=output.as_json)
            # Where nothing was answered, as without a service, results of an earlier command stay.
            if output.file is not None and journal is not None and (answers := journal.read(files)):
                categories = segmenter.model()["categories"] if output.file_format != "coco" else []
                write_results(output, answers, files, categories, labels)
    except KeyboardInterrupt:
        again = "; the same command continues from here" if journal is not None else ""
        return complain(f"interrupted{again}", INTERRUPTED)
    except MaskserveError as error:
        return complain(str(error), BAD_FILE)
    except OSError as error:
        return complain(file_error(error), BAD_FILE)
    if failed or unread:
        again = "; the same command tries them again" if journal is not None and failed else ""
        count = len(files) + len(unread)
        return complain(f"{failed + len(unread)} of {count} images have no result{again}", BAD_FILE)
    if journal is not None:
        journal.delete()
        typer.echo(f"maskserve: the results of {len(files)} images are in {output.file}", err=True)
    return 0


def expand_folders(images: Sequence[Path]) -> tuple[dict[Path, Path], dict[Path, str]]:
    """Image file → the folder that it was found in, or lies in; pictures in the folders that are not read → why.

    Raises ValueError for a folder without images.
    """
    files: dict[Path, Path] = {}
    others: dict[Path, str] = {}
    for path in images:
        if not path.is_dir():
            files[path] = path.parent
            continue
        found, unread = find_images(path, recursive=True)
        if not found:
            raise ValueError(nothing_found(path, unread))
        files |= dict.fromkeys(found, path)
        others |= unread
    return files, others


def overlay_paths(files: Mapping[Path, Path], images: Sequence[Path], output: Output) -> Mapping[Path, Path]:
    """Image → the file of its overlay: below a folder as the image is below its own. Raises ValueError, OSError.

    Args:
        files: image → the folder that it is below.
        images: as the user named them.
        output: has the file or the folder.
    """
    folder = output.overlay_folder
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    elif output.overlay is None:
        return {}
    elif len(files) == 1 and not images[0].is_dir():
        if output.overlay.suffix.lower() not in OVERLAY_SUFFIXES:
            raise ValueError(f"{output.overlay}: the file's name must end in .png or .jpg")
        return check_overlays(dict.fromkeys(files, output.overlay))
    elif not output.overlay.is_dir():
        raise ValueError(f"{output.overlay}: with several images this must be a folder that exists")
    else:
        folder = output.overlay
    return check_overlays(
        {file: folder / file.relative_to(base).with_suffix(".png") for file, base in files.items()}
    )


def write_results(
    output: Output,
    answers: Mapping[Path, Result],
    files: Mapping[Path, Path],
    categories: list[dict[str, Any]],
    labels: LabelIds | None = None,
) -> None:
    """Write one file of all results, completely or not at all.

    Args:
        output: the file and its format.
        answers: by image.
        files: image → the folder that its name in the results is relative to.
        categories: of the model, for all formats but "coco".
        labels: where ids of images and categories come from; by default they are counted, and the model's.
    """
    if output.file is None:
        return
    names = {path: path.relative_to(files[path]).as_posix() for path in answers}
    named = [(names[path], result) for path, result in answers.items()]
    ids = image_ids([name for name, _ in named])
    match output.file_format:
        case "coco" if labels is not None:
            ids = {names[path]: number for path, number in labels.image_ids(answers).items()}
            content = orjson.dumps(list(labels.rename(coco_results(named, ids))))
        case "coco":
            content = orjson.dumps(coco_results(named, ids))
        case "coco-dataset":
            content = orjson.dumps(coco_dataset(named, ids, categories))
        case "cvat":
            content = cvat(named, categories).encode()
        case _:
            content = orjson.dumps(label_studio(named, categories=categories))
    write_whole(output.file, content)


def write_whole(file: Path, content: bytes) -> None:
    """Write a file completely or not at all."""
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(file)


def write_overlays(
    outcomes: Iterable[tuple[Path, Outcome]],
    overlays: Mapping[Path, Path],
    describe: Callable[[], Mapping[str, Any]],
) -> Iterator[tuple[Path, Outcome]]:
    """Pass the outcomes on, each after its overlay is written; a damaged mask turns an answer into an AnswerError.

    The overlays are drawn in this process, which costs a service nothing.

    Args:
        outcomes: by image.
        overlays: image → the file of its overlay.
        describe: gives the model, whose keypoints are drawn; asked once, where there are some.
    """
    model: Mapping[str, Any] | None = None
    from app.commands.overlay import draw_overlay  # noqa: PLC0415 - imports torch

    for path, outcome in outcomes:
        if path not in overlays or not isinstance(outcome, Result):
            yield path, outcome
            continue
        try:
            if model is None and any("keypoints" in found.record for found in outcome.instances):
                model = describe()
            content = draw_overlay(path.read_bytes(), outcome, overlays[path].suffix, model)
        except AnswerError as error:
            yield path, error
            continue
        overlays[path].parent.mkdir(parents=True, exist_ok=True)
        overlays[path].write_bytes(content)
        yield path, outcome


def print_result(path: Path, result: Result, *, as_json: bool) -> None:
    """Print one answer on stdout."""
    document = {**result.document, "id": str(path)}
    if as_json:
        typer.echo(orjson.dumps(document))
    else:
        print_instances(str(path), document, result.timings.get("total"))


def print_failure(bar: Progress, path: Path, error: MaskserveError | OSError) -> None:
    """Print why an image has no result, above the bar."""
    reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    bar.console.print(f"maskserve: {path}: {reason}", markup=False, soft_wrap=True)
