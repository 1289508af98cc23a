"""Lines that people read and lines that collectors read."""

from __future__ import annotations

import json
import logging
import sys

from app.observability.logs import FIELDS, JsonFormatter, TextFormatter


def record(message: str, **fields: object) -> logging.LogRecord:
    """A log record from the first second of 2026."""
    made = logging.LogRecord("app.http.request_context", logging.INFO, "", 0, message, (), None)
    made.created, made.msecs = 1767225600.5, 500.0
    if fields:
        setattr(made, FIELDS, fields)
    return made


def test_text_has_time_severity_and_message() -> None:
    assert TextFormatter().format(record("ready")) == "2026-01-01T00:00:00.500Z INFO ready"


def test_json_has_the_fields_of_a_request_on_one_line() -> None:
    line = JsonFormatter().format(record("POST /segment", id="a\nb", status=200))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-01-01T00:00:00.500Z",
        "level": "info",
        "logger": "app.http.request_context",
        "message": "POST /segment",
        "id": "a\nb",
        "status": 200,
    }


def test_json_keeps_a_traceback_on_the_line() -> None:
    made = record("failed")
    try:
        int("broken")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert "ValueError: invalid literal" in json.loads(line)["traceback"]
