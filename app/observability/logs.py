"""The log on stderr: one line for each event, as text for people or as JSON for collectors.

No line holds image content. The line of a request holds the id that its answer has.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from app.settings import Settings

# The attribute of a log record that holds the additional fields of its JSON line.
FIELDS = "fields"


def configure_logging(settings: Settings) -> None:
    """Send the log of the whole process to stderr, in the format and from the severity that the settings name."""
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # uvicorn's lines about start and stop repeat the service's own. The form parser warns of every damaged form,
    # which is the client's mistake and has been answered with 400.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO message`, a traceback below it where there is one."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return f"{timestamp(record)} {super().format(record)}"


class JsonFormatter(logging.Formatter):
    """One JSON object on each line; that of a request has its id, method, path, status and milliseconds as fields."""

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
    """The time of the record: RFC 3339, UTC, with milliseconds."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"
