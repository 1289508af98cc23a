"""The gauges of /metrics: the state of a service, read when Prometheus scrapes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.observability.metrics import PREFIX
from app.version import version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from app.service import Service


class ServiceCollector(Collector):
    """Reads the state of a service each time Prometheus scrapes it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """All gauges; those of the engine and the worker once the model is loaded."""
        service, admission = self._service, self._service.admission
        yield gauge(
            "ready", "1 while the service accepts requests, else 0.", service.not_ready_reason() is None
        )
        yield gauge("healthy", "1 while /healthz is green, else 0.", service.is_alive())
        yield gauge("queue_requests", "Requests in flight, from admission to answer.", admission.requests)
        yield gauge("queue_requests_limit", "Limit of queue_requests.", admission.max_requests)
        yield gauge("queue_pixels", "Pixels of their images, as sent.", admission.pixels)
        yield gauge("queue_pixels_limit", "Limit of queue_pixels.", admission.max_pixels)
        yield gauge(
            "queue_bytes", "Bytes of request bodies that arrive or wait to be decoded.", admission.bytes
        )
        yield gauge("queue_bytes_limit", "Limit of queue_bytes.", admission.max_bytes)
        decoders, unsent = service.decoders, service.unsent
        yield gauge("decoding_bytes", "Bytes that images take while they are decoded.", decoders.memory.used)
        yield gauge("decoding_bytes_limit", "Limit of decoding_bytes.", decoders.memory.limit)
        yield gauge("unsent_bytes", "Bytes of large answers that clients have not read yet.", unsent.bytes)
        yield gauge("unsent_bytes_limit", "Limit of unsent_bytes.", unsent.max_bytes)
        yield by_label("decoders_killed", "Decoder processes that were killed.", "reason", decoders.killed)
        yield gauge(
            "pixels_per_second",
            "Measured rate of the device, in pixels of its input; 0 before the first batch.",
            admission.pixels_per_second or 0.0,
        )
        yield by_label("shed", "Requests refused by admission.", "reason", admission.refused)
        engine, worker = service.engine_if_loaded, service.worker_if_started
        if engine is not None:
            labels = {
                "model": engine.model.name,
                "sha256": engine.model.sha256,
                "device": str(engine.device),
                "precision": engine.precision,
                "version": version(),
            }
            info = GaugeMetricFamily(
                f"{PREFIX}model_info", "Always 1; the labels describe the model.", labels=list(labels)
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
                "Seconds since the last heartbeat of the worker.",
                worker.status().heartbeat_age,
            )
            yield gauge(
                "batch_limit_images",
                "Current limit of images that run at the same time.",
                worker.budget.images,
            )
            yield by_label(
                "dropped", "Waiting images that were dropped before they ran.", "reason", worker.dropped
            )
            yield by_label(
                "worker_events", "Events of the worker, such as failed batches.", "event", worker.counts
            )


def gauge(name: str, meaning: str, value: float) -> Metric:
    """A gauge without labels.

    Args:
        name: without the prefix.
        meaning: for Prometheus' HELP line.
        value: at this moment.
    """
    return GaugeMetricFamily(f"{PREFIX}{name}", meaning, value=float(value))


def by_label(name: str, meaning: str, label: str, counts: Mapping[str, int]) -> Metric:
    """A counter with one label.

    Args:
        name: without the prefix.
        meaning: for Prometheus' HELP line.
        label: the name of the label.
        counts: a series for each key, which is the value of the label.
    """
    family = CounterMetricFamily(f"{PREFIX}{name}", meaning, labels=[label])
    for key, count in sorted(counts.items()):
        family.add_metric([key], count)
    return family
