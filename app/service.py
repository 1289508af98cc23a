"""What lives as long as the process: engine, worker, admission, thread pools; and the stages of its life.

load → warm up → serve → leave → drain. The event loop runs from the first moment, so that probes have answers.
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
from app.batching.heartbeat import State
from app.batching.worker import Worker
from app.intake.fetch import Fetcher, Hosts
from app.keys import Keys
from app.observability.metrics import Metrics
from app.problems import Draining, NotReady
from app.runtime.allocator import release_freed_memory
from app.runtime.loading import LOAD_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.batching.batch import Outcome
    from app.problems import Problem
    from app.settings import Settings
    from model.zoo.model_file import Model

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_SECONDS = 5.0  # how soon to ask a service again that is starting; gateways poll about as often
STOP_SECONDS = 5.0  # for the batch that runs when the process must end, drained or not
WATCH_SECONDS = 1.0  # how often it is asked whether the device is alive
# In flight at once: what they took, some 10 bytes each, goes back to the system as soon as nothing is in flight. Below
# that it is kept: the forward pass needs it again, and new pages cost more than it takes to wait for them.
LARGE_PIXELS = 8_000_000
PATHS = ("/segment", "/model", "/healthz", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/")


class Segmenting(Segmenter, Protocol):
    """What the service needs of model.inference.engine.Engine."""

    @property
    def model(self) -> Model:
        """What is known of the model besides its weights."""

    @property
    def device(self) -> object:
        """Where it runs; str() of it is `cpu`, `cuda:0` …"""

    @property
    def precision(self) -> str:
        """Number format of the forward pass."""

    @property
    def batches(self) -> bool:
        """Whether the images of a batch run together, or one after the other."""

    def device_memory(self) -> dict[str, int]:
        """Bytes of the GPU's memory by kind; empty for a CPU."""


