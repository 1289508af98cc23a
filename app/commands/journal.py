"""The journal of `maskserve segment --out`: the answers so far, so that an interrupted command can go on.

The result of a shard is such a journal too, renamed when it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, Self, TypeVar

import orjson

from maskserve import AnswerError, Result
from model.zoo.partial import shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from app.commands.segmenter import Outcome

K = TypeVar("K", bound=Hashable)


class OtherModel(ValueError):  # noqa: N818 - says what happened
    """Answers of two models would be mixed."""


class AnswerJournal:
    """One JSON line for each answer, after a line with what they depend on. Only one process at a time has it."""

    def __init__(
        self, out: Path, header: Mapping[str, Any], names: Mapping[Path, str], *, is_result: bool = False
    ) -> None:
        """Start a journal, or open the one that an interrupted command has left.

        Args:
            out: the file of the results; the journal lies beside it, called the same and `.partial`.
            header: what the answers depend on; others must not be mixed with these.
            names: what each image is called in the journal.
            is_result: whether `finish` makes the journal itself the file `out`, which is then continued if it is there.

        Raises:
            ValueError: the journal that is there has another header, or another process has it open.
            OSError: it cannot be written.
        """
        self.path = out.with_name(f"{out.name}.partial")
        self._out = out
        self._is_result = is_result
        self._names = names
        # Of the next answers, where that is not written yet.
        self._next_model: dict[str, str | None] | None = None
        self._was_complete = is_result and out.exists() and not self.path.exists()
        if self._was_complete:
            # Before the file is touched, because it may belong to something else.
            with out.open("rb") as lines:
                self._check(lines.readline(), dict(header), out)
            out.rename(self.path)
        self._lines = self.path.open("a+b")
        try:
            self._start(dict(header))
        except BaseException:
            self._lines.close()
            raise

    def _start(self, header: dict[str, Any]) -> None:
        try:
            _lock(self._lines)
        except BlockingIOError:
            raise ValueError(
                f"{self.path} is in use: another process writes the same results; wait for it, or choose another --out"
            ) from None
        self._lines.seek(0)
        first = self._lines.readline()
        if not first.endswith(b"\n"):
            # It is new, or was interrupted before its first line was whole.
            self._lines.truncate(0)
            self._write(header)
            return
        self._check(first, header, self.path)
        self._lines.seek(-1, os.SEEK_END)
        if self._lines.read() != b"\n":
            # An interruption has cut off the last line.
            self._lines.write(b"\n")
            self._lines.flush()

    @staticmethod
    def _check(first: bytes, header: dict[str, Any], path: Path) -> None:
        if parse_line(first) != header:
            raise ValueError(
                f"{path} belongs to a command with other options; delete it, or choose another --out"
            )

    def answers(self) -> Answers[Path]:
        """The answers for those images that have not changed since, in the order of `names`."""
        paths = {name: path for path, name in self._names.items()}
        places: dict[Path, tuple[Path, int]] = {}
        for offset, entry in entries(self.path):
            path = paths.get(entry.get("image", ""))
            if path is None or "answer" not in entry:
                continue
            if path.exists() and entry["state"] == file_state(path):
                places[path] = (self.path, offset)
        return Answers({path: places[path] for path in self._names if path in places})

    def note_model(self, model: Mapping[str, Any]) -> None:
        """Have the next answers noted as this model's. model: as `GET /model` describes it.

        Raises OtherModel if there are answers of another one; a complete file of results keeps its name then.
        Answers of which a journal does not say it, as those of earlier versions, are taken for this model's.
        """
        noted = model_identity(model)
        before = next((entry["model"] for _, entry in entries(self.path) if "model" in entry), None)
        if before is None:
            self._next_model = noted
        elif before != noted:
            if self._was_complete:
                self.path.rename(self._out)
            raise OtherModel(
                f"{self._out} has answers of another model, {model_label(before)}, than the one that would answer now, "
                f"{model_label(noted)}; delete them, or choose another --out"
            )

    def add(self, path: Path, result: Result, state: list[int]) -> None:
        """Append the answer for an image. Call it when all else that belongs to the image has been written.

        Args:
            path: of the image.
            result: the answer.
            state: as `file_state` had it before the file was read.
        """
        if self._next_model is not None:
            self._write({"model": self._next_model})
            self._next_model = None
        self._write({"image": self._names[path], "state": state, "answer": result.document})

    def add_failure(self, path: Path, reason: str) -> None:
        """Append why an image has no answer. It is tried again when the journal is continued."""
        self._write({"image": self._names[path], "error": reason})

    def add_categories(self, categories: list[dict[str, Any]]) -> None:
        """Append the categories of the model that answered."""
        self._write({"categories": categories})

    def finish(self) -> None:
        """The results are complete: delete the file, or rename it if it is the results."""
        if not self._is_result:
            self.path.unlink()
            return
        os.fsync(self._lines.fileno())
        self.path.rename(self._out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._lines.write(orjson.dumps(entry) + b"\n")
        self._lines.flush()


class Answers(Mapping[K, Result], Generic[K]):
    """Answers in journals. Each is read when it is asked for: all together may be larger than the memory."""

    def __init__(self, places: Mapping[K, tuple[Path, int]]) -> None:
        """places: of each answer, its journal and where its line begins there, in bytes."""
        self._places = places

    def __getitem__(self, key: K) -> Result:
        """Read one answer."""
        journal, offset = self._places[key]
        with journal.open("rb") as lines:
            lines.seek(offset)
            entry = parse_line(lines.readline())
        if entry is None:
            raise OSError(f"{journal} was changed meanwhile")
        return Result.from_document(entry["answer"])

    def __iter__(self) -> Iterator[K]:
        """What has an answer."""
        return iter(self._places)

    def __len__(self) -> int:
        """How many answers there are."""
        return len(self._places)


def entries(journal: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The whole lines of a journal, with where each begins, in bytes."""
    offset = 0
    with journal.open("rb") as lines:
        for line in lines:
            entry = parse_line(line)
            if entry is not None:
                yield offset, entry
            offset += len(line)


