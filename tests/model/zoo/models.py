"""A thin model that the tests of the zoo write and read."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import nn

from model.data import Category
from model.network.architecture import SMALL
from model.network.build import build
from model.zoo.model_file import Model

THIN = replace(
    SMALL, classes=3, fpn_channels=8, box_channels=8, mask_channels=8, proposals=20, min_size=64, max_size=96
)
CATEGORIES = (Category(7, "bolt"), Category(3, "nut"))
DESCRIPTION = Model(
    name="parts",
    architecture=THIN,
    categories=CATEGORIES,
    labels=(2, 1),
    ap={"box": 0.9, "mask": 0.85},
    ap_source="measured on three photos",
    training={"recipe": {"steps": 3}, "hours": 0.5},
)


@functools.cache
def network() -> nn.Module:
    torch.manual_seed(1)
    made = build(THIN)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 1e-9, 1e6)  # outside of what float16 holds
    return made
