"""Feature extraction as CUDA graphs: its two hundred kernels launched at once, for each shape of input."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from model.inference.features import FeatureMaps

# Shapes that are recorded. Each keeps its input and its maps; all share the memory of what lies between.
MAX_RECORDINGS = 32
# After so many batches a recording that none of them used makes room for another shape.
IDLE_BATCHES = 256

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Recording:
    graph: Any
    inputs: Tensor
    maps: FeatureMaps
    # Which batch used it last.
    used: int


class CudaGraphCache:
    """A feature extractor whose launches are recorded the first time that a shape is seen, and replayed from then on.

    What a call returns is overwritten by the next call. Calls come with the device as the current one.
    """

    def __init__(self, extract: Callable[[Tensor], FeatureMaps]) -> None:
        self._extract = extract
        self._recordings: dict[tuple[int, ...], _Recording] = {}
        # Shapes that could not be recorded.
        self._refused: set[tuple[int, ...]] = set()
        self._batches = 0
        # What is recorded runs on one stream, because the recordings share one pool of memory.
        self._stream: Any = None
        self._pool: Any = None

    def __call__(self, images: Tensor) -> FeatureMaps:
        """images: [B, 3, H, W], channels last. Runs as it is where there is no recording and no room for one."""
        shape = tuple(images.shape)
        self._batches += 1
        recording = self._recordings.get(shape)
        if recording is None:
            if shape in self._refused or not self._has_room():
                return self._extract(images)
            recording = self._record(images)
            if recording is None:
                self._refused.add(shape)
                return self._extract(images)
            self._recordings[shape] = recording
        recording.used = self._batches
        recording.inputs.copy_(images)
        recording.graph.replay()
        return recording.maps

    def _has_room(self) -> bool:
        """Whether one more may be recorded. Drops the one that was idle longest if it was idle long enough: shapes that
        take turns must not drive one another out, since to record takes longer than to run.
        """
        if len(self._recordings) < MAX_RECORDINGS:
            return True
        shape, oldest = min(self._recordings.items(), key=lambda item: item[1].used)
        if self._batches - oldest.used <= IDLE_BATCHES:
            return False
        del self._recordings[shape]
        return True

    def _record(self, images: Tensor) -> _Recording | None:
        """None where this cannot be recorded. Raises what the extractor raises when it merely runs."""
        inputs = images.clone()
        before = torch.cuda.current_stream()
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch gives it no types
        # Libraries choose their kernels and allocate workspaces in runs before the recording.
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            for _ in range(2):
                self._extract(inputs)
        before.wait_stream(self._stream)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # "thread_local": what other threads ask of the device meanwhile is none of the recording's.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                maps = self._extract(inputs)
        except RuntimeError as error:
            # Torch does not go back where the recording's end fails.
            torch.cuda.set_stream(before)
            # Raises if it is the device that failed.
            torch.cuda.synchronize()
            log.warning("runs without a CUDA graph: %s: %s", list(images.shape), error)
            if not self._recordings:
                self._pool = None
            return None
        return _Recording(graph, inputs, maps, self._batches)

    def clear(self) -> None:
        """Give the recordings' memory back, as when a batch has run out of it."""
        self._recordings.clear()
        self._refused.clear()
        self._pool = None
