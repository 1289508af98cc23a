"""The forward pass: images → Instances (Mask R-CNN, section 3: the RPN proposes, RoIAlign and the heads decide).

Works on torchvision's modules and gives torchvision's answers, but leaves out what nobody asked for: instances
below the caller's score threshold or outside his categories never reach the mask head, and masks are never pasted
(model/masks.py encodes them from the 28×28 grid).
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchvision.models.detection.transform import resize_boxes

from model import weights, zoo
from model.errors import DeviceFailed, OutOfDeviceMemory
from model.instances import Instances, Options
from model.network import has_masks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor, nn
    from torchvision.models.detection.image_list import ImageList

# What an out-of-memory error of the CPU's allocator says; CUDA's has a class of its own.
_CPU_OUT_OF_MEMORY = "DefaultCPUAllocator"

DIVISIBLE = 32  # both sides of the padded input are multiples of the coarsest level's stride

Detections = tuple["Tensor", "Tensor", "Tensor"]  # boxes [N, 4], scores [N], labels [N] (network classes)


class EngineError(ValueError):
    """The engine cannot do what was asked: an unknown device or precision, or images of unlike padded shapes."""


class Engine:
    """A loaded model on one device. Belongs to one thread at a time.

    Instances that score 0.05 or less are never found: that is the threshold at which torchvision stops looking.
    """

    def __init__(self, network: nn.Module, model: zoo.Model, device: torch.device, precision: str) -> None:
        """network: in evaluation mode; it is moved to the device."""
        if precision != "float32":
            raise EngineError(f"no such precision: {precision!r}; there is float32")
        self.model, self.device, self.precision = model, device, precision
        self._network: Any = network.to(device).to(memory_format=torch.channels_last).requires_grad_(False)
        self._masks = has_masks(network)
        self._label_ids = model.label_ids()

    @classmethod
    def load(
        cls,
        name: str = zoo.AUTO,
        *,
        device: str = "auto",
        precision: str = "float32",
        weights_folder: Path | None = None,
    ) -> Engine:
        """An engine for a model by its name in the zoo or the path of its file.

        device: "cpu", "cuda", "cuda:1" …, or "auto": a GPU if there is one. weights_folder: where downloaded
        weights lie; model.weights.default_folder() if None.
        Raises EngineError, model.zoo.ModelError, model.download.WeightsError.
        """
        chosen = _device(device)
        folder = weights_folder if weights_folder is not None else weights.default_folder()
        network, model = zoo.load(name, folder)
        return cls(network, model, chosen, precision)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image is resized to, exactly as torchvision computes it in float32."""
        a = self.model.architecture
        scale = np.float32(min(a.min_size / min(height, width), a.max_size / max(height, width)))
        return max(1, math.floor(height * float(scale))), max(1, math.floor(width * float(scale)))

    def padded_shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the network's input for an image: only images that agree in it share a batch."""
        h, w = self.input_size(height, width)
        return -(-h // DIVISIBLE) * DIVISIBLE, -(-w // DIVISIBLE) * DIVISIBLE

    def warm_up(self) -> None:
        """Run once on a blank image, so that the first request pays for no initialisation; fails if the device does."""
        side = self.model.architecture.min_size
        self.segment([np.zeros((side, side * 4 // 3, 3), np.uint8)], [Options(score_threshold=0.0)])

    def segment(self, images: Sequence[np.ndarray], options: Sequence[Options]) -> list[Instances]:
        """The instances in each of a batch of images.

        images: each [H, W, 3] uint8, RGB, all of one padded shape. options: one for each image.
        Raises EngineError for images that do not fit together, OutOfDeviceMemory, DeviceFailed.
        """
        sizes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
        if len(options) != len(images):
            raise EngineError(f"{len(images)} images came with {len(options)} options")
        if len({self.padded_shape(*size) for size in sizes}) > 1:
            raise EngineError("the images of a batch must have the same padded shape")
        if not images:
            return []
        with torch.inference_mode(), _typed_errors(self.device):
            inputs = self._inputs(images)
            features = self._network.backbone(inputs.tensors)
            found = [
                self._chosen(detections, wanted)
                for detections, wanted in zip(self._detect(inputs, features), options, strict=True)
            ]
            grids = self._mask_grids(inputs, features, found, options)
            return [
                self._instances(detections, grid, size, resized)
                for detections, grid, size, resized in zip(
                    found, grids, sizes, inputs.image_sizes, strict=True
                )
            ]

    def _inputs(self, images: Sequence[np.ndarray]) -> ImageList:
        """Resized, normalised and padded: [B, 3, H, W] float32, both sides multiples of 32."""
        pixels = [
            torch.from_numpy(np.ascontiguousarray(image)).to(self.device).permute(2, 0, 1).float() / 255
            for image in images
        ]
        inputs: ImageList = self._network.transform(pixels)[0]
        inputs.tensors = inputs.tensors.contiguous(memory_format=torch.channels_last)
        return inputs

    def _detect(self, inputs: ImageList, features: dict[str, Tensor]) -> list[Detections]:
        """Both stages up to the boxes; per image, in descending score, boxes in input pixels."""
        heads = self._network.roi_heads
        proposals, _ = self._network.rpn(inputs, features)
        rois = heads.box_head(heads.box_roi_pool(features, proposals, inputs.image_sizes))
        logits, deltas = heads.box_predictor(rois)
        boxes, scores, labels = heads.postprocess_detections(logits, deltas, proposals, inputs.image_sizes)
        return list(zip(boxes, scores, labels, strict=True))

    def _chosen(self, detections: Detections, wanted: Options) -> Detections:
        """Those that the caller wants, still in descending score."""
        boxes, scores, labels = detections
        keep = scores >= wanted.score_threshold
        if wanted.categories is not None:
            keep &= torch.isin(
                self._label_ids.to(labels.device)[labels],
                torch.tensor(sorted(wanted.categories), dtype=torch.int64, device=labels.device),
            )
        best = keep.nonzero()[:, 0][: wanted.max_instances]
        return boxes[best], scores[best], labels[best]

    def _mask_grids(
        self,
        inputs: ImageList,
        features: dict[str, Tensor],
        found: list[Detections],
        options: Sequence[Options],
    ) -> list[Tensor | None]:
        """For each image [N, 28, 28] float32 probabilities of the instances' own classes, where they are wanted."""
        wanted = [self._masks and choice.masks for choice in options]
        counts = [len(boxes) if wish else 0 for (boxes, _, _), wish in zip(found, wanted, strict=True)]
        if not sum(counts):
            empty = torch.zeros((0, 28, 28))
            return [empty if wish else None for wish in wanted]
        heads = self._network.roi_heads
        boxes = [boxes[:count] for (boxes, _, _), count in zip(found, counts, strict=True)]
        labels = torch.cat([labels[:count] for (_, _, labels), count in zip(found, counts, strict=True)])
        rois = heads.mask_head(heads.mask_roi_pool(features, boxes, inputs.image_sizes))
        logits = heads.mask_predictor(rois)  # [ΣN, classes, 28, 28]
        grids = logits[torch.arange(len(labels), device=labels.device), labels].sigmoid().float().cpu()
        return [grid if wish else None for grid, wish in zip(torch.split(grids, counts), wanted, strict=True)]

    def _instances(
        self, detections: Detections, grid: Tensor | None, size: tuple[int, int], resized: tuple[int, int]
    ) -> Instances:
        boxes, scores, labels = detections
        upright = resize_boxes(boxes, list(resized), list(size))  # input pixels → pixels of the image
        return Instances(size, upright.cpu(), scores.cpu(), self._label_ids[labels.cpu()], grid)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise EngineError(f"no such device: {name!r}; there are cpu, cuda and cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise EngineError(f"device {name!r} is not supported; cpu, cuda and cuda:N are")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise EngineError(f"device {name!r} was asked for, but {count} CUDA devices are usable here")
    return device


@contextmanager
def _typed_errors(device: torch.device) -> Iterator[None]:
    """Turn what torch raises when the device is at fault into the two errors that the worker acts on."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfDeviceMemory(str(error)) from error
    except MemoryError as error:
        raise OutOfDeviceMemory("the process has no more memory") from error
    except RuntimeError as error:
        if _CPU_OUT_OF_MEMORY in str(error):
            raise OutOfDeviceMemory(str(error)) from error
        if device.type == "cuda" and "CUDA error" in str(error):
            raise DeviceFailed(str(error)) from error
        raise