def model_identity(model: Mapping[str, Any]) -> dict[str, str | None]:
    """What tells a model from others, and from itself before it was trained again. model: as `GET /model` has it."""
    return {"name": model.get("name"), "sha256": model.get("sha256")}


def model_label(identity: Mapping[str, str | None]) -> str:
    """A model for a message."""
    return f"{identity.get('name')} ({shorten(identity.get('sha256') or 'of unknown weights')})"


def file_state(path: Path) -> list[int]:
    """What changes when a file is written again: its size in bytes and the time of the change in nanoseconds."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def note_states(images: Iterable[Path], states: dict[Path, list[int]]) -> Iterator[Path]:
    """The images, whose states are noted as each is handed on: what is written meanwhile is another image."""
    for path in images:
        # What is not there has no answer.
        if (state := find_state(path)) is not None:
            states[path] = state
        yield path


def refuse_changed(
    outcomes: Iterable[tuple[Path, Outcome]], states: Mapping[Path, list[int]]
) -> Iterator[tuple[Path, Outcome]]:
    """The outcomes, but an error for an image that was written since its state was noted."""
    for path, outcome in outcomes:
        is_same = path in states and states[path] == find_state(path)
        if is_same or isinstance(outcome, Exception):
            yield path, outcome
        else:
            yield path, AnswerError("it was written while it was segmented")


def find_state(path: Path) -> list[int] | None:
    """The state of a file; None where there is none."""
    try:
        return file_state(path)
    except OSError:
        return None


def _lock(file: BinaryIO) -> None:
    """Keep other processes from the file until it is closed. Raises BlockingIOError if another one has it.

    The lock goes with the process, even a killed one, and leaves no file behind.
    """
    try:
        import fcntl  # noqa: PLC0415 - there is none on Windows, where nothing is locked
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """A line of the journal, or None if it was cut off."""
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) else None
