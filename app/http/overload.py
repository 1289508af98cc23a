"""The door of /segment: who cannot be let in is told so before anything else is done for him.

Pure ASGI middleware inside of Exchanges. Under overload most requests end here, and what they cost is taken from those
that are answered: routing, dependencies and options would double it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request

from app.http.request_context import refuse
from app.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send


class Door:
    """Lets a request for instances pass, or answers it with the problem that `knock` raises."""

    def __init__(self, app: ASGIApp, knock: Callable[[], None]) -> None:
        self.app = app
        self.knock = knock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one scope."""
        if scope["type"] == "http" and scope["path"] == "/segment" and scope["method"] == "POST":
            try:
                self.knock()
            except Problem as problem:
                await refuse(Request(scope), problem)(scope, receive, send)
                return
        await self.app(scope, receive, send)
