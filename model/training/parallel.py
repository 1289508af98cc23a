"""Data-parallel training by several processes that torchrun starts: each takes a part of every batch.

Every loss term is a mean over the samples of the whole batch, so the number of processes changes only the time. The
exception is BatchNorm on the CPU, where each process uses the statistics of its own images.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that train together. In a group of one, nothing is exchanged."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the tensors of all processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def max(self, numbers: list[int], device: torch.device) -> list[int]:
        """The elementwise maximum over all processes."""
        if self.world == 1:
            return numbers
        tensor = torch.tensor(numbers, device=device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [int(v) for v in tensor.tolist()]

    def broadcast(self, *, value: bool) -> bool:
        """The value that the first process has."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return bool(box[0])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each parameter's gradient by the sum over all processes."""
        if self.world == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        # One call instead of about 200, each of which would wait for the other processes.
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
        dist.all_reduce(flat)
        for p, part in zip(trained, torch.split(flat, [p.numel() for p in trained]), strict=True):
            # torch's fused optimisers need the gradient in the parameter's memory layout.
            p.grad = torch.empty_like(p).copy_(part.view_as(p))

    def leave(self) -> None:
        """Leave the process group."""
        if self.world > 1:
            dist.destroy_process_group()


def processes_here() -> int:
    """How many processes torchrun started on this machine; they share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def read_group() -> Group:
    """The group that torchrun started, before it is joined."""
    return Group(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def join(device: str) -> tuple[Group, str]:
    """Join the group that torchrun started; return it and this process's device.

    device: "cuda" becomes the GPU with the process's local rank.
    """
    world = read_group().world
    if world == 1:
        return Group(), device
    cuda = torch.device(device).type == "cuda"
    if cuda:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    # The other processes wait while the first validates the model, perhaps on thousands of images.
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=6))
    return Group(dist.get_rank(), world), device


def share_padding(transform: Any, group: Group) -> None:
    """Make torchvision's transform pad to the largest image of the whole batch, not of one process's part.

    The padding affects features at the image borders, so it must not depend on the number of processes.
    """
    own = transform.max_by_axis
    on_gpu = dist.get_backend() == "nccl"

    def max_by_axis(shapes: list[list[int]]) -> list[int]:
        return group.max(list(own(shapes)), torch.device("cuda" if on_gpu else "cpu"))

    transform.max_by_axis = max_by_axis
