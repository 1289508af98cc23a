"""What /metrics tells, in Prometheus' conventions: counted where things are decided, read off where they are kept.

Names begin with `maskserve_`; docs/operations.md explains each. A registry belongs to one Service, so that tests can
have as many as they like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.batching.queue import SegmentResult
from app.version import version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from app.batching.batch import Outcome
    from app.service import Service

PREFIX = "maskserve_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STAGES = ("read", "fetch", "decode", "queue", "forward", "encode", "total")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
BYTES = tuple(float(1 << power) for power in range(8, 27, 2))  # 256 bytes to 64 MiB
COUNTS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
METHODS = frozenset(("GET", "HEAD", "POST", "OPTIONS"))
BATCHES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class Metrics:
    """The counters and histograms that are written to, and the registry that holds all."""

    def __init__(self, paths: tuple[str, ...], most_seconds: float) -> None:
        """paths: those that get a label of their own. most_seconds: that an exchange may take, the top bucket."""
        # When each series began: half as many samples again, for nobody.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._paths = frozenset(paths)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        seconds = (*(bound for bound in SECONDS if bound < most_seconds), most_seconds)
        self.requests = Counter(
            "maskserve_requests",
            "HTTP requests answered; reason is ok, client-gone, or the slug of the problem.",
            ("method", "path", "status", "reason"),
            registry=self.registry,
        )
        self.stages = Histogram(
            "maskserve_stage_seconds",
            "Seconds that each stage of a request to /segment took.",
            ("stage",),
            buckets=seconds,
            registry=self.registry,
        )
        self.response_bytes = Histogram(
            "maskserve_response_bytes",
            "Bytes of the bodies that answer /segment.",
            buckets=BYTES,
            registry=self.registry,
        )
        self.instances = Histogram(
            "maskserve_instances", "Instances found in an image.", buckets=COUNTS, registry=self.registry
        )
        self.batches = Histogram(
            "maskserve_batch_images", "Images that ran together.", buckets=BATCHES, registry=self.registry
        )
        self.input_pixels = Counter(
            "maskserve_input_pixels",
            "Pixels that went through the network: kind is image or padding.",
            ("kind",),
            registry=self.registry,
        )
        self.device_seconds = Counter(
            "maskserve_device_seconds",
            "Seconds that the device was busy with batches, failed ones included.",
            registry=self.registry,
        )
        for stage in STAGES:
            self.stages.labels(stage)

    def exchange(self, method: str, path: str, status: int, reason: str, stages: Mapping[str, float]) -> None:
        """One request has been answered, or its client has gone."""
        known = path if path in self._paths else "other"
        self.requests.labels(method if method in METHODS else "other", known, str(status), reason).inc()
        if path == "/segment":
            for stage, seconds in stages.items():
                self.stages.labels(stage).observe(seconds)

    def outcome(self, outcome: Outcome, input_size: Callable[[int, int], tuple[int, int]]) -> None:
        """An attempt at a batch has ended. input_size: of the engine."""
        self.device_seconds.inc(outcome.seconds)
        passed = [(entry, answer) for entry, answer in outcome.answers if isinstance(answer, SegmentResult)]
        if passed:
            self.batches.observe(len(passed))
        for entry, segmented in passed:
            height, width = input_size(*entry.image.shape[:2])
            used, padded = height * width, entry.bucket[0] * entry.bucket[1]
            self.input_pixels.labels("image").inc(used)
            self.input_pixels.labels("padding").inc(padded - used)
            self.instances.observe(len(segmented.instances))

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class Readings(Collector):
    """What others keep, read off when it is asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """All of them; those of the worker once there is one."""
        service, admission = self._service, self._service.admission
        yield gauge("ready", "1 while requests are taken, else 0.", service.not_ready_reason() is None)
        yield gauge("healthy", "1 while /healthz is green, else 0.", service.is_alive())
        yield gauge("queue_requests", "Requests in flight, from admission to answer.", admission.requests)
        yield gauge("queue_requests_limit", "The most that there may be.", admission.max_requests)
        yield gauge("queue_pixels", "Pixels of their images, as sent.", admission.pixels)
        yield gauge("queue_pixels_limit", "The most that there may be.", admission.max_pixels)
        yield gauge("queue_bytes", "Bytes of bodies that arrive or wait to be decoded.", admission.bytes)
        yield gauge("queue_bytes_limit", "The most that there may be.", admission.max_bytes)
        yield gauge(
            "pixels_per_second",
            "Measured rate of the device; 0 at first.",
            admission.pixels_per_second or 0.0,
        )
        yield by_label("shed", "Requests refused at the door.", "reason", admission.refused)
        engine, worker = service.loaded, service.running
        if engine is not None:
            labels = {
                "model": engine.model.name,
                "sha256": engine.model.sha256,
                "device": str(engine.device),
                "precision": engine.precision,
                "version": version(),
            }
            info = GaugeMetricFamily(
                f"{PREFIX}model_info", "1; its labels say what answers.", labels=list(labels)
            )
            info.add_metric(list(labels.values()), 1)
            yield info
            memory = GaugeMetricFamily(
                f"{PREFIX}device_memory_bytes", "Memory of the GPU, by kind.", labels=["kind"]
            )
            for kind, count in engine.device_memory().items():
                memory.add_metric([kind], count)
            yield memory
        if worker is not None:
            waiting, pixels = worker.waiting
            yield gauge("waiting_requests", "Decoded images that wait for the device.", waiting)
            yield gauge("waiting_pixels", "Their pixels, as sent.", pixels)
            yield gauge(
                "heartbeat_age_seconds",
                "Since the device's last sign of life.",
                worker.status().heartbeat_age,
            )
            yield gauge("batch_limit_images", "Images that may run together now.", worker.budget.images)
            yield by_label("dropped", "Waiting images that never ran.", "reason", worker.dropped)
            yield by_label("worker_events", "What became of attempts at batches.", "event", worker.counts)


def gauge(name: str, meaning: str, value: float) -> Metric:
    """One number that goes up and down."""
    return GaugeMetricFamily(f"{PREFIX}{name}", meaning, value=float(value))


def by_label(name: str, meaning: str, label: str, counts: Mapping[str, int]) -> Metric:
    """One counter for each key."""
    family = CounterMetricFamily(f"{PREFIX}{name}", meaning, labels=[label])
    for key, count in sorted(counts.items()):
        family.add_metric([key], count)
    return family
