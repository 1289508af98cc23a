"""Run one batch through the engine so that no bad image fails its neighbours. Knows no threads or event loops."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from app.batching.queue import SegmentResult
from app.problems import DeadlineExceeded, ImageTooLarge, Problem
from model.errors import DeviceFailed, OutOfDeviceMemory

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    from numpy.typing import NDArray

    from app.batching.queue import Clock, Entry, Partition
    from model.instances import Instances, Options

log = logging.getLogger(__name__)


class Segmenter(Protocol):
    """What the worker needs of an engine; model.inference.engine.Engine is one."""

    @property
    def batches(self) -> bool:
        """Whether the images of a batch run together, as on a GPU; else each has a pass of its own."""

    @property
    def cores(self) -> int:
        """Of a CPU, which passes that run at once may share; 1 where one pass has all there is."""

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of this size is scaled to."""

    def padded_shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the network input that then holds it; the rest is padding."""

    def segment(
        self, images: Sequence[NDArray[np.uint8]], options: Sequence[Options], *, cores: int | None = None
    ) -> list[Instances]:
        """One batch of images [H, W, 3] with equal padded_shape. Raises OutOfDeviceMemory, DeviceFailed.

        Args:
            images: uint8, RGB.
            options: of each image.
            cores: of a CPU that compute it; None for all.
        """

    def warm_up(self) -> None:
        """Run once what is slow the first time."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one attempt to run some entries together has led to."""

    # Empty if the attempt failed and is repeated with fewer entries.
    answers: Sequence[tuple[Entry, SegmentResult | Problem]]
    # Time on the device, multiplied by the share of the device that the attempt had.
    seconds: float
    # Whether this is why it failed.
    out_of_memory: bool = False

    @property
    def input_pixels(self) -> int:
        """Pixels of their padded network inputs."""
        return sum(entry.bucket[0] * entry.bucket[1] for entry, _ in self.answers)


def run_batch(
    segment: Callable[[Sequence[NDArray[np.uint8]], Sequence[Options]], list[Instances]],
    entries: Sequence[Entry],
    *,
    drop_dead: Callable[[Sequence[Entry]], Partition],
    alone: Callable[[], AbstractContextManager[None]],
    clock: Clock,
    counts: Counter[str],
    share: float = 1.0,
    is_retry: bool = False,
) -> Iterator[Attempt]:
    """Run entries of one bucket, and yield what each attempt has led to as soon as it ends.

    A batch that fails is split in halves until the bad image is alone. Among n images that costs 2·log2(n) attempts
    more, and the others have their answers as soon as their half succeeds. An image that alone does not fit into
    memory is tried a second time, because the engine has freed its caches by then, and nothing runs beside it.

    Args:
        segment: Segmenter.segment, with the cores that it has.
        entries: at least one.
        drop_dead: splits off the entries that have been cancelled or have expired since.
        alone: holds what else runs on the device while an image is tried for the second time.
        clock: in seconds.
        counts: of "batches" and "images" that succeeded, "splits", attempts that ran "out-of-memory", and images that
            alone "failed" or were "too-large"; added to here.
        share: of the device that the batch has, while others have the rest.
        is_retry: whether this is the second attempt at one image.

    Raises:
        DeviceFailed: the device is lost; the remaining entries are not answered.
        BaseException: likewise, if it is not an Exception.
    """
    start = clock()
    out_of_memory = False
    answers: list[tuple[Entry, SegmentResult | Problem]] = []
    try:
        results = segment([entry.image for entry in entries], [entry.options for entry in entries])
        seconds = clock() - start
        for entry, instances in zip(entries, results, strict=True):
            answers.append(
                (entry, SegmentResult(instances, start - entry.enqueued_at, seconds, len(entries)))
            )
        counts["batches"] += 1
        counts["images"] += len(entries)
    except DeviceFailed:
        raise
    except Exception as error:
        seconds = clock() - start
        answers = []
        out_of_memory = isinstance(error, OutOfDeviceMemory | MemoryError)
        counts["out-of-memory"] += out_of_memory
        if len(entries) > 1:
            log.warning("A batch of %d failed (%r); trying its halves separately.", len(entries), error)
        elif out_of_memory and not is_retry:
            log.warning("One image did not fit into the device's free memory (%r); trying once more.", error)
        else:
            log.exception("The model failed on one image.")
            answers = [(entries[0], _problem_of_one_image(error, counts))]
    yield Attempt(answers, seconds * share, out_of_memory)
    if answers:
        return
    # Outside of the except clause the error is gone, and with its traceback the device memory of the failed attempt.
    is_single = len(entries) == 1
    counts["splits"] += not is_single
    middle = len(entries) // 2
    for part in [entries] if is_single else [entries[:middle], entries[middle:]]:
        with alone() if is_single else nullcontext():
            partition = drop_dead(part)
            if partition.expired:
                yield Attempt([(entry, deadline_exceeded()) for entry in partition.expired], 0.0)
            if partition.live:
                yield from run_batch(
                    segment,
                    partition.live,
                    drop_dead=drop_dead,
                    alone=alone,
                    clock=clock,
                    counts=counts,
                    share=share,
                    is_retry=is_single,
                )


def _problem_of_one_image(error: Exception, counts: Counter[str]) -> Problem:
    if isinstance(error, OutOfDeviceMemory | MemoryError):
        counts["too-large"] += 1
        return ImageTooLarge("The image does not fit into the device's memory; send a smaller one.")
    counts["failed"] += 1
    problem = Problem()
    # Without its traceback, which is in the log and would keep the images alive until the next garbage collection.
    problem.__cause__ = error.with_traceback(None)
    return problem


def deadline_exceeded() -> DeadlineExceeded:
    """The answer to a request whose deadline passed before its instances were found."""
    return DeadlineExceeded("The instances were not found before the request's deadline.")
