"""Compresses answers with gzip, for clients that accept it.

At level 1 an answer with 18 instances shrinks from 6.9 to 2.8 KB in 0.03 ms, one with 100 from 41 to 16 KB in 0.2 ms;
level 6 takes five times as long for a twentieth less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

# What fits into one Ethernet packet arrives no sooner when it is smaller.
MINIMUM_BYTES = 1400
LEVEL = 1
# Starlette holds back the header until the first line of NDJSON is there.
UNCOMPRESSED = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "application/x-ndjson")


class CompressionMiddleware:
    """Starlette's GZipMiddleware, for all requests but those that it would answer wrongly.

    It looks for "gzip" in Accept-Encoding, whatever the weight and only in small letters, and it removes the
    Content-Length of a file, for which HTTP/1.0 has no substitute.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.compressing = GZipMiddleware(
            app, minimum_size=MINIMUM_BYTES, compresslevel=LEVEL, exclude_content_types=UNCOMPRESSED
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one scope."""
        if scope["type"] != "http" or scope["http_version"] == "1.0":
            await self.app(scope, receive, send)
            return
        if any(name == b"accept-encoding" for name, _ in scope["headers"]):
            scope = {**scope, "headers": list(scope["headers"])}
            headers = MutableHeaders(scope=scope)
            accepted = accepts_gzip(headers.getlist("accept-encoding"))
            headers["accept-encoding"] = "gzip" if accepted else "identity"
        await self.compressing(scope, receive, send)


def accepts_gzip(values: Sequence[str]) -> bool:
    """Whether a request's Accept-Encoding headers give gzip a weight above 0 (RFC 9110, section 12.5.3)."""
    weights: dict[str, bool] = {}
    for item in ",".join(values).lower().split(","):
        name, _, weight = item.replace(" ", "").partition(";q=")
        # A weight without a digit from 1 to 9 is 0.
        weights[name] = not weight or bool(weight.strip("0."))
    return weights.get("gzip", weights.get("*", False))
