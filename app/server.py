"""The process around the application: it listens at once, logs when it is ready, and shuts down in order."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import socket
import time
from typing import TYPE_CHECKING, NoReturn

import uvicorn

from app.http.connections import make_protocol
from app.intake.fetch import HostsError
from app.keys import KeysError
from app.main import create_app
from app.observability import logs
from app.observability.tracing import TracingError
from app.settings import Settings, format_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType

    from app.service import ServedEngine, Service

log = logging.getLogger(__name__)

# Longer than the 60 seconds for which nginx keeps an idle connection: if this side closed it just when nginx sends a
# request on it, that request would fail with 502.
KEEP_ALIVE_SECONDS = 75
# Connections that wait to be accepted.
BACKLOG = 2048
# Time for connections whose answer is being sent when the main loop ends.
CLOSING_SECONDS = 2.0


def serve(settings: Settings, load: Callable[[], ServedEngine] | None = None) -> NoReturn:
    """Serve until a signal or a failure ends the process. load: see create_app."""
    logs.configure_logging(settings)
    log.info("settings: %s", format_settings(settings))
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        reason: object = error.strerror or error
        if error.errno == errno.EADDRINUSE:
            reason = "it is in use; choose another with --port or MASKSERVE_PORT"
        log.critical("cannot listen on %s port %d: %s", settings.host, settings.port, reason)
        end_process(1)
    except UnicodeError:
        log.critical(
            "cannot listen on %s: MASKSERVE_HOST must be an IP address, or a name whose parts between the dots have 1 "
            "to 63 characters",
            settings.host,
        )
        end_process(1)
    with listener:
        try:
            server = Server(settings, listener, load)
        except (HostsError, KeysError, TracingError) as error:
            log.critical("%s", error)
            end_process(1)
        server.run(sockets=[listener])
    end_process(server.exit_code)


def end_process(code: int) -> NoReturn:
    """End the process without the interpreter's finalization.

    Finalization stops daemon threads wherever they are. If one of them is inside torch, because it loads a model or
    runs a batch that was given up, C++ treats that as an error, and the process ends with SIGABRT instead of its exit
    code.
    """
    logging.shutdown()
    os._exit(code)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Connections are queued until the event loop runs."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)


class Server(uvicorn.Server):
    """uvicorn, but a signal drains the service before anything closes, and the exit code is 0 unless it fails."""

    def __init__(
        self, settings: Settings, listener: socket.socket, load: Callable[[], ServedEngine] | None = None
    ) -> None:
        self.app = create_app(settings, load, on_failure=self.on_failure)
        super().__init__(
            uvicorn.Config(
                self.app,
                http=make_protocol(settings.header_timeout, settings.send_timeout, settings.max_connections),
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
        # A signal has come.
        self.shutting_down = False
        self.tasks: set[asyncio.Future[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen while the model loads."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.spawn(self.log_ready())

    async def log_ready(self) -> None:
        """Log one line once requests are admitted."""
        await self.service.ready.wait()
        engine = self.service.engine
        if engine.model.notice:
            log.info("%s", engine.model.notice)
        log.info(
            "maskserve: %s on %s (%s) is ready at %s",
            engine.model.name,
            engine.device,
            engine.precision,
            local_url(self.listener),
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close everything in order, unless a second signal has come."""
        if not self.force_exit:
            await super().shutdown(sockets)
        if self.force_exit:
            log.warning("a second signal has ended the process at once")
            end_process(self.exit_code)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal.signal's
        """The first signal drains, the second ends the process. Python calls it anywhere in the main thread."""
        if self.loop is None or self.shutting_down:
            self.should_exit = self.force_exit = True
            return
        self.shutting_down = True
        self.loop.call_soon_threadsafe(lambda: self.spawn(self.begin_shutdown()))

    async def begin_shutdown(self) -> None:
        """Finish the admitted requests within drain_timeout, and end the main loop."""
        await self.service.begin_shutdown()
        log.info("shutting down: finishing the admitted requests")
        deadline = time.monotonic() + self.settings.drain_timeout
        try:
            async with asyncio.timeout(self.settings.drain_timeout):
                await self.service.drain()
        except TimeoutError:
            log.warning(
                "%d requests are refused because they are unfinished after %g seconds (MASKSERVE_DRAIN_TIMEOUT)",
                self.service.admission.requests,
                self.settings.drain_timeout,
            )
        self.end_main_loop(max(CLOSING_SECONDS, deadline - time.monotonic()))

    def on_failure(self) -> None:
        """End with a code that makes the supervisor restart the process: the model or its device has failed."""
        self.exit_code = 1
        self.end_main_loop(CLOSING_SECONDS)

    def end_main_loop(self, seconds: float) -> None:
        """End the main loop; active connections have this many seconds to finish."""
        self.config.timeout_graceful_shutdown = math.ceil(seconds)
        self.should_exit = True

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run a coroutine beside the main loop, and keep the reference that the event loop does not keep."""
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def local_url(listener: socket.socket) -> str:
    """The URL for a browser on this machine."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared with, not bound to
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
