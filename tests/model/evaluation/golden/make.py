"""Make the golden files: random annotations and results, with the figures of pycocotools and of StarDist.

    python tests/model/evaluation/golden/make.py coco         # needs pycocotools
    python tests/model/evaluation/golden/make.py matching     # needs stardist: docs/training.md

The figures come from those packages alone; nothing of maskserve computes them. The tests compare ours with the files.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
HEIGHT, WIDTH = 240, 300
IMAGES = 12
CATEGORIES = {3: "cat", 8: "dog", 20: "owl"}
FIGURES = (
    "AP", "AP50", "AP75", "AP small", "AP medium", "AP large",
    "AR 1", "AR 10", "AR 100", "AR small", "AR medium", "AR large",
)  # fmt: skip


def ellipse(x: float, y: float, width: float, height: float) -> np.ndarray:
    """[HEIGHT, WIDTH] uint8 in Fortran order."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    inside = ((columns - x - width / 2) / (width / 2)) ** 2 + (
        (rows - y - height / 2) / (height / 2)
    ) ** 2 <= 1
    return np.asfortranarray(inside, np.uint8)


def make_coco() -> None:
    """Objects of three sizes, some of them crowds; detections near most of them, some of another category."""
    from pycocotools import mask as coco
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(20)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def record(image: int, category: int, box: list[float]) -> dict[str, Any]:
        rle = coco.encode(ellipse(*box))
        segmentation = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
        return {"image_id": image, "category_id": category, "bbox": box, "segmentation": segmentation}

    for image in range(1, IMAGES + 1):
        for _ in range(int(rng.integers(0, 7))):
            side = float(rng.choice([14, 60, 200]))
            corner = rng.uniform(0, (WIDTH - side, HEIGHT - side)).tolist()
            box = [round(v, 1) for v in (*corner, *rng.uniform(0.7 * side, side, 2).tolist())]
            category = int(rng.choice(list(CATEGORIES)))
            own = record(image, category, box)
            area = int(coco.area({**own["segmentation"], "counts": own["segmentation"]["counts"].encode()}))
            crowd = int(rng.random() < 0.12)
            annotations.append({"id": len(annotations) + 1, **own, "area": area, "iscrowd": crowd})
            for _ in range(int(rng.integers(0, 3))):
                moved = [round(v, 1) for v in np.add(box, rng.normal(0, side / 15, 4)).clip(1).tolist()]
                label = category if rng.random() < 0.85 else int(rng.choice(list(CATEGORIES)))
                results.append({**record(image, label, moved), "score": round(float(rng.random()), 3)})
    truth = {
        "images": [{"id": n, "height": HEIGHT, "width": WIDTH} for n in range(1, IMAGES + 1)],
        "annotations": annotations,
        "categories": [{"id": n, "name": name} for n, name in CATEGORIES.items()],
    }
    expected: dict[str, Any] = {"made_with": f"pycocotools {version('pycocotools')}"}
    for kind, hidden in (("bbox", "segmentation"), ("segm", "bbox")):
        kept = [{k: v for k, v in result.items() if k != hidden} for result in results]
        with contextlib.redirect_stdout(io.StringIO()):
            annotated = COCO()
            annotated.dataset = truth
            annotated.createIndex()
            evaluator = COCOeval(annotated, annotated.loadRes(kept), kind)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        expected[kind] = dict(zip(FIGURES, evaluator.stats.tolist(), strict=True))
    write("coco.json", {"truth": truth, "results": results, "expected": expected})


def make_matching() -> None:
    """Label images of cells: some moved, merged, split, missed, or found where nothing is."""
    from stardist.matching import matching_dataset

    rng = np.random.default_rng(24)
    truth, predicted = np.zeros((2, 3, HEIGHT, WIDTH), np.int32)
    for true, found in zip(truth, predicted, strict=True):
        for number in range(1, 16):
            box = [*rng.uniform(0, (WIDTH - 30, HEIGHT - 30)).tolist(), *rng.uniform(12, 30, 2).tolist()]
            true[ellipse(*box) > 0] = number
            kind = rng.random()
            if kind < 0.1:
                continue
            moved = np.add(box, rng.normal(0, 1.0, 4)).tolist()
            found[ellipse(*moved) > 0] = number - 1 if kind > 0.95 and number > 1 else number
            if 0.85 < kind < 0.95:
                left = ellipse(*moved) > 0
                left[:, int(moved[0] + moved[2] / 2) :] = False
                found[left] = number + 100
        found[:6, :6] = 200
    thresholds = [n / 20 for n in range(10, 20)]
    expected: dict[str, Any] = {"made_with": f"stardist {version('stardist')}"}
    names = ("accuracy", "f1", "precision", "recall", "panoptic_quality")
    for key, by_image in (("by_image", True), ("pooled", False)):
        result = matching_dataset(
            list(truth), list(predicted), thresh=thresholds, by_image=by_image, show_progress=False
        )
        expected[key] = {name: [float(getattr(r, name)) for r in result] for name in names}
    images = [{"truth": runs(t), "predicted": runs(p)} for t, p in zip(truth, predicted, strict=True)]
    write("matching.json", {"size": [HEIGHT, WIDTH], "images": images, "expected": expected})


def runs(labels: np.ndarray) -> list[list[int]]:
    """A label image row by row, as [label, pixels] for each run."""
    flat = labels.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    return [[int(flat[s]), int(n)] for s, n in zip(starts, np.diff(starts, append=flat.size), strict=True)]


def write(name: str, document: dict[str, Any]) -> None:
    (HERE / name).write_text(json.dumps(document, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    {"coco": make_coco, "matching": make_matching}[sys.argv[1]]()
