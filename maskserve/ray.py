"""The service as an application of Ray Serve, where the extra `ray` is installed: serve run deploy/ray/serve.yaml

Each replica is the whole ASGI application with its own queue worker: Ray starts, places and replaces replicas, and
admission, batching and deadlines are the service's own.
"""

# ruff: noqa: E402 - they are not importable before
from __future__ import annotations

import asyncio
import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from maskserve.server import make_importable

make_importable()

from app.runtime.openmp import configure_openmp

configure_openmp()

import ray
from ray import serve
from ray.serve.config import BackpressureConfig

from app.main import create_app
from app.observability.logs import configure_logging
from app.runtime.loading import load_engine
from app.settings import load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray.serve.config import AutoscalingContext
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from app.service import ServedEngine, Service
    from app.settings import Settings

log = logging.getLogger(__name__)

# What autoscaling reads: the gauge maskserve_queue_requests of each replica.
QUEUE_REQUESTS = "queue_requests"
# HAProxy sends to the replicas' own ports, and not a proxy of Ray's own.
BEHIND_HAPROXY = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
# Requests that a replica is given beyond those that it admits, for probes and for those that it refuses with 429.
BEYOND_ADMISSION = 64
# Requests that may wait in a proxy of Ray's own; beyond it, 429.
MOST_WAITING = 100
# Beyond the time of the longest request, until a replica that shuts down is killed.
CLOSING_SECONDS = 10.0
# Between the last answers and the end of a process that has failed.
FAILED_SECONDS = 2.0


class Replica:
    """One service in a process of Ray's."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """settings: those that take precedence over the environment, by their names in app/settings.py."""
        cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
        self.settings = load(settings)
        if not self.settings.threads and cores >= 1:
            # Else each replica would compute on all cores of its node.
            self.settings = self.settings.model_copy(update={"threads": int(cores)})
        configure_logging(self.settings)
        self.failed = asyncio.Event()
        self.started = False
        self.service: Service | None = None

    def load_engine(self) -> ServedEngine:
        """The engine, loaded on a thread of its own."""
        return load_engine(self.settings)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Ray calls it once, and starts the application's lifespan."""
        app = create_app(self.settings, self.load_engine, self.on_failure)
        service: Service = app.state.service
        self.service = service

        async def replica(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "lifespan":
                await app(scope, receive, partial(_send_for_ray, send))
                return

            async def send_when_ready(message: Message) -> None:
                if message["type"] == "lifespan.startup.complete":
                    message = await self.until_ready(message)
                await send(message)

            await app(scope, receive, send_when_ready)

        return replica

    async def until_ready(self, message: Message) -> Message:
        """The message once the model is loaded and warm, or the one that fails the start: Ray sends requests then."""
        service = self.running
        waits = [asyncio.ensure_future(event.wait()) for event in (service.ready, self.failed)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if service.failure is not None:
            return {
                "type": "lifespan.startup.failed",
                "message": f"{service.failure} The log has the reason.",
            }
        self.started = True
        log.info("maskserve: %s on %s is ready", service.engine.model.name, service.engine.device)
        return message

    def on_failure(self) -> None:
        """End the process, which Ray replaces, once what waits has been answered."""
        self.failed.set()
        if self.started:
            asyncio.get_running_loop().call_later(FAILED_SECONDS, os._exit, 1)

    @property
    def running(self) -> Service:
        """The service of this replica."""
        if self.service is None:
            raise RuntimeError("the application has not been built yet")
        return self.service

    async def check_health(self) -> None:
        """Ray replaces a replica whose check raises: that of /healthz, which does not depend on load."""
        if not self.running.is_alive():
            raise RuntimeError(self.running.failure or "the device has given no heartbeat")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `queue_policy` reads."""
        return {QUEUE_REQUESTS: float(self.running.admission.requests)}


async def _send_for_ray(send: Send, message: Message) -> None:
    """Send a message with the headers that fit Ray.

    It goes without X-Request-ID: Ray adds its own header, with the same id, which it gave to the request. And HAProxy
    is to keep no connection to the replica: while the process of a lost one ends, some of its connections are still
    open, and a request that is sent again would be lost again.
    """
    if message["type"] == "http.response.start":
        headers = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
        if BEHIND_HAPROXY:
            headers.append((b"connection", b"close"))
        message = {**message, "headers": headers}
    await send(message)


def queue_policy(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """So many replicas that each has `target_ongoing_requests` of the admitted requests; Ray applies the bounds."""
    in_flight = (context.aggregated_metrics or {}).get(QUEUE_REQUESTS, {})
    if not in_flight:
        return context.target_num_replicas, {}
    return sum(in_flight.values()) / context.config.target_ongoing_requests, {}


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application of a Serve configuration. Raises app.settings.SettingsError.

    arguments: settings by their names in app/settings.py; those that are not given come from the environment.
    """
    return bind(Replica, load(arguments), arguments)


def bind(replica: type[Replica], settings: Settings, arguments: Mapping[str, Any]) -> serve.Application:
    """A deployment whose limits follow from the settings.

    Args:
        replica: the class of each replica.
        settings: in effect.
        arguments: for each replica.
    """
    deployment = serve.deployment(
        serve.ingress()(replica),
        name="maskserve",
        # Above the service's own limit, so that the service refuses what is too much, with its own 429.
        max_ongoing_requests=settings.max_queue_requests + BEYOND_ADMISSION,
        max_queued_requests=MOST_WAITING,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1.0),
        graceful_shutdown_timeout_s=settings.request_timeout + CLOSING_SECONDS,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5.0,
        health_check_timeout_s=5.0,
    )
    return deployment.bind(arguments)
