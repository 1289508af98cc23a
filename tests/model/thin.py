"""Networks that are small enough to be trained in a test, and recipes for a few steps."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torchvision.models.resnet import ResNet
from torchvision.models.vgg import cfgs

from model.data.shapes import CATEGORIES
from model.network.architecture import SMALL
from model.training.recipe import Recipe
from model.zoo import model_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.network.architecture import Architecture

THIN = replace(
    SMALL,
    anchor_sizes=(8, 16, 32, 64, 128),
    fpn_channels=16,
    box_channels=32,
    mask_channels=16,
    min_size=64,
    max_size=128,
)
MODEL = model_file.describe("thin", THIN, CATEGORIES, training={"data": "two scenes"})
RECIPE = Recipe(
    steps=3,
    batch_size=2,
    warmup=2,
    min_sizes=(64, 80),
    max_size=128,
    rois=16,
    proposals=(40, 20),
    precision="float32",
    workers=0,
)
# The terms of the paper's loss.
FIVE = {"L_cls", "L_box", "L_mask", "L_rpn_cls", "L_rpn_box"}


@contextmanager
def thin_backbones() -> Iterator[None]:
    """Give torchvision's ResNets and VGG-16 an eighth of their channels: a checkpoint has 3 MB instead of 180.

    With one thread: with more, torch 2.14.1 writes beyond a buffer in the backward pass of 1×1 convolutions of stride 2
    with fewer than 16 input channels (mkldnn_convolution_backward_weights), and the process is aborted sooner or later.
    """
    make_layer = ResNet._make_layer

    def make_thin_layer(self: ResNet, block: Any, planes: int, *args: Any, **options: Any) -> Any:
        return make_layer(self, block, planes // 8, *args, **options)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResNet, "_make_layer", make_thin_layer)
        patch.setitem(cfgs, "D", [width if width == "M" else width // 8 for width in cfgs["D"]])
        # Skeletons have the full widths.
        patch.setattr(model_file, "has_skeleton", lambda _architecture: False)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def thin_if_deep(architecture: Architecture) -> AbstractContextManager[None]:
    """thin_backbones() for ResNets of 101 layers and more; the others show what full widths do."""
    deep = architecture.backbone in ("resnet101", "resnet152", "resnext101_32x8d")
    return thin_backbones() if deep else nullcontext()
