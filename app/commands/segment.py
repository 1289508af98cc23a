"""`maskserve segment`: images and folders of images through a service or an engine, into tables, files and pictures.

`segment_url.py` and `segment_files.py` have the two.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import typer
from rich.progress import MofNCompleteColumn, TimeElapsedColumn

from app.commands.image_files import expand_folders
from app.commands.journal import AnswerJournal, OtherModel, note_states, refuse_changed
from app.commands.label_ids import LabelIds
from app.commands.results_file import CannotWrite
from app.commands.shard import Shard, name_images
from app.commands.terminal import (
    BAD_FILE,
    BAD_USAGE,
    check_overlays,
    complain,
    file_error,
    print_instances,
    progress_bar,
)
from maskserve import AnswerError, MaskserveError, Result, ServiceError
from model.data import DatasetError
from model.errors import DeviceFailed
from model.images.formats import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from app.commands.results_file import ResultsFile
    from app.commands.segmenter import Outcome, Segmenter

# What the suffix of an overlay's file may be.
OVERLAY_SUFFIXES = (".png", ".jpg", ".jpeg")
# Exit code that shells use for Ctrl-C.
INTERRUPTED = 130


class CannotStart(Exception):  # noqa: N818 - says what happened
    """Nothing can be segmented. The message says why, `status` is the exit code."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Job:
    """The images, and what is asked of them."""

    # Image → the folder that it is below.
    files: Mapping[Path, Path]
    # Pictures in formats that are not read.
    unread: int
    # The parameters of POST /segment.
    options: Mapping[str, Any]
    # Image → the file of its overlay.
    overlays: Mapping[Path, Path]
    # Where the results' ids come from.
    labels: LabelIds | None


@dataclass(frozen=True, slots=True)
class Output:
    """Where the answers go."""

    # One file of all results, or what the file of a shard is called after.
    file: ResultsFile | None
    # Folder of the images with their instances drawn on them.
    overlay_folder: Path | None
    # Whether they are printed as JSON rather than as tables.
    as_json: bool
    # The one image with its instances drawn on it, or with several images a folder that exists.
    overlay: Path | None = None
    # The images that are segmented; by default all.
    shard: Shard | None = None

    def open_journal(
        self, files: Mapping[Path, Path], options: Mapping[str, Any]
    ) -> AbstractContextManager[AnswerJournal | None]:
        """The journal of the answers, None where they are printed. Raises ValueError, OSError.

        Args:
            files: image → the folder that it is below.
            options: what the answers depend on.
        """
        if self.file is None:
            return nullcontext()
        names = name_images(files)
        if self.shard is None:
            return AnswerJournal(self.file.path, {"options": options}, {path: str(path) for path in files})
        header = {"options": options, "shard": str(self.shard)}
        return AnswerJournal(self.shard.file(self.file.path), header, names, is_result=True)


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
        if output.file is not None:
            output.file.check(options)
        files, unread = expand_folders(images, output.shard, drawn=output.overlay_folder or output.overlay)
        labels = None if output.file is None or output.file.ids is None else LabelIds.read(output.file.ids)
        if labels is not None:
            labels.image_ids(files)  # what has no id is said before the work
        overlays = overlay_paths(files, images, output)
        opened = start()
        journal = output.open_journal(files, {**options, **(identity or {})})
    except (ValueError, DatasetError) as error:
        return complain(str(error), BAD_USAGE)
    except CannotStart as error:
        return complain(str(error), error.status)
    except OSError as error:
        return complain(file_error(error), BAD_FILE)
    for path, reason in unread.items():
        shown = str(path).encode(errors="replace").decode()
        typer.echo(f"maskserve: {shown}: {reason}", err=True)
    with journal as answered:
        return segment_all(Job(files, len(unread), options, overlays, labels), opened, output, answered)


