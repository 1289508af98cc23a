"""The counters and histograms of /metrics, in Prometheus' conventions. The gauges are in app/api/gauges.py.

Names begin with `maskserve_`; docs/operations.md explains each. Each Service has a registry of its own, so that tests
can create any number of services.
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

from app.batching.queue import SegmentResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from app.batching.batch import Attempt

PREFIX = "maskserve_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STAGES = ("read", "fetch", "decode", "queue", "forward", "encode", "total")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
# 256 bytes to 64 MiB.
BYTES = tuple(float(1 << power) for power in range(8, 27, 2))
COUNTS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
METHODS = frozenset(("GET", "HEAD", "POST", "OPTIONS"))
BATCHES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class Metrics:
    """The counters and histograms, and the registry that holds all metrics of one service."""

    def __init__(self, paths: tuple[str, ...], max_seconds: float) -> None:
        """paths: those that get a label of their own. max_seconds: of a request, the last bucket of durations."""
        # The time when each series was created would add half as many samples again, which nothing uses.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._paths = frozenset(paths)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        seconds = (*(bound for bound in SECONDS if bound < max_seconds), max_seconds)
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
        # Looking one up by its label takes as long as adding to it.
        self._stages = {stage: self.stages.labels(stage) for stage in STAGES}
        self._pixels, self._padding = (self.input_pixels.labels(kind) for kind in ("image", "padding"))

    def record_request(
        self, method: str, path: str, status: int, reason: str, stages: Mapping[str, float]
    ) -> None:
        """Record a request that has been answered, or whose client has gone.

        Args:
            method: as sent; unusual ones count as "other".
            path: as sent; what is no route counts as "other".
            status: of the answer.
            reason: the problem's slug, or empty.
            stages: seconds of each.
        """
        known = path if path in self._paths else "other"
        self.requests.labels(method if method in METHODS else "other", known, str(status), reason).inc()
        if path == "/segment":
            for stage, seconds in stages.items():
                self._stages[stage].observe(seconds)

    def record_attempt(self, attempt: Attempt, input_size: Callable[[int, int], tuple[int, int]]) -> None:
        """Record an attempt at a batch. input_size: the engine's."""
        self.device_seconds.inc(attempt.seconds)
        passed = [(entry, answer) for entry, answer in attempt.answers if isinstance(answer, SegmentResult)]
        if passed:
            self.batches.observe(len(passed))
        for entry, segmented in passed:
            height, width = input_size(*entry.image.shape[:2])
            used, padded = height * width, entry.bucket[0] * entry.bucket[1]
            self._pixels.inc(used)
            self._padding.inc(padded - used)
            self.instances.observe(len(segmented.instances))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
