"""Compresses answers with gzip, for clients that accept it.

At level 1 an answer with 18 instances shrinks from 6.9 to 2.8 KB in 0.03 ms, one with 100 from 41 to 16 KB in 0.2 ms;
level 6 takes five times as long for a twentieth less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

# What fits into one Ethernet packet arrives no sooner when it is smaller.
MINIMUM_BYTES = 1400
LEVEL = 1
# Starlette holds back the header until the first line of NDJSON is there.
UNCOMPRESSED = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "application/x-ndjson")


class CompressionMiddleware:
    """Starlette's GZipMiddleware, for all requests but those that it would answer wrongly.

    It overlooks that `gzip;q=0` refuses gzip, and it removes the Content-Length of a file, for which HTTP/1.0 has no
    substitute.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.compressing = GZipMiddleware(
            app, minimum_size=MINIMUM_BYTES, compresslevel=LEVEL, exclude_content_types=UNCOMPRESSED
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one scope."""
        if scope["type"] == "http" and (scope["http_version"] == "1.0" or refuses_gzip(Headers(scope=scope))):
            await self.app(scope, receive, send)
        else:
            await self.compressing(scope, receive, send)


def refuses_gzip(headers: Headers) -> bool:
    """Whether Accept-Encoding gives gzip the weight 0 (RFC 9110, section 12.4.2)."""
    for item in headers.get("accept-encoding", "").lower().split(","):
        name, _, weight = item.replace(" ", "").partition(";q=")
        if name == "gzip" and weight and not weight.strip("0."):
            return True
    return False
