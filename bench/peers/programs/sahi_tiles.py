"""SAHI around torchvision's model, on one large image: for bench/tiles.py.

PROGRAM FOLDER TILE OVERLAP THREADS: reads the network and mosaic.npy from the folder, and writes sahi.json there: COCO
results records, seconds, and bytes by which the resident set peaked over what it was with network and image.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from network import load_network
from pycocotools import mask as coco
from sahi.models.torchvision import TorchVisionDetectionModel
from sahi.predict import get_sliced_prediction

if TYPE_CHECKING:
    from sahi.prediction import ObjectPrediction

# Its default. Below 0.1 it turns from merging to suppressing, as there would be too many pairs.
SCORE = 0.3


def main(folder: Path, tile: int, overlap: float, threads: int) -> None:
    torch.set_num_threads(threads)
    network: Any = load_network(folder)
    classes = json.loads((folder / "architecture.json").read_text())["classes"]
    names = {str(number): str(number) for number in range(classes)}
    model = TorchVisionDetectionModel(
        model=network, confidence_threshold=SCORE, category_mapping=names, device="cpu"
    )
    image = np.load(folder / "mosaic.npy")
    with torch.inference_mode():
        network([torch.zeros(3, tile, tile)])
        before = forget_peak()
        started = time.perf_counter()
        found = get_sliced_prediction(
            image, model, tile, tile, overlap, overlap, perform_standard_pred=False, verbose=0
        )
        seconds = time.perf_counter() - started
    peak = status("VmHWM") - before
    records = [record(prediction) for prediction in found.object_prediction_list]
    written = {"seconds": seconds, "peak": peak, "records": records}
    (folder / "sahi.json").write_text(json.dumps(written))


def record(prediction: ObjectPrediction) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(prediction.mask.bool_mask, dtype=np.uint8))
    rle["counts"] = rle["counts"].decode()
    return {
        "image_id": 0,
        "category_id": int(prediction.category.id),
        "bbox": [float(number) for number in prediction.bbox.to_xywh()],
        "score": float(prediction.score.value),
        "segmentation": rle,
    }


def forget_peak() -> int:
    """Begin to measure the peak of the resident set again; what it is now, bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
