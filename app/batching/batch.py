"""One batch through the engine, so that no bad image hurts its neighbours. Knows no threads and no loop."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from app.batching.queue import SegmentResult
from app.problems import DeadlineExceeded, ImageTooLarge, Problem
from model.errors import DeviceFailed, OutOfDeviceMemory

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from app.batching.queue import Clock, Entry, Partition
    from model.instances import Instances, Options

log = logging.getLogger(__name__)


class Segmenter(Protocol):
    """What the service needs of the engine to run batches; model.inference.engine.Engine is one."""

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of this size is scaled to."""

    def padded_shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the network input that holds it then: the rest is padding."""

    def segment(self, images: Sequence[NDArray[np.uint8]], options: Sequence[Options]) -> list[Instances]:
        """One batch of images [H, W, 3] with equal padded_shape. Raises OutOfDeviceMemory, DeviceFailed."""

    def warm_up(self) -> None:
        """Run once what is slow the first time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one attempt at a group of entries has brought."""

    answers: Sequence[tuple[Entry, SegmentResult | Problem]]  # none if the attempt failed and is split
    seconds: float  # of device time
    out_of_memory: bool = False  # what the attempt failed of

    @property
    def pixels(self) -> int:
        """Pixels of the images answered, as they were sent."""
        return sum(entry.pixels for entry, _ in self.answers)


def forward(
    engine: Segmenter,
    group: Sequence[Entry],
    *,
    drop_dead: Callable[[Sequence[Entry]], Partition],
    clock: Clock,
    counts: Counter[str],
    again: bool = False,
) -> Iterator[Outcome]:
    """Run a group of one bucket, and yield what every attempt brought, as soon as it is known.

    A failing group is halved until the culprit stands alone: one culprit among n costs 2·log2(n) attempts
    more, and a neighbour has its answer as soon as its half passes. An image for which alone there is not
    enough memory is tried once more (`again`), now that the engine has let go of what it kept for later.
    `drop_dead` drops what died meanwhile.
    counts: "batches" and "images" that passed, "splits", attempts that ran "out-of-memory", and images that
    "failed" or were "too-large" alone.
    Raises DeviceFailed, and whatever is no Exception, with the rest of the group unanswered.
    """
    begun = clock()
    out_of_memory = False
    answers: list[tuple[Entry, SegmentResult | Problem]] = []
    try:
        found = engine.segment([entry.image for entry in group], [entry.options for entry in group])
        seconds = clock() - begun
        for entry, instances in zip(group, found, strict=True):
            segmented = SegmentResult(instances, begun - entry.enqueued_at, seconds, len(group))
            answers.append((entry, segmented))
        counts["batches"] += 1
        counts["images"] += len(group)
    except DeviceFailed:
        raise
    except Exception as error:
        seconds = clock() - begun
        answers = []
        out_of_memory = isinstance(error, OutOfDeviceMemory | MemoryError)
        counts["out-of-memory"] += out_of_memory
        if len(group) > 1:
            log.warning("A batch of %d failed (%r); its halves are tried apart.", len(group), error)
        elif out_of_memory and not again:
            log.warning("One image did not fit into the device's free memory (%r); once more.", error)
        else:
            log.exception("The model failed on one image.")
            answers = [(group[0], _problem(error, counts))]
    yield Outcome(answers, seconds, out_of_memory)
    if answers:
        return
    # Out here the error is gone, and with its traceback what the failed attempt had allocated on the device.
    alone = len(group) == 1
    counts["splits"] += not alone
    middle = len(group) // 2
    for part in [group] if alone else [group[:middle], group[middle:]]:
        partition = drop_dead(part)
        if partition.expired:
            yield Outcome([(entry, too_late()) for entry in partition.expired], 0.0)
        if partition.live:
            yield from forward(
                engine, partition.live, drop_dead=drop_dead, clock=clock, counts=counts, again=alone
            )


def _problem(error: Exception, counts: Counter[str]) -> Problem:
    if isinstance(error, OutOfDeviceMemory | MemoryError):
        counts["too-large"] += 1
        return ImageTooLarge("The image does not fit into the device's memory; send a smaller one.")
    counts["failed"] += 1
    problem = Problem()
    # Without the traceback, which the log has: it would hold the images until the garbage collector comes.
    problem.__cause__ = error.with_traceback(None)
    return problem


def too_late() -> DeadlineExceeded:
    """The answer to a request whose deadline passed before its instances were found."""
    return DeadlineExceeded("The instances were not found before the request's deadline.")
