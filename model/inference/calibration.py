"""What a network's activations reach on a few images: the ranges that int8 quantises by (model/kernels/int8.py)."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from model.data import DatasetError
from model.inference.features import FeatureExtractor
from model.inference.preprocess import Preprocessor
from model.kernels.convolution import Conv, Format, Layer
from model.network.architecture import MOBILENETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy as np
    from torch import Tensor

    from model.data import Dataset, Sample
    from model.kernels.quantization import Ranges
    from model.network.architecture import Architecture

# Enough: half as many of the bundled model's scenes change no convolution's range by more than 6 %.
MAX_IMAGES = 64

# Of an image's results the part that may lie beyond either end of the range, and is cut off there: a few outliers would
# make every other number coarser. Calibrated on 32 images, the bundled model lost 0.05 points of box AP on 100 held-out
# scenes with it, 0.55 with the whole range.
OUTLIERS = 1e-4
# Results of a convolution that are looked at in an image, evenly spread.
MAX_SAMPLES = 1 << 18

_INT8 = "int8 is for ResNet, ResNeXt and VGG-16 backbones with a pyramid that has no GroupNorm"


def why_not_int8(architecture: Architecture) -> str:
    """Why an architecture cannot run in int8 and what it can run in, or nothing if it can.

    Hard swish, squeeze-and-excitation, GroupNorm in the pyramid, single maps and the fallback cannot.
    """
    a = architecture
    if a.single_map or not a.pyramid:
        kind = f"a {a.backbone} {a.single_map.upper() or 'C4'}, which has one map and no pyramid,"
    elif a.fpn_norm and a.head_norm == "group":
        kind = f"a {a.backbone} with GroupNorm in its pyramid"
    elif a.backbone in MOBILENETS or not a.is_standard:
        kind = a.backbone
    else:
        return ""
    return f"{kind} cannot run in int8; {_INT8}. Run it with --precision bfloat16, which needs no calibration"


def is_calibrated(network: Any, ranges: Ranges) -> bool:
    """Whether every convolution of a network that needs a range has one."""
    fpn = network.backbone.fpn
    parts = {"backbone.body": network.backbone.body, "rpn.head.conv": network.rpn.head.conv}
    parts |= {"backbone.fpn.inner_blocks": fpn.inner_blocks, "backbone.fpn.layer_blocks": fpn.layer_blocks}
    return all(
        f"{part}.{name}" in ranges
        for part, parent in parts.items()
        for name, module in parent.named_modules()
        if isinstance(module, nn.Conv2d)
    )


@dataclass(frozen=True, slots=True)
class _RecordingFormat(Format):
    """Ordinary convolutions that note what their results reach."""

    names: Mapping[nn.Module, str] = field(default_factory=dict)
    seen: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def conv(self, conv: nn.Conv2d, norm: nn.Module | None = None, activation: str = "none") -> Layer:
        """One that notes."""
        return _RecordingConv(conv, self, norm, activation)

    def output_conv(self, conv: nn.Conv2d) -> Layer:
        """One that does not: its results stay floats."""
        return Conv(conv, self)


class _RecordingConv(Conv):
    def __init__(
        self, conv: nn.Conv2d, form: _RecordingFormat, norm: nn.Module | None, activation: str
    ) -> None:
        super().__init__(conv, form, norm=norm, activation=activation)
        self._seen = form.seen[form.names[conv]]

    def __call__(self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        y = super().__call__(x, residual, out)
        self._seen.append(_range_of(y))
        return y


def _range_of(x: Tensor) -> tuple[float, float]:
    numbers = x.flatten()
    numbers = numbers[:: -(-len(numbers) // MAX_SAMPLES)]
    inside = 1 + int(OUTLIERS * len(numbers))
    low, high = (numbers.topk(inside, largest=largest).values[-1] for largest in (False, True))
    return float(low), float(high)


def take_samples(dataset: Dataset) -> Iterator[Sample]:
    """At most MAX_IMAGES of a dataset's, evenly spread, without damaged ones."""
    count = min(MAX_IMAGES, len(dataset))
    for n in range(count):
        with contextlib.suppress(DatasetError):
            yield dataset[n * len(dataset) // count]


@torch.inference_mode()
def measure_ranges(network: Any, architecture: Architecture, images: Iterable[np.ndarray]) -> Ranges:
    """The range of each convolution's results, with activation and sum, averaged over the images.

    Args:
        network: torchvision's modules or a skeleton, in evaluation mode.
        architecture: of the network.
        images: [H, W, 3] uint8, RGB, each.

    Raises ValueError where there are no images or an architecture is not for int8.
    """
    if why := why_not_int8(architecture):
        raise ValueError(why)
    form = _RecordingFormat(
        torch.device("cpu"), torch.float32, {m: name for name, m in network.named_modules()}
    )
    resize = architecture.conventions.resize
    preprocess, extract = Preprocessor(network.transform, form, resize), FeatureExtractor(network, form)
    for image in images:
        size, padded = architecture.input_size(*image.shape[:2]), architecture.padded_shape(*image.shape[:2])
        extract(preprocess([image], [size], padded))
    if not any(form.seen.values()):
        raise ValueError("without images there is nothing to measure")
    ends = {
        name: torch.tensor(seen, dtype=torch.float64).mean(0).tolist() for name, seen in form.seen.items()
    }
    # Five digits are more than a byte's steps need, and keep the file free of noise in the last ones.
    return {name: (float(f"{low:.5g}"), float(f"{high:.5g}")) for name, (low, high) in ends.items()}
