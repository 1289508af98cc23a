"""Our engine, up to the masks as COCO RLE."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import protocol
from pycocotools import mask as coco

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))


def load(folder: Path, precision: str) -> protocol.Engine:
    from app import settings
    from app.runtime.loading import load_engine
    from model.instances import Options

    given = {
        "model": str(folder / "model.safetensors"),
        "precision": precision,
        "threads": protocol.threads(),
    }
    engine = load_engine(settings.load(given))
    engine.warm_up()
    threshold = json.loads((folder / "architecture.json").read_text())["score_threshold"]

    def run(photo):
        (found,) = engine.segment([photo], [Options(score_threshold=threshold)])
        return found.boxes, found.labels, found.scores, found.rles()

    return run


def bitmaps(masks) -> np.ndarray:
    """[N, H, W] bool"""
    return np.array([coco.decode(rle.to_coco()) for rle in masks], dtype=bool)


protocol.main(load, to_bitmaps=bitmaps)
