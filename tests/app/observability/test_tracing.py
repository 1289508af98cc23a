"""Spans: one for a request with its stages inside, under the caller's trace."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from app.observability.tracing import Tracing, TracingError, trace_id

PARENT = (
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"  # the example of W3C Trace Context, section 3.2
)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (PARENT, "0af7651916cd43dd8448eb211c80319c"),
        (PARENT.replace("00-", "cc-", 1) + "-what-the-future-brings", "0af7651916cd43dd8448eb211c80319c"),
        ("", None),
        ("00-" + "0" * 32 + "-b7ad6b7169203331-01", None),
        ("00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01", None),
        (PARENT.replace("00-", "ff-", 1), None),
        (PARENT.upper(), None),
        ("a\nb", None),
    ],
)
def test_trace_id_is_read_from_a_valid_header_only(header: str, found: str | None) -> None:
    assert trace_id(header) == found


def test_a_request_is_a_span_with_its_stages_inside_under_the_callers_trace() -> None:
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    tracing = Tracing(exporter)
    tracing.exchange(
        "POST /segment",
        PARENT,
        0.5,
        {"read": (0.0, 0.1), "forward": (0.2, 0.25)},
        {"http.response.status_code": 504, "maskserve.batch": 3, "maskserve.client": None},
    )
    tracing.stop()
    read, forward, request = exporter.get_finished_spans()
    assert (read.name, forward.name, request.name) == ("read", "forward", "POST /segment")
    assert format(request.context.trace_id, "032x") == trace_id(PARENT)
    assert format(request.parent.span_id, "016x") == "b7ad6b7169203331"
    assert read.parent.span_id == forward.parent.span_id == request.context.span_id
    assert request.end_time - request.start_time == 500_000_000
    assert forward.start_time - request.start_time == 200_000_000
    assert forward.end_time - forward.start_time == 250_000_000
    assert dict(request.attributes) == {"http.response.status_code": 504, "maskserve.batch": 3}
    assert not request.status.is_ok


def test_without_the_packages_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_opentelemetry(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_opentelemetry)
    with pytest.raises(TracingError, match=r"pip install 'maskserve\[tracing\]'"):
        Tracing()
