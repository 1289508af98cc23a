"""The trace of a request is known by its header, with or without the packages that send spans."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest

from app.observability.tracing import TracingError, start_tracing, trace_id

# The example of W3C Trace Context, section 3.2.
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


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


def test_without_the_packages_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_opentelemetry(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name=name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "app.observability.spans", raising=False)
    monkeypatch.setattr(builtins, "__import__", no_opentelemetry)
    with pytest.raises(TracingError, match=r"pip install '.\[tracing\]'"):
        start_tracing((), ())
