"""The process around the application: it listens at once, says when it is ready, and leaves in good order."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
from typing import TYPE_CHECKING, NoReturn

import uvicorn

from app import settings as settings_
from app.http.connections import bounded
from app.keys import KeysError
from app.main import create_app
from app.observability import logs
from app.observability.tracing import TracingError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType

    from app.service import ServedEngine, Service
    from app.settings import Settings

log = logging.getLogger(__name__)

# Longer than the 60 seconds that nginx keeps an idle connection to us: if we closed it just as
# the gateway sends a request on it, that request would end as a 502.
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
CLOSING_SECONDS = 2.0  # for connections whose answer is just on its way


def serve(settings: Settings, load: Callable[[], ServedEngine] | None = None) -> NoReturn:
    """Serve until a signal or a failure, with which the process ends. load: as create_app takes it."""
    logs.configure(settings)
    log.info("settings: %s", settings_.effective(settings))
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        log.critical("cannot listen on %s port %d: %s", settings.host, settings.port, error.strerror or error)
        end_process(1)
    with listener:
        try:
            server = Server(settings, listener, load)
        except (KeysError, TracingError) as error:
            log.critical("%s", error)
            end_process(1)
        server.run(sockets=[listener])
    end_process(server.exit_code)


def end_process(code: int) -> NoReturn:
    """End without the interpreter's own end.

    That one stops daemon threads wherever they are. In one that is inside torch, loading or at a batch that nobody
    waits for any more, C++ takes it for an error, and the process ends with SIGABRT whatever its code was to be.
    """
    logging.shutdown()
    os._exit(code)


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on; they wait until the event loop runs."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)


class Server(uvicorn.Server):
    """uvicorn, but a signal drains before anything closes, and the exit code is 0 unless the model failed."""

    def __init__(
        self, settings: Settings, listener: socket.socket, load: Callable[[], ServedEngine] | None = None
    ) -> None:
        self.app = create_app(settings, load, on_failure=self.fail)
        super().__init__(
            uvicorn.Config(
                self.app,
                http=bounded(settings.header_timeout, settings.max_connections),
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="on",
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )
        self.exit_code = 0
        self.settings = settings
        self.listener = listener
        self.service: Service = self.app.state.service
        self.loop: asyncio.AbstractEventLoop | None = None
        self.leaving = False  # a signal has come
        self.tasks: set[asyncio.Future[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, while the model loads."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.spawn(self.announce())

    async def announce(self) -> None:
        """The line that says that requests are taken."""
        await self.service.ready.wait()
        engine = self.service.engine
        if engine.model.notice:
            log.info("%s", engine.model.notice)
        log.info(
            "maskserve: %s on %s (%s) is ready at %s",
            engine.model.name,
            engine.device,
            engine.precision,
            url(self.listener),
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close everything in good order, unless a second signal says that there is no time for it."""
        if not self.force_exit:
            await super().shutdown(sockets)
        if self.force_exit:
            log.warning("ended at once by a second signal")
            end_process(self.exit_code)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal.signal's
        """The first signal drains, the second ends at once. Runs wherever the main thread happens to be."""
        if self.loop is None or self.leaving:
            self.should_exit = self.force_exit = True
            return
        self.leaving = True
        self.loop.call_soon_threadsafe(lambda: self.spawn(self.begin_shutdown()))

    async def begin_shutdown(self) -> None:
        """Finish what was accepted, within the time there is for it, and let the main loop end."""
        await self.service.begin_shutdown()
        log.info("shutting down: finishing the requests that were accepted")
        deadline = time.monotonic() + self.settings.drain_timeout
        try:
            async with asyncio.timeout(self.settings.drain_timeout):
                await self.service.drain()
        except TimeoutError:
            log.warning(
                "%d requests unfinished after %g seconds are sent elsewhere (MASKSERVE_DRAIN_TIMEOUT)",
                self.service.admission.requests,
                self.settings.drain_timeout,
            )
        self.end(max(CLOSING_SECONDS, deadline - time.monotonic()))

    def fail(self) -> None:
        """The model cannot be loaded or its device is lost: end with a code that asks for a restart."""
        self.exit_code = 1
        self.end(CLOSING_SECONDS)

    def end(self, seconds: float) -> None:
        """Let the main loop end; connections that still do something have so many seconds."""
        self.config.timeout_graceful_shutdown = math.ceil(seconds)
        self.should_exit = True

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run beside the main loop, which keeps no reference of its own."""
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def url(listener: socket.socket) -> str:
    """The address to type into a browser on this machine."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared with, not bound to
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
