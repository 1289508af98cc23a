"""The service on Ray with a device of fixed time: it sleeps, so what is measured is all that is around the device."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from app.settings import load
from deploy.tests.processes import SIMULATED_SECONDS
from maskserve.ray import Replica, bind
from model.data import Category
from model.instances import Instances
from model.network.architecture import Architecture
from model.zoo.model_file import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from ray import serve

    from model.instances import Options


class SimulatedEngine:
    """Takes its time, one image after the other, and finds one thing in each."""

    def __init__(self) -> None:
        self.model = describe(
            "simulated", Architecture(classes=2), (Category(1, "thing"),), ap={}, sha256="0" * 64, notice=""
        )
        self.device = torch.device("cpu")
        self.precision = "float32"
        self.batches = False
        self.cores = 1

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Images are not resized."""
        return height, width

    def padded_shape(self, height: int, width: int) -> tuple[int, int]:
        """Images are not padded."""
        return height, width

    def warm_up(self) -> None:
        """There is nothing to warm up."""

    def device_memory(self) -> dict[str, int]:
        """It has none."""
        return {}

    def segment(self, images: Sequence[NDArray[np.uint8]], options: Sequence[Options]) -> list[Instances]:  # noqa: ARG002 - an engine's
        """One instance for each image, after its time."""
        time.sleep(SIMULATED_SECONDS * len(images))
        return [
            Instances(
                size=image.shape[:2],
                boxes=torch.tensor([[2.0, 2.0, 20.0, 20.0]]),
                scores=torch.tensor([0.9]),
                labels=torch.tensor([1]),
                probabilities=torch.full((1, 28, 28), 0.9),
            )
            for image in images
        ]


class SimulatedReplica(Replica):
    """A replica with that engine."""

    def load_engine(self) -> SimulatedEngine:
        """The simulated one."""
        return SimulatedEngine()


def build(arguments: dict[str, Any]) -> serve.Application:
    """As maskserve.ray.build."""
    return bind(SimulatedReplica, load(arguments), arguments)
