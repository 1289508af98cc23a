"""A narrow network whose weights find much in a small image, for files in other frameworks' layouts."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from bench.synthetic_weights import synthetic_weights
from model.network.architecture import V1

if TYPE_CHECKING:
    from collections.abc import Mapping

PIXELS = np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8).repeat(4, 0).repeat(4, 1)
NARROW = replace(
    V1,
    backbone="resnet18",
    classes=4,
    norm="batch",
    norm_eps=1e-5,
    stem_channels=8,
    res2_channels=8,
    fpn_channels=16,
    box_channels=32,
    mask_channels=16,
    min_size=96,
    max_size=160,
)


@functools.cache
def narrow_weights() -> Mapping[str, torch.Tensor]:
    """By our names."""
    return synthetic_weights(NARROW, torch.from_numpy(PIXELS).permute(2, 0, 1) / 255).state_dict()
