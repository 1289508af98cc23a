"""What exists as long as the process: engine, worker, admission and thread pools, and their life cycle.

load → warm up → serve → begin to shut down → drain → stop. The event loop runs from the start, so probes are always
answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from app.batching.admission import Admission
from app.batching.batch import Segmenter
from app.batching.heartbeat import WorkerState
from app.batching.worker import Worker
from app.http.unsent import UnsentAnswers
from app.intake.decoders import Decoders
from app.intake.fetch import Fetcher, Hosts
from app.intake.uploads import json_bytes
from app.keys import Keys
from app.observability.metrics import Metrics
from app.problems import Draining, NotReady
from app.runtime.allocator import release_freed_memory
from app.runtime.loading import LOAD_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.batching.batch import Attempt
    from app.problems import Problem
    from app.settings import Settings
    from model.zoo.model_file import Model

log = logging.getLogger(__name__)
T = TypeVar("T")

# Retry-After while the service starts or has failed; gateways ask about as often.
RETRY_SECONDS = 5.0
# Time for the batch that still runs when the process must end, drained or not.
STOP_SECONDS = 5.0
# Time between checks of the device's heartbeat.
WATCH_SECONDS = 1.0
# From this many pixels in flight at the same time, the memory that they took (some 10 bytes each) is returned to the
# system once nothing is in flight. Below, it is kept: the forward pass needs it again, and fetching new pages takes
# longer.
LARGE_PIXELS = 8_000_000
LARGE_BYTES = 16 << 20
PATHS = ("/segment", "/model", "/healthz", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/")


class ServedEngine(Segmenter, Protocol):
    """What the service needs of an engine; model.inference.engine.Engine is one."""

    @property
    def model(self) -> Model:
        """The model's description, without its weights."""

    @property
    def device(self) -> object:
        """The device that it runs on; its str() is `cpu`, `cuda:0` …"""

    @property
    def precision(self) -> str:
        """Number format of the forward pass."""

    def device_memory(self) -> dict[str, int]:
        """Bytes of the GPU's memory by kind; empty for a CPU."""