def segment_all(
    job: Job, opened: AbstractContextManager[Segmenter], output: Output, journal: AnswerJournal | None
) -> int:
    """Segment the images that the journal has no answers for, and write the results; return the exit code.

    Args:
        job: the images, and what is asked of them.
        opened: what segments.
        output: where the answers go.
        journal: of the answers, or None where they are printed.
    """
    files = job.files
    done = {} if journal is None else journal.answers()
    if done:
        typer.echo(f"maskserve: {len(done)} of {len(files)} images have their results already", err=True)
    pending = [path for path in files if path not in done]
    bar = progress_bar(MofNCompleteColumn(), TimeElapsedColumn(), hidden=output.file is None)
    try:
        with opened as segmenter, bar:
            task = bar.add_task("segmenting", total=len(files), completed=len(done))
            failed = 0
            if journal is not None and pending:
                # Where only images are passed on, as by some gateways, nobody knows the model.
                with suppress(ServiceError):
                    journal.note_model(segmenter.model())
            states: dict[Path, list[int]] = {}
            sent = pending if journal is None else note_states(pending, states)
            outcomes: Iterable[tuple[Path, Outcome]]
            outcomes = zip(pending, segmenter.segment_many(sent, **job.options), strict=True)
            if job.overlays:
                outcomes = write_overlays(outcomes, job.overlays, segmenter.model)
            if journal is not None:
                outcomes = refuse_changed(outcomes, states)
            for path, outcome in outcomes:
                bar.advance(task)
                state = states.pop(path, [])
                if isinstance(outcome, Exception):
                    failed += 1
                    reason = failure_reason(outcome)
                    bar.console.print(f"maskserve: {path}: {reason}", markup=False, soft_wrap=True)
                    if journal is not None and output.shard is not None:
                        journal.add_failure(path, reason)
                elif journal is not None:
                    if output.file is not None and output.shard is None:
                        output.file.check_answer(outcome)
                    journal.add(path, outcome, state)
                else:
                    print_result(path, outcome, as_json=output.as_json)
            # Where nothing was answered, results of an earlier command stay.
            if output.file is not None and journal is not None and (answers := journal.answers()):
                if output.shard is not None:
                    if pending:
                        journal.add_categories(segmenter.model()["categories"])
                else:
                    needed = output.file.needs_categories or job.labels is not None
                    categories = segmenter.model()["categories"] if needed else []
                    if (
                        job.labels is not None
                        and (missing := job.labels.describe_missing(categories)) is not None
                    ):
                        typer.echo(f"maskserve: {missing}", err=True)
                    output.file.write(answers, files, categories, job.labels)
            if journal is not None and (output.shard is not None or not (failed or job.unread)):
                journal.finish()
    except KeyboardInterrupt:
        again = "; the same command continues from here" if journal is not None else ""
        return complain(f"interrupted{again}", INTERRUPTED)
    except OtherModel as error:
        return complain(str(error), BAD_USAGE)
    except (CannotWrite, DatasetError) as error:
        if journal is not None and not journal.answers():
            journal.finish()
        return complain(str(error), BAD_USAGE)
    # DeviceFailed: no other image could be segmented either.
    except (MaskserveError, DeviceFailed) as error:
        return complain(str(error), BAD_FILE)
    except OSError as error:
        return complain(file_error(error), BAD_FILE)
    if failed or job.unread:
        again = "; the same command tries them again" if journal is not None and failed else ""
        count = len(files) + job.unread
        return complain(f"{failed + job.unread} of {count} images have no result{again}", BAD_FILE)
    if output.file is not None:
        file = output.file.path if output.shard is None else output.shard.file(output.file.path)
        typer.echo(f"maskserve: the results of {len(files)} images are in {file}", err=True)
    return 0


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


def write_overlays(
    outcomes: Iterable[tuple[Path, Outcome]],
    overlays: Mapping[Path, Path],
    describe: Callable[[], Mapping[str, Any]],
) -> Iterator[tuple[Path, Outcome]]:
    """Pass the outcomes on, each after its overlay is written; one that cannot be drawn turns into an AnswerError.

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
        except OSError as error:
            yield path, error
            continue
        # ValueError: the image has another size than when it was segmented.
        except (AnswerError, ImageError, ValueError) as error:
            yield path, AnswerError(str(error))
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


def failure_reason(error: MaskserveError | OSError) -> str:
    """Why an image has no result, in one line."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
