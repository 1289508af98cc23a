"""The id of the trace that a request belongs to, and the start of the spans, which spans.py sends."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from app.observability.spans import Tracing

# W3C Trace Context, section 3.2: version, trace, parent, flags. Later versions may append more.
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


class TracingError(Exception):
    """Spans were asked for, but the packages that send them are not installed."""


def trace_id(traceparent: str) -> str | None:
    """The id of the trace that a request belongs to, from its `traceparent` header; None without a valid one."""
    match = TRACEPARENT.fullmatch(traceparent)
    return match[1] if match else None


def start_tracing(paths: Collection[str], quiet_paths: Collection[str]) -> Tracing:
    """Start to send spans; see Tracing for the arguments. Raises TracingError."""
    # The stable names of HTTP attributes; by default the instrumentation still uses those of 2021.
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    try:
        from app.observability.spans import Tracing  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise TracingError(
            f"MASKSERVE_TRACING needs packages that are not installed ({error.name}), which the extra `tracing` "
            "brings: pip install '.[tracing]' in the checkout"
        ) from None
    return Tracing(paths, quiet_paths)
