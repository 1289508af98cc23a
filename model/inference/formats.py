"""Which numbers each part of the network computes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from model.errors import EngineError
from model.inference.calibration import is_calibrated, why_not_int8
from model.kernels.convolution import Format
from model.kernels.int8 import Int8Format
from model.kernels.int8_linear import Int8HeadFormat
from model.kernels.processor import is_fast_in_bfloat16

if TYPE_CHECKING:
    from model.zoo.model_file import Model


class Formats(NamedTuple):
    """Of the preprocessed images, of what makes feature maps of them, and of the heads."""

    images: Format
    features: Format
    heads: Format


def choose_formats(network: Any, model: Model, device: torch.device, precision: str) -> Formats:
    """The formats for a precision. In int8 the features are computed in bytes, the heads in bfloat16; or, where the
    processor is not fast in it, in float32 but for a box head's first layer that reads the pooled features.

    Args:
        network: torchvision's detector, or a skeleton of it.
        model: what is known of it, with the ranges that int8 needs.
        device: where it is to run.
        precision: as model.inference.devices.resolve_precision gives it.

    Raises EngineError for an architecture that cannot run in int8 and a model that is not calibrated for it.
    """
    if precision != "int8":
        same = Format(device, getattr(torch, precision))
        return Formats(same, same, same)
    if why := why_not_int8(model.architecture):
        raise EngineError(why)
    if not is_calibrated(network, model.ranges):
        raise EngineError(
            f"{model.name} has not been calibrated for int8; `maskserve calibrate MODEL IMAGE…` does it once, with "
            "some images of the kind that it will see, and writes the result into the model's file"
        )
    heads = (
        Format(device, torch.bfloat16) if is_fast_in_bfloat16() else Int8HeadFormat.from_ranges(model.ranges)
    )
    features = Int8Format.from_ranges(network, model.ranges, heads.dtype)
    return Formats(Format(device, torch.float32), features, heads)