class Service:
    """One model on one device, and everything that requests share. Belongs to the event loop's thread."""

    def __init__(
        self, settings: Settings, load: Callable[[], Segmenting], on_failure: Callable[[], None]
    ) -> None:
        """load: makes the engine, on its own thread. on_failure: called once if the process should end.

        Raises app.keys.KeysError.
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
        self.decoders = ThreadPoolExecutor(settings.decode_threads, "maskserve-decode")
        self.encoders = ThreadPoolExecutor(settings.encode_threads, "maskserve-encode")
        self.failure: str | None = None  # why nothing will ever be answered again
        self.leaving = False  # a signal has come; requests are still taken
        self.draining = False  # no more requests are taken
        self.hanging = False  # the device gives no sign of life
        self.ready = asyncio.Event()  # loaded and warm
        self._load = load
        self._on_failure = on_failure
        self._engine: Segmenting | None = None
        self._worker: Worker | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to load the model, and return."""
        self._tasks = [asyncio.create_task(self._start()), asyncio.create_task(self._watch())]

    async def _start(self) -> None:
        try:
            self._engine = await on_daemon_thread(self._load)
        except Exception as error:
            unexpected = not isinstance(error, LOAD_ERRORS)
            log.critical("the model could not be loaded: %s", error, exc_info=unexpected)
            self._fail("The model could not be loaded.")
            return
        self._worker = Worker(
            self._engine,
            self.admission,
            # Where a batch takes as long as its images one by one, nobody should wait for the others' answers.
            max_batch_size=self.settings.max_batch_size if self._engine.batches else 1,
            max_batch_pixels=self.settings.max_batch_pixels,
            on_fatal=self._on_fatal,
            on_outcome=self._on_outcome,
        )
        with contextlib.suppress(Exception):  # the worker has logged it, and told _on_fatal
            await self._worker.start()
            self.ready.set()

    async def _watch(self) -> None:
        while self.failure is None:
            await asyncio.sleep(WATCH_SECONDS)
            self.check_heartbeat()
            if self.admission.requests == 0 and self.admission.largest > LARGE_PIXELS:
                self.admission.largest = 0
                await asyncio.to_thread(release_freed_memory)

    def check_heartbeat(self) -> None:
        """Act on a device that gives no sign of life: those who wait are sent elsewhere, at last the process ends.

        /healthz is red meanwhile. Whoever supervises the process may end it sooner; a batch that comes to its end
        after all makes everything good again.
        """
        if self._worker is None or self.failure is not None:
            return
        status, limit = self._worker.status(), self.settings.heartbeat_timeout
        if status.is_alive(limit):
            if self.hanging:
                log.warning("the device gives signs of life again")
                self.hanging = False
            return
        if not self.hanging:
            self.hanging = True
            log.critical(
                "no sign of life from %s for %.0f seconds (MASKSERVE_HEARTBEAT_TIMEOUT)",
                self.engine.device,
                status.heartbeat_age,
            )
        self._worker.abandon(self._silent)
        if status.heartbeat_age >= 2 * limit:
            self._fail("The device gives no sign of life.")

    @staticmethod
    def _silent() -> NotReady:
        return NotReady(
            "The device gives no sign of life; another replica may answer.", retry_after=RETRY_SECONDS
        )

    def _on_outcome(self, outcome: Outcome) -> None:
        self.metrics.outcome(outcome, self.engine.input_size)

    def _on_fatal(self, error: BaseException) -> None:
        log.critical("%s failed on %s: %s", self.settings.model, self.engine.device, error)
        self._fail("The device has failed.")

    def _fail(self, reason: str) -> None:
        if self.failure is None:
            self.failure = reason
            self._on_failure()

    def raise_if_overloaded(self) -> None:
        """Raise at once what a request for instances would be refused with, whatever its image."""
        if trouble := self.unavailable_reason():
            raise trouble
        self.admission.raise_if_overloaded()

    def unavailable_reason(self) -> Problem | None:
        """Why no request can be taken now, or None: what requests are told before they are read."""
        if self.failure is not None:
            return NotReady(f"{self.failure} The service is being restarted.", retry_after=RETRY_SECONDS)
        if self.draining:
            return Draining()
        if not self.ready.is_set():
            return NotReady("The model is still loading.", retry_after=RETRY_SECONDS)
        return None if self.is_alive() else self._silent()

    def not_ready_reason(self) -> Problem | None:
        """What /readyz says: the same, and that the service is about to leave."""
        if self.leaving and not self.draining:
            return Draining("The service is about to shut down.")
        return self.unavailable_reason()

    def is_alive(self) -> bool:
        """Whether the process is worth keeping; what `/healthz` says. It does not depend on load."""
        if self.failure is not None:
            return False
        return self._worker is None or self._worker.status().is_alive(self.settings.heartbeat_timeout)

    @property
    def loaded(self) -> Segmenting | None:
        """The engine, if there is one yet."""
        return self._engine

    @property
    def running(self) -> Worker | None:
        """The worker, if there is one yet."""
        return self._worker

    @property
    def engine(self) -> Segmenting:
        """The engine. Raises NotReady while it loads."""
        if self._engine is None:
            raise self.unavailable_reason() or NotReady(retry_after=RETRY_SECONDS)
        return self._engine

    @property
    def worker(self) -> Worker:
        """The worker that runs the engine. Raises NotReady while it loads."""
        if self._worker is None:
            raise self.unavailable_reason() or NotReady(retry_after=RETRY_SECONDS)
        return self._worker

    async def begin_shutdown(self) -> None:
        """Tell load balancers by /readyz that this replica goes, and return once they have had time to notice."""
        self.leaving = True
        if self.ready.is_set() and self.failure is None:
            await asyncio.sleep(self.settings.drain_delay)

    async def drain(self) -> None:
        """Take nothing new; return once every request that was admitted has its answer."""
        self.draining = True
        if self._worker is not None and self._worker.status().state is State.READY:
            await self._worker.drain()

    async def stop(self) -> None:
        """End threads that are idle; the process is about to end."""
        self.draining = True
        for task in self._tasks:
            task.cancel()
        if self._worker is not None and self._worker.status().state is not State.STARTING:
            with contextlib.suppress(TimeoutError):  # a device call that hangs; its thread is a daemon
                async with asyncio.timeout(STOP_SECONDS):
                    await self._worker.stop()
        self.decoders.shutdown(wait=False, cancel_futures=True)
        self.encoders.shutdown(wait=False, cancel_futures=True)


async def on_daemon_thread(function: Callable[[], T]) -> T:
    """The function's result; unlike a pool's, the thread does not keep a process alive that should end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        if future.done():  # cancelled meanwhile
            return
        if error is None:
            future.set_result(cast("T", result))
        else:
            future.set_exception(error)

    def run() -> None:
        try:
            result, error = function(), None
        except Exception as raised:  # noqa: BLE001 - handed to whoever awaits the future
            result, error = None, raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends, and nobody waits
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=run, name="maskserve-load", daemon=True).start()
    return await future
