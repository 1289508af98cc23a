"""Whether a peer's answer is ours in float32: instance by instance, boxes and masks by their IoU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# From which IoU of boxes on, two instances of one category are the same one: COCO's laxest.
SAME = 0.5


@dataclass(frozen=True)
class Answer:
    """The instances of one photo."""

    boxes: np.ndarray  # [N, 4] xyxy, pixels
    labels: np.ndarray  # [N]
    scores: np.ndarray  # [N]
    masks: np.ndarray | None  # [N, H, W] bool; None where the peer sends none

    @classmethod
    def read(cls, path: Path) -> Answer:
        """What bench/peers/programs/protocol.py wrote."""
        with np.load(path) as parts:
            return cls(**{name: parts[name] for name in ("boxes", "labels", "scores", "masks")})

    @classmethod
    def of_document(cls, document: dict[str, Any]) -> Answer:
        """A server's answer: COCO results records under "instances", as `POST /segment` gives them."""
        records = document["instances"]
        corners = np.array([record["bbox"] for record in records], dtype=float).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        masks = None
        if all("segmentation" in record for record in records):
            masks = decode([record["segmentation"] for record in records])
        return cls(
            corners,
            np.array([record["category_id"] for record in records]),
            np.array([record["score"] for record in records]),
            masks,
        )


def decode(rles: Sequence[dict[str, Any]]) -> np.ndarray:
    """[N, H, W] bool of COCO's RLE, as JSON has it."""
    return np.array([coco.decode(rle) for rle in rles], dtype=bool)


@dataclass(frozen=True)
class Agreement:
    """How an answer compares with the expected one."""

    expected: int
    found: int
    # Instances that are in both.
    same: int
    # Mean IoU of their boxes and masks; None where there are none.
    box_iou: float | None
    mask_iou: float | None

    @property
    def badness(self) -> tuple[int, float]:
        """The larger, the worse: instances that one has and the other has not, and how far the masks are off."""
        return self.expected + self.found - 2 * self.same, 1 - (self.mask_iou or 0.0)

    def __str__(self) -> str:
        text = f"{self.same} of {self.expected}"
        if self.found > self.same:
            text += f", {self.found - self.same} others"
        if self.same:
            text += "; no masks" if self.mask_iou is None else f"; mask IoU {cut(self.mask_iou)}"
        return text


def cut(iou: float) -> str:
    """Three decimals; never 1.000 for what is not 1."""
    return f"{np.floor(iou * 1000 + 1e-6) / 1000:.3f}"


def compare(expected: Answer, found: Answer) -> Agreement:
    """Pair instances of one category, the pair of the largest IoU first, and each only once."""
    ious = box_ious(expected.boxes, found.boxes)  # [E, F]
    ious[expected.labels[:, None] != found.labels[None, :]] = 0
    pairs: list[tuple[int, int]] = []
    boxes: list[float] = []
    left = ious.copy()
    while left.size and left.max() >= SAME:
        e, f = np.unravel_index(left.argmax(), left.shape)
        pairs.append((int(e), int(f)))
        boxes.append(float(ious[e, f]))
        left[e, :] = left[:, f] = 0
    masks = None
    if pairs and expected.masks is not None and found.masks is not None:
        masks = float(np.mean([mask_iou(expected.masks[e], found.masks[f]) for e, f in pairs]))
    mean = float(np.mean(boxes)) if boxes else None
    return Agreement(len(expected.labels), len(found.labels), len(pairs), mean, masks)


def box_ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, M] of boxes [N, 4] and [M, 4], xyxy."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    extent = np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner
    common = np.clip(extent, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    return common / np.maximum(areas[0][:, None] + areas[1][None, :] - common, 1e-9)


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Of [H, W] bool; 1 where both are empty."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0
