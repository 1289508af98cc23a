"""`maskserve serve` whose engine fails as the first pixel of an image asks it to: run by test_faults.py.

The pixel is (251, fault, 0); the faults are numbered below. Everything but the engine is the real thing.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from app import settings
from app.loading import load_engine
from app.server import serve
from model.errors import DeviceFailed, OutOfDeviceMemory

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from model.engine import Engine
    from model.instances import Instances, Options

MARK = 251
POISON, HANG, MEMORY, DEVICE, DEATH, SLOW = range(1, 7)


class Faulty:
    """The engine, but for images that ask for a fault. It runs in batches, as on a GPU."""

    batches = True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def segment(self, images: Sequence[np.ndarray], options: Sequence[Options]) -> list[Instances]:
        for image in images:
            mark, fault, _ = image[0, 0].tolist()
            if mark == MARK:
                self.fail(fault, len(images))
        return self.engine.segment(images, options)

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


if __name__ == "__main__":
    given = settings.load()
    sys.exit(serve(given, lambda: Faulty(load_engine(given))))