class Service:
    """One model on one device, and everything that requests share. Belongs to the event loop's thread."""

    def __init__(
        self, settings: Settings, load: Callable[[], ServedEngine], on_failure: Callable[[], None]
    ) -> None:
        """Start nothing yet.

        Args:
            settings: in effect.
            load: makes the engine, on a thread of its own.
            on_failure: called once if the process should end.

        Raises:
            app.keys.KeysError: the file of API keys cannot be used.
        """
        self.settings = settings
        self.admission = Admission(
            max_requests=settings.max_queue_requests,
            max_pixels=settings.max_queue_pixels,
            max_bytes=settings.max_queue_bytes,
        )
        self.keys = Keys.load(settings.api_keys_file) if settings.api_keys_file is not None else None
        hosts = Hosts(settings.url_hosts)
        self.fetcher = (
            Fetcher(hosts, max_bytes=settings.max_upload_bytes, seconds=settings.body_timeout)
            if hosts
            else None
        )
        self.metrics = Metrics(PATHS, settings.body_timeout + settings.request_timeout)
        self.decoders = Decoders(
            settings.decode_processes,
            max_bytes=settings.max_upload_bytes,
            max_pixels=settings.max_image_pixels,
            max_text=json_bytes(settings.max_upload_bytes),
        )
        self.unsent = UnsentAnswers(settings.max_queue_bytes, settings.send_timeout)
        self.encoders = ThreadPoolExecutor(settings.encode_threads, "maskserve-encode")
        # Why no request will ever be answered again, if so.
        self.failure: str | None = None
        # A signal has come; requests are still admitted.
        self.shutting_down = False
        # No more requests are admitted.
        self.draining = False
        # The device has not given a heartbeat for too long.
        self.stalled = False
        # Set once the engine is loaded and warm.
        self.ready = asyncio.Event()
        self._load, self._on_failure = load, on_failure
        self._engine: ServedEngine | None = None
        self._worker: Worker | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the decoder processes, then to load the model, and return."""
        self.decoders.start()
        self._tasks = [asyncio.create_task(self._start()), asyncio.create_task(self._watch())]

    async def _start(self) -> None:
        try:
            self._engine = await run_on_daemon_thread(self._load)
        except Exception as error:
            is_unexpected = not isinstance(error, LOAD_ERRORS)
            log.critical("the model could not be loaded: %s", error, exc_info=is_unexpected)
            self._fail("The model could not be loaded.")
            return
        self._worker = Worker(
            self._engine,
            self.admission,
            max_batch_size=self.settings.max_batch_size,
            max_batch_pixels=self.settings.max_batch_pixels,
            on_fatal=self._on_fatal,
            on_attempt=self._on_attempt,
        )
        try:
            warm = self._worker.start()
        except RuntimeError as error:
            # The system has no thread left.
            log.critical("the worker could not be started: %s", error)
            self._fail("The worker could not be started.")
            return
        with contextlib.suppress(Exception):
            # The worker has logged an error of it, and called _on_fatal.
            await warm
            self.ready.set()

    async def _watch(self) -> None:
        while self.failure is None:
            await asyncio.sleep(WATCH_SECONDS)
            self.check_heartbeat()
            admission, unsent = self.admission, self.unsent
            peak_bytes = max(admission.peak_bytes, unsent.peak_bytes)
            large = admission.peak_pixels > LARGE_PIXELS or peak_bytes > LARGE_BYTES
            if large and not (admission.requests or admission.bytes or unsent.bytes):
                admission.peak_pixels = admission.peak_bytes = unsent.peak_bytes = 0
                await asyncio.to_thread(release_freed_memory)

    def check_heartbeat(self) -> None:
        """Act on a device that has stalled: fail the requests that wait for it, and in the end the process.

        /healthz is red meanwhile, and the supervisor may end the process sooner. If the batch ends after all, the
        service is healthy again.
        """
        if self._worker is None or self.failure is not None:
            return
        status = self._worker.status()
        if status.state is WorkerState.FAILED:
            # The worker says so itself, by _on_fatal.
            return
        timeout = self.settings.heartbeat_timeout
        if status.is_alive(timeout):
            if self.stalled:
                log.warning("the device responds again")
                self.stalled = False
            return
        if not self.stalled:
            self.stalled = True
            log.critical(
                "no heartbeat from %s for %.0f seconds (MASKSERVE_HEARTBEAT_TIMEOUT)",
                self.engine.device,
                status.heartbeat_age,
            )
        self._worker.fail_pending(self._not_responding)
        if status.heartbeat_age >= 2 * timeout:
            self._fail("The device does not respond.")

    @staticmethod
    def _not_responding() -> NotReady:
        return NotReady("The device does not respond; another replica may answer.", retry_after=RETRY_SECONDS)

    def _on_attempt(self, attempt: Attempt) -> None:
        self.metrics.record_attempt(attempt, self.engine.input_size)

    def _on_fatal(self, error: BaseException) -> None:
        log.critical("%s failed on %s: %s", self.settings.model, self.engine.device, error)
        self._fail("The device has failed.")

    def _fail(self, reason: str) -> None:
        if self.failure is None:
            self.failure = reason
            self._on_failure()

    def raise_if_overloaded(self) -> None:
        """Raise what any request to /segment would be refused with now, whatever its image."""
        if problem := self.unavailable_reason():
            raise problem
        self.admission.raise_if_overloaded()
        wait = self.decoders.expected_wait()
        self.admission.raise_unless_decoded_within(self.settings.request_timeout, wait)

    def unavailable_reason(self) -> Problem | None:
        """Why no request can be admitted now, or None."""
        if self.failure is not None:
            return NotReady(f"{self.failure} The service is being restarted.", retry_after=RETRY_SECONDS)
        if self.draining:
            return Draining()
        if not self.ready.is_set():
            return NotReady("The model is still loading.", retry_after=RETRY_SECONDS)
        return None if self.is_alive() else self._not_responding()

    def not_ready_reason(self) -> Problem | None:
        """Why /readyz is red, or None: the service is unavailable, or about to shut down."""
        if self.shutting_down and not self.draining:
            return Draining("The service is about to shut down.")
        return self.unavailable_reason()

    def is_alive(self) -> bool:
        """Whether /healthz is green: False if the process should be restarted. It does not depend on load."""
        if self.failure is not None:
            return False
        return self._worker is None or self._worker.status().is_alive(self.settings.heartbeat_timeout)

    @property
    def engine_if_loaded(self) -> ServedEngine | None:
        """The engine, or None while it loads."""
        return self._engine

    @property
    def worker_if_started(self) -> Worker | None:
        """The worker, or None while the engine loads."""
        return self._worker

    @property
    def engine(self) -> ServedEngine:
        """The engine. Raises NotReady while it loads."""
        if self._engine is None:
            raise self.unavailable_reason() or NotReady(retry_after=RETRY_SECONDS)
        return self._engine

    @property
    def worker(self) -> Worker:
        """The worker that runs the engine. Raises NotReady while the engine loads."""
        if self._worker is None:
            raise self.unavailable_reason() or NotReady(retry_after=RETRY_SECONDS)
        return self._worker

    async def begin_shutdown(self) -> None:
        """Turn /readyz red, and return once load balancers have had time to notice."""
        self.shutting_down = True
        if self.ready.is_set() and self.failure is None:
            await asyncio.sleep(self.settings.drain_delay)

    async def drain(self) -> None:
        """Admit no more requests; return once every admitted one has its answer."""
        self.draining = True
        if self._worker is not None and self._worker.status().state is WorkerState.READY:
            await self._worker.drain()

    async def stop(self) -> None:
        """End the threads that are idle; the process is about to end."""
        self.draining = True
        for task in self._tasks:
            task.cancel()
        if self._worker is not None and self._worker.status().state is not WorkerState.STARTING:
            # A timeout means that a device call hangs; its thread is a daemon.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await self._worker.stop()
        await self.decoders.stop()
        self.encoders.shutdown(wait=False, cancel_futures=True)


async def run_on_daemon_thread(function: Callable[[], T]) -> T:
    """The function's result. Unlike a pool's thread, this one does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        # It may have been cancelled meanwhile.
        if future.done():
            return
        if error is None:
            future.set_result(cast("T", result))
        else:
            future.set_exception(error)

    def run() -> None:
        try:
            result, error = function(), None
        except Exception as raised:  # noqa: BLE001 - the caller gets it from the future
            result, error = None, raised
        # If the loop is closed, the process is ending and nothing waits for the result.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=run, name="maskserve-load", daemon=True).start()
    return await future
