"""ResNets and ResNeXts of any widths, as Detectron2 and MMDetection build them, under torchvision's names.

The engine is prepared from their weights; training runs those that torchvision's own classes cannot describe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from model.network.architecture import Architecture

    Norm = Callable[[int], nn.Module]

# Blocks of each stage, the kind of block, and for bottlenecks the groups of their 3×3 convolution and its width per
# group in the first stage (He et al., "Deep Residual Learning", Table 1; Xie et al., "Aggregated Residual
# Transformations", Table 1).
STAGES = {
    "resnet18": ((2, 2, 2, 2), "basic", 1, 64),
    "resnet34": ((3, 4, 6, 3), "basic", 1, 64),
    "resnet50": ((3, 4, 6, 3), "bottleneck", 1, 64),
    "resnet101": ((3, 4, 23, 3), "bottleneck", 1, 64),
    "resnet152": ((3, 8, 36, 3), "bottleneck", 1, 64),
    "resnext50_32x4d": ((3, 4, 6, 3), "bottleneck", 32, 4),
    "resnext101_32x8d": ((3, 4, 23, 3), "bottleneck", 32, 8),
}
# A bottleneck's output channels, for each of its stage's width.
EXPANSION = 4


class _Block(nn.Module):
    """A residual block (He et al., "Deep Residual Learning", section 3.3); training runs it, the engine rebuilds it."""

    downsample: nn.Sequential | None

    def forward(self, x: Tensor) -> Tensor:
        """Of [B, C, H, W]."""
        y, layer = x, 1
        while hasattr(self, f"conv{layer}"):
            # The last one's ReLU follows the sum.
            y = y.relu() if layer > 1 else y
            y = getattr(self, f"bn{layer}")(getattr(self, f"conv{layer}")(y))
            layer += 1
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class BasicBlock(_Block):
    """Two 3×3 convolutions, the stride in the first."""

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = norm(width)
        self.downsample = _shortcut(inputs, width, stride, norm)


class Bottleneck(_Block):
    """1×1, 3×3 and 1×1 convolutions; the stride is in the second, as torchvision has it, or in the first."""

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        strides: tuple[int, int],
        *,
        groups: int,
        norm: Norm,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, strides[0], bias=False)
        self.bn1 = norm(inner)
        self.conv2 = nn.Conv2d(
            inner, inner, 3, strides[1], dilation, dilation=dilation, groups=groups, bias=False
        )
        self.bn2 = norm(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = norm(outputs)
        self.downsample = _shortcut(inputs, outputs, strides[0] * strides[1], norm)


def _shortcut(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))


class ResNetBody(nn.Module):
    """A ResNet without its classifier; `return_layers` names the children that give C2 … C5."""

    def __init__(self, a: Architecture, norm: Norm) -> None:
        super().__init__()
        depths, kind, groups, group_width = STAGES[a.backbone]
        groups, channels = a.groups or groups, a.stem_channels or 64
        first = a.res2_channels or (64 if kind == "basic" else 64 * EXPANSION)
        hidden = a.bottleneck_channels or group_width * groups
        self.return_layers = {f"layer{n}": str(n - 1) for n in (1, 2, 3, 4)}
        self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.bn1 = norm(channels)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.channels: list[int] = []
        for n, depth in enumerate(depths):
            outputs, inner = first * 2**n, hidden * 2**n
            blocks: list[nn.Module] = []
            for index in range(depth):
                dilated = n == 3 and a.single_map == "dc5"
                stride = 2 if n > 0 and index == 0 and not dilated else 1
                if kind == "basic":
                    blocks.append(BasicBlock(channels, outputs, stride, norm))
                else:
                    strides = (stride, 1) if a.stride_in_1x1 else (1, stride)
                    blocks.append(
                        Bottleneck(
                            channels,
                            inner,
                            outputs,
                            strides,
                            groups=groups,
                            norm=norm,
                            dilation=2 if dilated else 1,
                        )
                    )
                channels = outputs
            setattr(self, f"layer{n + 1}", nn.Sequential(*blocks))
            self.channels.append(channels)
