"""create_app: puts together the routes, the middleware, the error handlers and the life cycle."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from app.api import openapi, pages, probes, segment
from app.api.gauges import ServiceCollector
from app.api.query import TIMEOUT_HEADER
from app.http.compression import CompressionMiddleware
from app.http.overload import OverloadMiddleware
from app.http.request_context import QUIET_PATHS, RequestContextMiddleware, refuse
from app.observability.logs import FIELDS
from app.observability.tracing import start_tracing
from app.origins import parse_origins
from app.problems import MethodNotAllowed, Problem, UnknownPath, suggest
from app.runtime.loading import load_engine
from app.service import PATHS, Service
from app.version import version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request

    from app.service import ServedEngine
    from app.settings import Settings

log = logging.getLogger(__name__)

# Headers that scripts of other origins may send and read, besides those that CORS always allows.
CORS_REQUEST_HEADERS = ("Authorization", "Content-Type", "Traceparent", "X-Request-ID", TIMEOUT_HEADER)
CORS_RESPONSE_HEADERS = ("Retry-After", "Server-Timing", "X-Request-ID")


def create_app(
    settings: Settings,
    load: Callable[[], ServedEngine] | None = None,
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The ASGI application. Its lifespan loads the model in the background, and stops everything at its end.

    Raises app.keys.KeysError and app.observability.tracing.TracingError for settings that cannot be used.

    Args:
        settings: in effect.
        load: makes the engine; by default the one that the settings name.
        on_failure: called once the service can never answer again, so that the process should end.
    """
    service = Service(settings, load or (lambda: load_engine(settings)), on_failure)
    service.metrics.registry.register(ServiceCollector(service))
    tracing = start_tracing(PATHS, QUIET_PATHS) if settings.tracing else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()
        if tracing is not None:
            await asyncio.to_thread(tracing.stop)

    app = FastAPI(
        title="maskserve",
        version=version(),
        description=openapi.DESCRIPTION,
        lifespan=lifespan,
        # Relative to openapi.json, so that a gateway may serve all of this below a path.
        servers=[{"url": "."}],
        root_path_in_servers=False,
        # pages.py serves the documentation, without scripts from other hosts.
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        # Some clients drop the body of a redirected POST.
        redirect_slashes=False,
        exception_handlers={
            Problem: on_problem,
            HTTPException: on_http_exception,
        },
    )
    app.state.service = service
    # The last one added is the outermost.
    app.add_middleware(CompressionMiddleware)
    app.add_middleware(OverloadMiddleware, raise_if_overloaded=service.raise_if_overloaded)
    app.add_middleware(
        RequestContextMiddleware, metrics=service.metrics, unsent=service.unsent, tracing=tracing
    )
    if tracing is not None:
        app.add_middleware(tracing.middleware)
    if origins := parse_origins(settings.cors_origins):
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=CORS_REQUEST_HEADERS,
            expose_headers=CORS_RESPONSE_HEADERS,
        )
    app.include_router(segment.router)
    app.include_router(probes.router)
    pages.mount(app)
    return app


async def on_problem(request: Request, problem: Exception) -> Response:
    """Answer with a problem. The cause of an internal error is logged, and the client does not see it."""
    if not isinstance(problem, Problem):
        raise problem
    if problem.status == Problem.status:
        cause = problem.__cause__ or problem
        log.error(
            "request %s failed: %r",
            request.state.id,
            cause,
            exc_info=cause,
            extra={FIELDS: {"id": request.state.id}},
        )
    return refuse(request, problem)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer what the router raises: 404, or 405. For OPTIONS the 405 has the methods that the client asked for."""
    if not isinstance(error, HTTPException):
        raise error
    path, method = request.url.path, request.method
    if error.status_code == 404:
        return refuse(request, UnknownPath(f"There is nothing at {path[:80]}. {suggest(path, PATHS)}"))
    if error.status_code == 405:
        methods = {*(error.headers or {}).get("Allow", "").split(", "), "OPTIONS"} - {""}
        allow = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        if method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": allow})
        return refuse(request, MethodNotAllowed(f"{path} takes {allow}, not {method}.", allow=allow))
    raise error
