"""A model that finds a thousand instances in an image, and the image."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch

from bench.synthetic_weights import synthetic_weights
from model.data import Category
from model.inference.engine import Engine
from model.instances import MOST_INSTANCES
from model.network.architecture import SMALL
from model.network.conventions import Conventions
from model.zoo import model_file

CPU = torch.device("cpu")
CROWDED = replace(
    SMALL,
    classes=3,
    anchor_sizes=(8, 16, 32, 64, 128),
    fpn_channels=16,
    box_channels=32,
    mask_channels=16,
    proposals=2 * MOST_INSTANCES,
    min_size=256,
    max_size=320,
    conventions=Conventions(detections=MOST_INSTANCES),
)
MODEL = model_file.describe("crowded", CROWDED, (Category(1, "nucleus"), Category(2, "cell")))


@cache
def picture() -> np.ndarray:
    """[256, 320, 3] uint8: bright discs on a dark ground."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 40, (256, 320, 3)).astype(np.uint8)
    rows, columns = np.mgrid[:256, :320]
    for row, column, radius in rng.uniform((0, 0, 2), (256, 320, 6), (400, 3)):
        inside = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        pixels[inside] = rng.integers(120, 255, 3)
    return pixels


@cache
def network() -> torch.nn.Module:
    return synthetic_weights(CROWDED, torch.from_numpy(picture()).permute(2, 0, 1) / 255, seed=5)


@cache
def engine() -> Engine:
    return Engine(network(), MODEL, CPU)
