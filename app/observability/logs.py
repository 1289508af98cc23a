"""What the service says on stderr: one line an event, as text for people or as JSON for collectors.

No line holds image content. A request's line carries the id that its answer carried.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from app.settings import Settings

FIELDS = "fields"  # attribute of a log record that holds what JSON lines carry besides the message


def configure(settings: Settings) -> None:
    """Send the log of the whole process to stderr, in the settings' format and from their severity on."""
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextLines() if as_text else JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # uvicorn tells of every start and stop what our own lines say better; the form parser warns of every
    # damaged form, which is the client's affair and has its 400.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO message`, a traceback below it where there is one."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return f"{timestamp(record)} {super().format(record)}"


class JsonLines(logging.Formatter):
    """One JSON object a line; a request has its id, method, path, status and milliseconds as fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line: dict[str, Any] = {
            "time": timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def timestamp(record: logging.LogRecord) -> str:
    """When the record was made: RFC 3339, UTC, milliseconds."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"
