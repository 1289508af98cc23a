"""`maskserve serve` whose engine fails as the first pixel of an image asks it to: run by test_faults.py.

The pixel is (251, fault, 0); the faults are numbered below. Everything but the engine is the real thing.
With `endless-load` behind the command the engine never comes to be.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from app import settings
from app.runtime.loading import load_engine
from app.server import serve
from model.errors import DeviceFailed, OutOfDeviceMemory

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from model.inference.engine import Engine
    from model.instances import Instances, Options

MARK = 251
POISON, HANG, MEMORY, DEVICE, DEATH, SLOW, SHORT, NOTHING, ENDLESS = range(1, 10)


class Faulty:
    """The engine, but for images that ask for a fault. It runs in batches, as on a GPU."""

    batches = True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def segment(self, images: Sequence[np.ndarray], options: Sequence[Options]) -> list[Instances]:
        faults = [image[0, 0, 1].item() if image[0, 0, 0] == MARK else 0 for image in images]
        for fault in faults:
            self.fail(fault, len(images))
        found: list[Any] = self.engine.segment(images, options)
        if SHORT in faults:
            # The worker does not know what to make of that.
            found.pop()
        return [
            None if fault == NOTHING else instances for fault, instances in zip(faults, found, strict=False)
        ]

    def fail(self, fault: int, together: int) -> None:
        if fault == POISON:
            raise ValueError("poison")
        if fault == HANG:
            time.sleep(3600)
        if fault == MEMORY and together > 1:
            raise OutOfDeviceMemory("simulated")
        if fault == DEVICE:
            raise DeviceFailed("CUDA error: an illegal memory access was encountered (simulated)")
        if fault == DEATH:
            raise SystemExit("simulated death of the thread")
        if fault == SLOW:
            time.sleep(0.5)
        if fault == ENDLESS:
            compute()


def compute() -> NoReturn:
    """Be inside torch nearly all of the time, for ever."""
    sys.stderr.write("computing\n")
    matrix = torch.zeros(256, 256)
    while True:
        torch.mm(matrix, matrix)


if __name__ == "__main__":
    given = settings.load()
    endless = sys.argv[1:] == ["endless-load"]
    serve(given, compute if endless else lambda: Faulty(load_engine(given)))
