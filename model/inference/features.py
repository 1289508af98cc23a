"""Feature extraction: images → feature pyramid, objectness and box deltas of every anchor.

A trained torchvision module is walked once and rebuilt from the prepared convolutions of
model/kernels/convolution.py; nothing of it is needed afterwards.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from model.kernels.convolution import ACTIVATIONS, Layer, is_norm

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from model.kernels.convolution import Format, Step

# P2 … P5, which RoIAlign reads; the RPN reads P6 too.
LEVELS = 4
_NO_OPS = (nn.Identity, nn.Dropout)


@dataclass(frozen=True, slots=True)
class FeatureMaps:
    """What is extracted from a batch of B images; P2 first."""

    table: Tensor  # [cells, C]: the features of P2 … P5, a row per cell; levels, in them images, in them rows of cells
    # (height, width) of P2 … P6.
    shapes: list[tuple[int, int]]
    # P2 … P6, each [B, H * W * A] float32 logits; A anchors per cell.
    objectness: list[Tensor]
    # P2 … P6, each [B, H * W * A, 4].
    deltas: list[Tensor]


def prepare(modules: Iterable[tuple[str, nn.Module]], form: Format) -> list[tuple[str, Step]]:
    """Modules that follow one another as callables, each under the name of the last module that it stands for.

    Raises TypeError for a module that there is no way to prepare.
    """
    waiting, found = list(modules), []
    while waiting:
        name, module = waiting.pop(0)
        # Blocks go by the name of their class, torchvision's or skeleton.py's: importing torchvision takes seconds.
        kind = type(module).__name__
        step: Step
        if isinstance(module, nn.Conv2d):
            norm, activation = None, "none"
            if waiting and is_norm(waiting[0][1]):
                name, norm = waiting.pop(0)
            if waiting and type(waiting[0][1]) in ACTIVATIONS:
                name, after = waiting.pop(0)
                activation = ACTIVATIONS[type(after)]
            step = form.conv(module, norm, activation)
        elif kind in ("BasicBlock", "Bottleneck"):
            step = _Residual(module, form)
        elif kind == "InvertedResidual":
            step = _InvertedResidual(module, form)
        elif isinstance(module, nn.Sequential):
            step = _Chain([s for _, s in prepare(module.named_children(), form)])
        elif isinstance(module, nn.MaxPool2d):
            size: Any = module.kernel_size
            halves = (size, module.stride, module.padding) in ((2, 2, 0), (3, 2, 1)) and module.dilation == 1
            step = form.elementwise(
                partial(_max_pool, size=size) if halves and form.device.type == "cpu" else module
            )
        elif kind == "SqueezeExcitation":
            step = copy.deepcopy(module).to(form.device, form.dtype)
        elif isinstance(module, _NO_OPS):
            continue
        else:
            raise TypeError(f"no way to prepare a {type(module).__name__} for inference")
        found.append((name, step))
    return found


class _Chain:
    def __init__(self, links: Sequence[Step]) -> None:
        self.links = links

    def __call__(self, x: Any) -> Any:
        for link in self.links:
            x = link(x)
        return x


def _max_pool(x: Tensor, size: int) -> Tensor:
    """Max pooling 3×3, stride 2, padding 1, or 2×2, stride 2, of a tensor [B, C, H, W].

    As maxima of shifted views it takes a third of torch's time on the CPU (3×3), whose kernel writes an int64 index for
    every output too, and knows no bytes.
    """
    # Images that are not padded.
    if x.shape[2] % 2 or x.shape[3] % 2:
        return functional.max_pool2d(x, size, 2, padding=size // 3)
    for axis in (2, 3):
        even, odd = (x.view(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :]).select(axis + 1, n) for n in (0, 1))
        # Made by hand: torch would give a batch of one a stride that oneDNN does not recognise as channels last.
        out = torch.empty(even.shape, dtype=x.dtype, memory_format=torch.channels_last)
        x = torch.maximum(even, odd, out=out)
        if size == 3:
            count = x.shape[axis] - 1
            later = x.narrow(axis, 1, count)
            torch.maximum(later, odd.narrow(axis, 0, count), out=later)
    return x


class _Residual:
    """A residual block (He et al., "Deep Residual Learning", section 3.3); the sum happens in its last convolution."""

    def __init__(self, block: Any, form: Format) -> None:
        layers = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if hasattr(block, "conv3"):
            layers.append((block.conv3, block.bn3))
        convs = [form.conv(conv, norm, "relu") for conv, norm in layers]
        self._first, self._last = _Chain(convs[:-1]), convs[-1]
        # A block of another shape has a convolution on its shortcut. The others sum onto their input, which nothing
        # else reads: a stage's output goes on into a block of another shape.
        self._shortcut: Step | None = None
        if block.downsample is not None:
            self._shortcut = _Chain([s for _, s in prepare(block.downsample.named_children(), form)])

    def __call__(self, x: Any) -> Any:
        y = self._first(x)
        return self._last(y, residual=x if self._shortcut is None else self._shortcut(x))


class _InvertedResidual:
    """MobileNetV3's block (Howard et al., "Searching for MobileNetV3", section 3)."""

    def __init__(self, block: Any, form: Format) -> None:
        self._inner = _Chain([s for _, s in prepare(block.block.named_children(), form)])
        self._sums = bool(block.use_res_connect)

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self._inner(x)
        return y + x if self._sums else y


