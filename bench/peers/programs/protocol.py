"""How bench/peers speaks with an engine's program: one photo, over and over, when it is told to.

    PROGRAM FOLDER PRECISION prepare     # once, in a process of its own: exports, converts, quantizes into the folder
    PROGRAM FOLDER PRECISION run         # loads, answers once, says {"ready": true} and waits

A line of standard input with a number lets it run for so many seconds; it prints {"times": [seconds, …], "counts":
{instances: answers}}. A line with a path makes it write its answer there. The end of the input ends it. Photos are
decoded before; an answer is boxes, labels, scores and masks, these in the engine's own form.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    # [H, W, 3] uint8 → boxes [N, 4], labels [N], scores [N], masks.
    Engine = Callable[[np.ndarray], tuple[Any, Any, Any, Any]]


def threads() -> int:
    """How many the engine may use: as many as bench/peers says."""
    return int(os.environ["OMP_NUM_THREADS"])


def load_photo(folder: Path) -> np.ndarray:
    """[H, W, 3] uint8"""
    return np.array(Image.open(folder / "photo.jpg").convert("RGB"))


def bitmaps(masks: Any) -> np.ndarray:
    """[N, H, W] bool of torchvision's [N, 1, H, W] float."""
    return np.asarray(masks)[:, 0] > 0.5


def main(
    load: Callable[[Path, str], Engine],
    prepare: Callable[[Path, str], None] = lambda _folder, _precision: None,
    to_bitmaps: Callable[[Any], np.ndarray] = bitmaps,
) -> None:
    """What a program does.

    Args:
        load: reads what `prepare` wrote for a precision.
        prepare: writes what `load` needs into the folder, if it is more than the weights.
        to_bitmaps: gives [N, H, W] bool of the engine's masks, for the comparison, which is not measured.
    """
    # What libraries print would be taken for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    folder, precision, step = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    if step == "prepare":
        prepare(folder, precision)
        return
    engine, photo = load(folder, precision), load_photo(folder)
    engine(photo)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        told = line.strip()
        if told.replace(".", "").isdigit():
            print(json.dumps(run(engine, photo, float(told))), file=answers, flush=True)
        else:
            *others, masks = engine(photo)
            boxes, labels, scores = (np.asarray(part) for part in others)
            np.savez(told, boxes=boxes, labels=labels, scores=scores, masks=to_bitmaps(masks))
            print(json.dumps({"written": told}), file=answers, flush=True)


def run(engine: Engine, photo: np.ndarray, seconds: float) -> dict[str, Any]:
    """Seconds of each pass, and how many passes found how many."""
    times, counts = [], Counter()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        found = engine(photo)
        times.append(time.perf_counter() - started)
        counts[len(found[0])] += 1
    return {"times": times, "counts": counts}
