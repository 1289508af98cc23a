"""The forward pass: images → Instances (Mask R-CNN, section 3: the RPN proposes, RoIAlign and the heads decide).

Works on torchvision's modules and gives torchvision's answers, but leaves out what nobody asked for: instances
below the caller's score threshold or outside his categories never reach the mask head, and masks are never pasted
(model/masks.py encodes them from the 28×28 grid).
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops.poolers import initLevelMapper

from model import weights, zoo
from model.errors import DeviceFailed, OutOfDeviceMemory
from model.instances import Instances, Options
from model.network import has_masks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

PRECISIONS = ("float32",)

# How torch says that memory ran out where it has no class for it: the CPU's allocator, the CUDA driver outside of
# torch's allocator, cuBLAS and cuDNN.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED")

STRIDES = (4, 8, 16, 32)  # of P2 … P5, which RoIAlign reads
DIVISIBLE = 32  # both sides of the padded input are multiples of the coarsest level's stride

Detections = tuple["Tensor", "Tensor", "Tensor"]  # boxes [N, 4], scores [N], labels [N] (network classes)


class EngineError(ValueError):
    """The engine cannot do what was asked: an unknown device or precision, no images, or images that fit no batch."""


class Engine:
    """A loaded model on one device. Belongs to one thread at a time.

    Instances that score 0.05 or less are never found: that is the threshold at which torchvision stops looking.
    """

    def __init__(self, network: nn.Module, model: zoo.Model, device: torch.device, precision: str) -> None:
        """network: in evaluation mode; it is moved to the device."""
        _check_precision(precision)
        self.model, self.device, self.precision = model, device, precision
        self._network: Any = network.to(device).to(memory_format=torch.channels_last).requires_grad_(False)
        self._masks = has_masks(network)
        self._label_ids = model.label_ids()
        self._named = torch.zeros(model.architecture.classes, dtype=torch.bool)  # [classes] has a category
        self._named[list(model.labels)] = True
        _fix_strides(self._network.roi_heads)

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
        _check_precision(precision)  # before minutes may go into fetching weights
        chosen = _device(device)
        folder = weights_folder if weights_folder is not None else weights.default_folder()
        network, model = zoo.load(name, folder)
        return cls(network, model, chosen, precision)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image is resized to, as torchvision computes it (in double precision).

        One pixel where torchvision rounds down to none and fails: images over 1333 times as long as wide.
        """
        a = self.model.architecture
        scale = min(a.min_size / min(height, width), a.max_size / max(height, width))
        return max(1, int(height * scale)), max(1, int(width * scale))

    def padded_shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the network's input for an image: only images that agree in it share a batch."""
        h, w = self.input_size(height, width)
        return -(-h // DIVISIBLE) * DIVISIBLE, -(-w // DIVISIBLE) * DIVISIBLE

    def warm_up(self) -> None:
        """Run once on a blank image, so that the first request pays for no initialisation; fails if the device does."""
        a = self.model.architecture
        blank = np.zeros((a.min_size, a.min_size * 4 // 3, 3), np.uint8)
        self.segment([blank], [Options(score_threshold=0.0)])
        # Nothing is found in it, so the mask head has one box to itself.
        height, width = self.padded_shape(*blank.shape[:2])
        with torch.inference_mode():
            features = {
                str(n): torch.zeros(1, a.fpn_channels, height // stride, width // stride, device=self.device)
                for n, stride in enumerate(STRIDES)
            }
            box = torch.tensor([[0.0, 0.0, width, height]], device=self.device)
            one = torch.ones(1, device=self.device)
            inputs = ImageList(torch.empty(0), [(height, width)])
            self._mask_grids(inputs, features, [(box, one, one.to(torch.int64))], [Options()])

    def segment(self, images: Sequence[np.ndarray], options: Sequence[Options]) -> list[Instances]:
        """The instances in each of a batch of images.

        images: each [H, W, 3] uint8, RGB, all of one padded shape. options: one for each image.
        Raises EngineError for images that do not fit together, OutOfDeviceMemory, DeviceFailed.
        """
        if len(options) != len(images):
            raise EngineError(f"{len(images)} images came with {len(options)} options")
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or image.dtype != np.uint8:
                raise EngineError(f"an image is [H, W, 3] uint8, not {list(image.shape)} {image.dtype}")
        if len({self.padded_shape(*image.shape[:2]) for image in images}) > 1:
            raise EngineError("the images of a batch must have the same padded shape")
        if not images:
            return []
        try:
            return self._forward(images, options)
        except Exception as error:
            device_error = _device_error(error, self.device)
            if device_error is None:
                raise
            # The traceback holds the frames of the failed attempt, and they its tensors.
            traceback.clear_frames(error.__traceback__)
            if isinstance(device_error, OutOfDeviceMemory):
                torch.cuda.empty_cache()
            raise device_error from error

    @torch.inference_mode()
    def _forward(self, images: Sequence[np.ndarray], options: Sequence[Options]) -> list[Instances]:
        inputs = self._inputs(images)
        features = self._network.backbone(inputs.tensors)
        found = [
            self._chosen(detections, wanted)
            for detections, wanted in zip(self._detect(inputs, features), options, strict=True)
        ]
        grids = self._mask_grids(inputs, features, found, options)
        sizes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
        return [
            self._instances(detections, grid, size, resized)
            for detections, grid, size, resized in zip(found, grids, sizes, inputs.image_sizes, strict=True)
        ]

    def _inputs(self, images: Sequence[np.ndarray]) -> ImageList:
        """Normalised, resized and padded: [B, 3, H, W] float32, both sides multiples of 32."""
        transform = self._network.transform
        resized = []
        for image in images:
            ours = np.require(
                image, requirements=("C", "W")
            )  # torch takes no read-only array without a warning
            pixels = torch.from_numpy(ours).to(self.device).permute(2, 0, 1).float() / 255
            size = self.input_size(*image.shape[:2])
            resized.append(
                functional.interpolate(
                    transform.normalize(pixels)[None], size, mode="bilinear", align_corners=False
                )[0]
            )
        padded: Tensor = transform.batch_images(resized, size_divisible=DIVISIBLE)
        sizes = [(int(pixels.shape[1]), int(pixels.shape[2])) for pixels in resized]
        return ImageList(padded.contiguous(memory_format=torch.channels_last), sizes)

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
        # torchvision's COCO models have outputs that are no category, such as 12, which COCO skips.
        keep = (scores >= wanted.score_threshold) & self._named.to(labels.device)[labels]
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
    if str(device) != name:  # torch takes the number modulo 256
        raise EngineError(f"no such device: {name!r}; there are cpu, cuda and cuda:N")
    if device.type not in ("cpu", "cuda"):
        raise EngineError(f"device {name!r} is not supported; cpu, cuda and cuda:N are")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise EngineError(f"device {name!r} was asked for, but {count} CUDA devices are usable here")
    return device


def _check_precision(name: str) -> None:
    if name not in PRECISIONS:
        raise EngineError(f"no such precision: {name!r}; there is {', '.join(PRECISIONS)}")


def _fix_strides(heads: Any) -> None:
    """Tell torchvision's RoIAlign the strides of P2 … P5.

    Else it guesses them from the first image, for good: a first image that is 20 times as wide as high makes it
    take P2's stride for 2, and every later answer is wrong.
    """
    for pool in (heads.box_roi_pool, heads.mask_roi_pool):
        if pool is not None:
            pool.scales = [1 / stride for stride in STRIDES]
            pool.map_levels = initLevelMapper(2, 5)


def _device_error(error: Exception, device: torch.device) -> OutOfDeviceMemory | DeviceFailed | None:
    """What the worker acts on, if it was the device that raised the error."""
    if isinstance(error, MemoryError):
        return OutOfDeviceMemory("the process has no more memory")
    if not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in _OUT_OF_MEMORY):
        return OutOfDeviceMemory(text)
    if device.type == "cuda" and "CUDA error" in text:
        return DeviceFailed(text)
    return None
