"""`maskserve segment --url`: folders of images through a running service, into one file and a folder of pictures.

What has been answered is noted in a journal beside the file, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from app.commands.terminal import BAD_FILE, BAD_USAGE, checked, complain, table
from maskserve import AnswerError, Client, MaskserveError, Result
from maskserve.export import coco_dataset, coco_results, cvat, image_ids, label_studio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
FORMATS = ("coco", "coco-dataset", "cvat", "label-studio")
INTERRUPTED = 130  # exit code, as shells have it for Ctrl-C


@dataclass(frozen=True, slots=True)
class Service:
    """Whom to ask."""

    url: str
    api_key_file: Path | None
    deadline: float  # seconds for an image, over all tries
    concurrency: int

    def client(self) -> Client:
        """Raises OSError if the key cannot be read."""
        key = None
        if self.api_key_file is not None:
            key = self.api_key_file.read_text(encoding="ascii").partition("\n")[0].strip()
        return Client(self.url, api_key=key, deadline=self.deadline, concurrency=self.concurrency)


@dataclass(frozen=True, slots=True)
class Output:
    """Where the answers go."""

    out: Path | None  # one file of all
    form: str  # of FORMATS
    overlays: Path | None  # folder
    as_json: bool  # print them

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError, fit for the user, for what cannot be written."""
        if self.form not in FORMATS:
            raise ValueError(f"--format must be one of {', '.join(FORMATS)}, not {self.form}")
        if self.form in FORMATS[2:] and options.get("masks") == "none":
            raise ValueError(f"--format {self.form} needs masks")


def ask(images: Sequence[Path], query: Mapping[str, Any], service: Service, output: Output) -> int:
    """Segment files, and those in folders, by a service; the exit code of the program.

    query: the parameters of POST /segment, None where not given.
    """
    options: dict[str, Any] = {name: value for name, value in query.items() if value is not None}
    try:
        output.check(options)
        client = service.client()
        files = expanded(images)
        pictures = None if output.overlays is None else destinations(files, output.overlays)
        journal = None if output.out is None else Journal(output.out, options)
    except ValueError as error:
        return complain(str(error), BAD_USAGE)
    except OSError as error:
        return complain(f"{error.filename}: {error.strerror or error}", BAD_FILE)
    done = {} if journal is None else journal.answers(files)
    if done:
        typer.echo(f"maskserve: {len(done)} of {len(files)} images were answered before", err=True)
    pending = [path for path in files if path not in done]
    failed = 0
    try:
        with client, progress(hidden=output.out is None) as bar:
            task = bar.add_task("segmenting", total=len(files), completed=len(done))
            outcomes = client.segment_many(pending, **options)
            for path, outcome in zip(pending, outcomes, strict=True):
                bar.advance(task)
                if pictures is not None and isinstance(outcome, Result):
                    outcome = draw(path, outcome, pictures[path])  # noqa: PLW2901 - a picture may fail too
                if isinstance(outcome, Exception):
                    failed += 1
                    bar.console.print(
                        f"maskserve: {path}: {reason(outcome)}", markup=False, highlight=False, soft_wrap=True
                    )
                    continue
                if journal is not None:
                    journal.note(path, outcome)
                else:
                    show(path, outcome, as_json=output.as_json)
            if output.out is not None and journal is not None:
                categories = client.model()["categories"] if output.form == "coco-dataset" else []
                write(output.out, output.form, journal.answers(files), files, categories)
    except KeyboardInterrupt:
        return complain("interrupted; the same command goes on from here", INTERRUPTED)
    except MaskserveError as error:
        return complain(str(error), BAD_FILE)
    except OSError as error:
        return complain(f"{error.filename}: {error.strerror or error}", BAD_FILE)
    if failed:
        again = "; the same command tries them again" if journal is not None else ""
        return complain(f"{failed} of {len(files)} images have no result{again}", BAD_FILE)
    if journal is not None:
        journal.end()
        typer.echo(f"maskserve: {len(files)} images are in {output.out}", err=True)
    return 0


def expanded(images: Sequence[Path]) -> dict[Path, Path]:
    """Files → the folder that they were named by, folders replaced by the images in them. Raises ValueError."""
    files: dict[Path, Path] = {}
    for path in images:
        if not path.is_dir():
            files[path] = path.parent
            continue
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not found:
            raise ValueError(f"{path}: no images in this folder")
        files |= dict.fromkeys(found, path)
    return files


