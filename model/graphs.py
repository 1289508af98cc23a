"""The dense part as CUDA graphs: its two hundred kernels launched at once, for each shape of input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from model.dense import Maps

MOST = 16  # shapes that are captured; each keeps its input, all share the memory of what lies between


class Captured:
    """A dense part whose launches are recorded the first time that a shape is seen, and replayed from then on.

    What a call returns is overwritten by the next call.
    """

    def __init__(self, dense: Callable[[Tensor], Maps]) -> None:
        self._dense = dense
        self._recorded: dict[tuple[int, ...], tuple[Any, Tensor, Maps]] = {}
        self._pool: Any = None

    def __call__(self, images: Tensor) -> Maps:
        """images: [B, 3, H, W], channels last. Shapes beyond the first MOST run as they are."""
        shape = tuple(images.shape)
        if shape not in self._recorded:
            if len(self._recorded) >= MOST:
                return self._dense(images)
            self._recorded[shape] = self._record(images)
        graph, inputs, maps = self._recorded[shape]
        inputs.copy_(images)
        graph.replay()
        return maps

    def _record(self, images: Tensor) -> tuple[Any, Tensor, Maps]:
        inputs = images.clone()
        # Libraries choose their kernels and allocate workspaces in runs before the recording, on a stream of its own.
        aside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                self._dense(inputs)
        torch.cuda.current_stream().wait_stream(aside)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            maps = self._dense(inputs)
        return graph, inputs, maps

    def forget(self) -> None:
        """Give the recordings' memory back, as when a batch has run out of it."""
        self._recorded.clear()
        self._pool = None
