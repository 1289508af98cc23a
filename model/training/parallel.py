"""Several processes that train one network together, as torchrun starts them: each takes a part of every batch.

Every loss term is a mean over samples of the whole batch, whoever has them, so that the number of processes changes
nothing but the time (and BatchNorm's statistics on the CPU, which are those of a process's own images).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torchvision.models.detection.transform import GeneralizedRCNNTransform

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Group:
    """The processes; alone there is one, and nothing is exchanged."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, numbers: list[int], device: torch.device) -> list[int]:
        """The largest of each of the processes' numbers."""
        if self.world == 1:
            return numbers
        tensor = torch.tensor(numbers, device=device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [int(v) for v in tensor.tolist()]

    def agreed(self, *, value: bool) -> bool:
        """What the first process says."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return bool(box[0])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make every parameter's gradient the sum of all processes'."""
        if self.world == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        # In one piece: a call for each of some 200 tensors would wait as many times.
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
        dist.all_reduce(flat)
        for p, part in zip(trained, torch.split(flat, [p.numel() for p in trained]), strict=True):
            # In the parameter's own memory layout: torch's fused optimisers walk both as they lie.
            p.grad = torch.empty_like(p).copy_(part.view_as(p))

    def leave(self) -> None:
        """Part from the other processes."""
        if self.world > 1:
            dist.destroy_process_group()


def processes_here() -> int:
    """How many processes torchrun started on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def join(device: str) -> tuple[Group, str]:
    """The group that torchrun made this process part of, and this process's device.

    device: "cuda" becomes the GPU of the process's own number on its machine.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Group(), device
    cuda = torch.device(device).type == "cuda"
    if cuda:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    # The others wait while the first measures the model on what may be thousands of images.
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=6))
    return Group(dist.get_rank(), world), device


class SharedTransform(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """torchvision's, but padded to the largest image of the whole batch: padding shows at the borders of features."""

    def __init__(self, like: Any, group: Group) -> None:
        super().__init__(like.min_size, like.max_size, like.image_mean, like.image_std)
        self._group = group

    def max_by_axis(self, the_list: list[list[int]]) -> list[int]:
        """[C, H, W] of the batch."""
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        return self._group.largest(list(super().max_by_axis(the_list)), device)