def destinations(files: Mapping[Path, Path], folder: Path) -> Mapping[Path, Path]:
    """Where each image's picture goes: under `folder` as the image lies under its own. Raises ValueError."""
    folder.mkdir(parents=True, exist_ok=True)
    return checked(
        {file: folder / file.relative_to(base).with_suffix(".png") for file, base in files.items()}
    )


class Journal:
    """The answers so far, one JSON line each, beside the file that they will be written to."""

    def __init__(self, out: Path, options: Mapping[str, Any]) -> None:
        """Raises ValueError if there is one of other options, OSError if it cannot be written."""
        self.path = out.with_name(f"{out.name}.partial")
        self._options = dict(options)
        if not self.path.exists():
            self.path.write_bytes(orjson.dumps({"options": self._options}) + b"\n")
        with self.path.open("rb") as lines:
            first = parsed(lines.readline())
        if first is None or first.get("options") != self._options:
            raise ValueError(
                f"{self.path} is of a command with other options; delete it, or choose another --out"
            )

    def answers(self, files: Mapping[Path, Path]) -> dict[Path, Result]:
        """Those of these files that have not changed since; in the files' order."""
        found: dict[Path, Result] = {}
        by_name = {str(path): path for path in files}
        with self.path.open("rb") as lines:
            for line in lines:
                entry = parsed(line)  # the last one may be cut off
                if entry is None or (path := by_name.get(entry.get("image", ""))) is None:
                    continue
                if path.exists() and entry["state"] == state(path):
                    found[path] = Result.from_document(entry["answer"])
        return {path: found[path] for path in files if path in found}

    def note(self, path: Path, result: Result) -> None:
        """An image is done, its picture too."""
        entry = {"image": str(path), "state": state(path), "answer": result.document}
        with self.path.open("ab") as lines:
            if lines.tell() and not self._ends_with_a_line():
                lines.write(b"\n")  # behind what an interruption left
            lines.write(orjson.dumps(entry) + b"\n")

    def _ends_with_a_line(self) -> bool:
        with self.path.open("rb") as lines:
            lines.seek(-1, os.SEEK_END)
            return lines.read() == b"\n"

    def end(self) -> None:
        """Everything is in its file; the journal is not needed any more."""
        self.path.unlink()


def state(path: Path) -> list[int]:
    """What changes when a file does: its size and when it was written."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def parsed(line: bytes) -> dict[str, Any] | None:
    """A line of the journal, or None where it is not whole."""
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) else None


def write(
    out: Path,
    form: str,
    answers: Mapping[Path, Result],
    files: Mapping[Path, Path],
    categories: list[dict[str, Any]],
) -> None:
    """The one file of all answers, whole or not at all. Images are named as they lie in their folders."""
    named = [(path.relative_to(files[path]).as_posix(), result) for path, result in answers.items()]
    ids = image_ids([name for name, _ in named])
    match form:
        case "coco":
            content = orjson.dumps(coco_results(named, ids))
        case "coco-dataset":
            content = orjson.dumps(coco_dataset(named, ids, categories))
        case "cvat":
            content = cvat(named).encode()
        case _:
            content = orjson.dumps(label_studio(named))
    temporary = out.with_name(f"{out.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(out)


def draw(path: Path, result: Result, picture: Path) -> Result | AnswerError:
    """Write the picture of an image; the result again, or what is wrong with its masks.

    It is drawn here, from the answer, which costs the service nothing.
    """
    from app.commands.overlay import drawn  # noqa: PLC0415 - imports torch

    try:
        content = drawn(path.read_bytes(), result)
    except AnswerError as error:
        return error
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(content)
    return result


def show(path: Path, result: Result, *, as_json: bool) -> None:
    """One answer on stdout."""
    document = {**result.document, "id": str(path)}
    if as_json:
        typer.echo(orjson.dumps(document))
    else:
        table(str(path), document, result.timings.get("total"))


def reason(error: MaskserveError | OSError) -> str:
    """What went wrong with an image, in one line."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def progress(*, hidden: bool) -> Progress:
    """A bar on stderr; it stays away where what is printed is the result."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=hidden,
    )