class FeatureExtractor:
    """Backbone, feature pyramid and the RPN's head of a torchvision detection module."""

    def __init__(self, network: Any, form: Format) -> None:
        """network: in evaluation mode, on the CPU in float32; nothing of it is changed or kept.

        Raises TypeError for modules that there is no way to prepare.
        """
        body, head = network.backbone.body, network.rpn.head
        fpn = getattr(network.backbone, "fpn", None)
        self._form = form
        self._body = [
            (step, name in body.return_layers) for name, step in prepare(body.named_children(), form)
        ]
        self._lateral = [] if fpn is None else [_single_conv(block, form) for block in fpn.inner_blocks]
        self._smooth = [] if fpn is None else [_single_conv(block, form) for block in fpn.layer_blocks]
        self._hidden = [
            step for _, stack in prepare(head.conv.named_children(), form) for step in _links(stack)
        ]
        self._anchors = int(head.cls_logits.out_channels)
        self._scores = form.output_conv(_concat_convs(head.cls_logits, head.bbox_pred))
        self._upsample, self._subsample = (
            form.elementwise(_upsample),
            form.elementwise(lambda x: x[:, :, ::2, ::2]),
        )

    def __call__(self, images: Tensor) -> FeatureMaps:
        """images: [B, 3, H, W] normalised, channels last, both sides multiples of 32."""
        features, x = [], self._form.quantize_input(images)
        for step, wanted in self._body:
            x = step(x)
            if wanted:
                features.append(x)
        shapes = [(int(f.shape[2]), int(f.shape[3])) for f in features]
        if not self._smooth:
            table = features[-1].permute(0, 2, 3, 1).reshape(-1, int(features[-1].shape[1]))
            return self._score_levels(table, shapes, features)
        cells = sum(len(images) * h * w for h, w in shapes)
        table = torch.empty(
            (cells, self._smooth[0].out_channels), dtype=self._form.dtype, device=images.device
        )
        levels = self._pyramid(features, _level_views(table, len(images), shapes))
        del features, x
        # P6.
        levels.append(self._subsample(levels[-1]))
        shapes.append((int(levels[-1].shape[2]), int(levels[-1].shape[3])))
        return self._score_levels(table, shapes, levels)

    def _score_levels(self, table: Tensor, shapes: list[tuple[int, int]], levels: list[Any]) -> FeatureMaps:
        scored = [self._score_anchors(level) for level in levels]
        return FeatureMaps(
            table=table,
            shapes=shapes,
            objectness=[both[..., : self._anchors].flatten(1).float() for both in scored],
            deltas=[both[..., self._anchors :].reshape(len(both), -1, 4) for both in scored],
        )

    def _pyramid(self, features: list[Any], places: list[Tensor]) -> list[Any]:
        """P2 … P5, also in `places`, from C2 … C5 (Lin et al., "Feature Pyramid Networks", section 3)."""
        inner, levels = None, []
        for lateral, smooth, place in zip(self._lateral[::-1], self._smooth[::-1], places[::-1], strict=True):
            inner = lateral(features.pop(), residual=None if inner is None else self._upsample(inner))
            levels.append(smooth(inner, out=place))
        return levels[::-1]

    def _score_anchors(self, level: Any) -> Tensor:
        """[B, H * W, 5 A]: objectness of a cell's anchors, then their deltas."""
        for conv in self._hidden:
            level = conv(level)
        both: Tensor = self._scores(level)
        return both.permute(0, 2, 3, 1).flatten(1, 2)


def _concat_convs(*convs: nn.Conv2d) -> nn.Conv2d:
    """One 1×1 convolution that gives the channels of several."""
    weight, bias = (torch.cat([c.get_parameter(name).detach() for c in convs]) for name in ("weight", "bias"))
    both = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    both.weight, both.bias = nn.Parameter(weight), nn.Parameter(bias)
    return both


def _upsample(x: Tensor) -> Tensor:
    """Twice as high and wide, [B, C, 2 H, 2 W], each cell on the four that it covers."""
    batch, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(batch, height, 2, width, 2, channels)
    return rows.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def _single_conv(block: nn.Module, form: Format) -> Layer:
    """The one convolution that a block is."""
    ((_, step),) = prepare([("", block)], form)
    (conv,) = _links(step)
    return conv


def _links(step: Step) -> list[Layer]:
    links = step.links if isinstance(step, _Chain) else [step]
    convs = [link for link in links if isinstance(link, Layer)]
    if len(convs) < len(links):
        raise TypeError("only convolutions with norm and activation can be prepared here")
    return convs


def _level_views(table: Tensor, batch: int, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The parts of a table [cells, C] that hold feature maps of (height, width), each as [B, C, H, W]."""
    parts = torch.split(table, [batch * h * w for h, w in shapes])
    return [p.view(batch, h, w, -1).permute(0, 3, 1, 2) for p, (h, w) in zip(parts, shapes, strict=True)]
