"""The paper's C4 networks (Mask R-CNN, Figure 4 left, Table 2a): one map of stride 16, and res5 in the heads.

As the paper altered it, res5 works on 7×7 features with stride 1, and box and mask branch share it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

# Of the features that res5 gets, per side.
BINS = 7
STRIDE = 16


class C4Backbone(nn.Module):
    """A ResNet up to its fourth stage; gives {"0": [B, C, H / 16, W / 16]}."""

    def __init__(self, resnet: Any) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(resnet, {"layer3": "0"})
        # `inplanes` are res5's, with twice as many.
        self.out_channels = int(resnet.inplanes) // 2

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The features of images [B, 3, H, W]."""
        features: dict[str, Tensor] = self.body(x)
        return features


class SharedStage(nn.Module):
    """A stage that belongs to another module: it is run here, but its parameters are counted and stored there."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        # A tuple, so that it is not registered.
        self._elsewhere = (stage,)

    def forward(self, x: Tensor) -> Tensor:
        """What the stage makes of it."""
        made: Tensor = self._elsewhere[0](x)
        return made


def c4(backbone: str, norm: Any) -> tuple[C4Backbone, nn.Sequential, SharedStage, int]:
    """Backbone, box head, mask head, and the channels that both heads give. norm: layer for BatchNorm's places."""
    resnet: Any = torchvision.models.get_model(backbone, weights=None, norm_layer=norm)
    channels = int(resnet.inplanes)
    res5 = resnet.layer4
    for module in res5.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    box_head = nn.Sequential(
        OrderedDict(res5=res5, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(1))
    )  # [R, C, 7, 7] → [R, channels]
    return C4Backbone(resnet), box_head, SharedStage(res5), channels
