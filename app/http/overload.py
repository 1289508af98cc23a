"""Refuses requests to /segment that cannot be admitted, before anything else is done for them.

Pure ASGI middleware inside RequestContextMiddleware. Under overload most requests end here, and their cost is taken
from the requests that are answered: routing, dependencies and query parameters would double it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request

from app.http.request_context import refuse
from app.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send


class OverloadMiddleware:
    """Lets a request for instances pass, or answers it with the problem that `raise_if_overloaded` raises."""

    def __init__(self, app: ASGIApp, raise_if_overloaded: Callable[[], None]) -> None:
        self.app = app
        self.raise_if_overloaded = raise_if_overloaded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one scope."""
        if scope["type"] == "http" and scope["path"] == "/segment" and scope["method"] == "POST":
            try:
                self.raise_if_overloaded()
            except Problem as problem:
                await refuse(Request(scope), problem)(scope, receive, send)
                return
        await self.app(scope, receive, send)
