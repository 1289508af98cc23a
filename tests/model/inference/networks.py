"""Thin networks with weights that find something, engines of them, and photos to find it in."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.synthetic_weights import synthetic_weights
from model.data import Category, Keypoints
from model.inference.engine import Engine
from model.instances import Options
from model.network.architecture import BACKBONES, SMALL, V1, V2, Architecture
from model.zoo import model_file
from tests.model.thin import thin_if_deep

if TYPE_CHECKING:
    from torch import nn

    from model.instances import Instances

THIN: dict[str, Any] = {
    "classes": 11,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "fpn_channels": 16,
    "box_channels": 32,
    "mask_channels": 16,
    "proposals": 60,
    "min_size": 96,
    "max_size": 160,
}
THIN_SMALL = replace(SMALL, **THIN)
ARCHITECTURES = {
    "small": THIN_SMALL,
    "v1": replace(V1, **THIN),
    "v2": replace(V2, **THIN),
    # The backbones of those are ResNet-18 and ResNet-50.
    **{
        name: replace(THIN_SMALL, backbone=name) for name in BACKBONES if name not in ("resnet18", "resnet50")
    },
    "odd v2": replace(
        V2, **{**THIN, "fpn_channels": 20, "mask_channels": 20}
    ),  # widths that Winograd cannot take
}
CPU = torch.device("cpu")


@cache
def network(architecture: Architecture) -> nn.Module:
    with thin_if_deep(architecture):
        return synthetic_weights(
            architecture, torch.from_numpy(photo(96, 128)).permute(2, 0, 1) / 255, seed=5
        )


def described(architecture: Architecture) -> model_file.Model:
    """Category ids that are not the network's outputs: 10, 20, …"""
    categories = tuple(Category(10 * n, f"kind {n}") for n in range(1, architecture.classes))
    names = tuple(f"joint {n}" for n in range(architecture.keypoints))
    keypoints = Keypoints(names, ((0, 1),)) if names else None
    return model_file.describe("random", architecture, categories, keypoints=keypoints)


def engine_of(architecture: Architecture = THIN_SMALL) -> Engine:
    return Engine(copy.deepcopy(network(architecture)), described(architecture), CPU, "float32")


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """[H, W, 3] uint8 with something to see at every scale."""
    random = np.random.default_rng([seed, height, width])
    canvas = np.zeros((height, width, 3))
    for cell in (1, 4, 16):
        grid = random.normal(0, cell, (-(-height // cell), -(-width // cell), 3))
        canvas += np.kron(grid, np.ones((cell, cell, 1)))[:height, :width]
    return np.clip(128 + 6 * canvas, 0, 255).astype(np.uint8)


def segment(engine: Engine, image: np.ndarray, **options: Any) -> Instances:
    (found,) = engine.segment([image], [Options(**{"score_threshold": 0.05, **options})])
    return found


def assert_same(ours: Instances, theirs: Instances) -> None:
    assert ours.size == theirs.size
    assert ours.labels.tolist() == theirs.labels.tolist()
    torch.testing.assert_close(ours.boxes, theirs.boxes, atol=0.01, rtol=0)
    torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.probabilities, theirs.probabilities, atol=1e-3, rtol=0)


class Calls:
    """The arguments that a part of an engine, or of one of its heads, is called with, call by call."""

    def __init__(self, engine: Any, part: str) -> None:
        self._engine, self._part = engine, part
        self.arguments: list[tuple[Any, ...]] = []

    def __enter__(self) -> list[tuple[Any, ...]]:
        self._whole = getattr(self._engine, self._part)

        def noted(*arguments: Any) -> Any:
            self.arguments.append(arguments)
            return self._whole(*arguments)

        setattr(self._engine, self._part, noted)
        return self.arguments

    def __exit__(self, *_: object) -> None:
        setattr(self._engine, self._part, self._whole)
