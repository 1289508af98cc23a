"""The journal of `maskserve segment --out`: the answers so far, so that an interrupted command can go on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import orjson

from maskserve import Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


class AnswerJournal:
    """One JSON line for each answer, in a file beside the one that the results will be written to."""

    def __init__(self, out: Path, options: Mapping[str, Any]) -> None:
        """Start a journal, or open the one that an interrupted command has left.

        Args:
            out: the file of the results.
            options: of the requests; answers to other options must not be mixed with these.

        Raises:
            ValueError: the journal that is there belongs to other options.
            OSError: it cannot be written.
        """
        self.path = out.with_name(f"{out.name}.partial")
        self._options = dict(options)
        if not self.path.exists():
            self.path.write_bytes(orjson.dumps({"options": self._options}) + b"\n")
        with self.path.open("rb") as lines:
            header = parse_line(lines.readline())
        if header is None or header.get("options") != self._options:
            raise ValueError(
                f"{self.path} belongs to a command with other options; delete it, or choose another --out"
            )

    def read(self, files: Iterable[Path]) -> dict[Path, Result]:
        """The answers for those of these files that have not changed since, in the order of the files."""
        files = list(files)
        answers: dict[Path, Result] = {}
        by_name = {str(path): path for path in files}
        with self.path.open("rb") as lines:
            for line in lines:
                entry = parse_line(line)
                if entry is None or (path := by_name.get(entry.get("image", ""))) is None:
                    continue
                if path.exists() and entry["state"] == file_state(path):
                    answers[path] = Result.from_document(entry["answer"])
        return {path: answers[path] for path in files if path in answers}

    def add(self, path: Path, result: Result) -> None:
        """Append the answer for an image. Call it when all else that belongs to the image has been written."""
        entry = {"image": str(path), "state": file_state(path), "answer": result.document}
        with self.path.open("ab") as lines:
            if lines.tell() and not self._ends_with_newline():
                # An interruption has cut off the last line.
                lines.write(b"\n")
            lines.write(orjson.dumps(entry) + b"\n")

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as lines:
            lines.seek(-1, os.SEEK_END)
            return lines.read() == b"\n"

    def delete(self) -> None:
        """Delete the file: the results are complete."""
        self.path.unlink()


def file_state(path: Path) -> list[int]:
    """What changes when a file is written again: its size in bytes and the time of the change in nanoseconds."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """A line of the journal, or None if it was cut off."""
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) else None
