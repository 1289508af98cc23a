"""The forward pass: images → Instances (Mask R-CNN, section 3: the RPN proposes, RoIAlign and the heads decide).

Gives torchvision's answers from parts that are prepared for speed (features.py, proposals.py, roi_heads.py), and leaves
out what was not asked for: instances below the caller's score threshold or outside the wanted categories never reach
the mask head, and masks are never pasted (model/masks/ encodes them from the 28×28 grid). docs/engine.md is the tour.
"""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from model.errors import EngineError, OutOfDeviceMemory, device_error
from model.inference.cascade import CascadeBoxHead
from model.inference.cuda_graphs import CudaGraphCache
from model.inference.devices import find_device, resolve_precision, use_device
from model.inference.features import FeatureExtractor
from model.inference.fixed_size import detect_without_sync
from model.inference.formats import choose_formats
from model.inference.instance_heads import keypoints_of_all, masks_of_all
from model.inference.keypoint_head import KeypointHead
from model.inference.limits import DetectionLimits
from model.inference.preprocess import Preprocessor
from model.inference.proposals import ProposalGenerator
from model.inference.results import to_instances
from model.inference.roi_heads import BoxHead, MaskHead
from model.instances import Options
from model.kernels import nms
from model.kernels.openmp import can_share, match_threads, use_threads
from model.zoo import catalogue as weights
from model.zoo import model_file, zoo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from model.inference.fallback import TorchvisionFallback
    from model.inference.features import FeatureMaps
    from model.inference.keypoint_head import Keypoints
    from model.inference.roi_heads import Detections
    from model.instances import Instances

log = logging.getLogger(__name__)


class Engine:
    """A loaded model on one device. On a CPU several threads may use it at once, on a GPU one at a time.

    Instances that score 0.05 or less are never found: that is the threshold at which torchvision stops looking.
    batches: whether the images of a batch run together, as on a GPU, or one after the other, as on a CPU.
    """

    def __init__(
        self, network: nn.Module, model: model_file.Model, device: torch.device, precision: str = "float32"
    ) -> None:
        """Prepare a network. What is kept of it is a copy.

        Args:
            network: trained, on the CPU: torchvision's detector, or a skeleton of it (model/network/skeleton.py).
            model: what is known of it.
            device: where it is to run.
            precision: one of model.inference.devices.PRECISIONS.

        Raises EngineError where the device cannot compute in that precision, a kernel cannot be loaded, or OpenMP is
        told what makes results wrong.
        """
        match_threads()
        self.model, self.device = model, device
        self.batches = device.type == "cuda"
        self.precision = resolve_precision(precision, device)
        parts: Any = network
        formats = choose_formats(parts, model, device, self.precision)
        form = formats.heads
        conventions = self._conventions = model.architecture.conventions
        self._preprocess = Preprocessor(parts.transform, formats.images, conventions.resize)
        self._label_ids = model.label_ids()
        # [classes]. torchvision's COCO models have outputs that are no category, such as 12, which COCO skips.
        self._is_category = torch.zeros(model.architecture.classes, dtype=torch.bool)
        self._is_category[list(model.labels)] = True
        self._fallback: TorchvisionFallback | None = None
        self._mask_head: MaskHead | None = None
        self._keypoint_head: KeypointHead | None = None
        if not model.architecture.is_standard:
            from model.inference.fallback import TorchvisionFallback  # noqa: PLC0415 - imports torchvision

            self._fallback = TorchvisionFallback(network, form)
            return
        nms.prepare(device)
        extract = FeatureExtractor(parts, formats.features)
        self._extract: Callable[[Tensor], FeatureMaps] = CudaGraphCache(extract) if self.batches else extract
        self._propose = ProposalGenerator(parts.rpn, device, conventions)
        box_head = CascadeBoxHead if model.architecture.box_stages > 1 else BoxHead
        self._box_head = box_head(parts.roi_heads, form, conventions)
        if model.architecture.mask_convs:
            self._mask_head = MaskHead(parts.roi_heads, form, conventions)
        if model.architecture.keypoints:
            self._keypoint_head = KeypointHead(parts.roi_heads, form, conventions)

    @classmethod
    def load(
        cls,
        name: str = zoo.AUTO,
        *,
        device: str = "auto",
        precision: str = "float32",
        weights_folder: Path | None = None,
    ) -> Engine:
        """An engine for a model by its name in the zoo or the path of its file, ours or another framework's.

        Args:
            name: as model.zoo.zoo.load takes it, or the path of another framework's checkpoint.
            device: "cpu", "cuda", "cuda:1" …, or "auto": a GPU if there is one.
            precision: one of model.inference.devices.PRECISIONS.
            weights_folder: where downloaded weights lie; model.zoo.catalogue.default_folder() if None.

        Raises EngineError, model.zoo.model_file.ModelError, model.zoo.errors.WeightsError.
        """
        chosen = find_device(device)
        # Complains before minutes go into fetching weights.
        resolve_precision(precision, chosen)
        folder = weights_folder if weights_folder is not None else weights.default_folder()
        path = Path(name).expanduser()
        if path.suffix in model_file.CHECKPOINTS and path.exists():
            from model.importing.importer import load_checkpoint  # noqa: PLC0415 - models of ours do without

            network, model = load_checkpoint(path)
        else:
            network, model = zoo.load(name, folder, runnable=False)
        return cls(network, model, chosen, precision)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image is resized to."""
        return self.model.architecture.input_size(height, width)

    def padded_shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the network's input for an image: only images that agree in it share a batch."""
        return self.model.architecture.padded_shape(height, width)

    def warm_up(self) -> None:
        """Run once what is slow the first time; fails if the device does.

        On a GPU: landscapes and portraits of 4:3, alone and in batches of 2, 4 and 8, as far as its memory goes.
        """
        shorter = self.model.architecture.min_size
        blank = np.zeros((shorter, shorter * 4 // 3, 3), np.uint8)
        self._warm_up_with([blank])
        if not self.batches:
            return
        try:
            for count in (1, 2, 4, 8):
                for image in (blank, blank.swapaxes(0, 1)):
                    self._warm_up_with([image] * count)
        except OutOfDeviceMemory as error:
            log.info("not warmed up for larger batches: %s", error)
            self._warm_up_with([blank])

    def _warm_up_with(self, images: Sequence[np.ndarray]) -> None:
        """Run a batch of blank images of one shape."""
        with use_device(self.device, self.precision):
            self._segment_or_raise(images, [Options(score_threshold=0.0)] * len(images), blank=True)

    def _run_heads(self, maps: FeatureMaps, padded: tuple[int, int]) -> None:
        """Nothing is found in a blank image, so the heads have one box to themselves, all of the first image."""
        box = torch.tensor([[0.0, 0.0, padded[1], padded[0]]], device=self.device)
        one = box, torch.ones(1, device=self.device), torch.ones(1, dtype=torch.int64, device=self.device)
        masks_of_all(self._mask_head, maps, [one], [Options()], side=1)
        keypoints_of_all(self._keypoint_head, maps, [one], [Options()])

    def device_memory(self) -> dict[str, int]:
        """Bytes of the GPU's memory by kind: "allocated" to tensors, "reserved" by torch; nothing for a CPU."""
        if self.device.type != "cuda":
            return {}
        return {
            "allocated": torch.cuda.memory_allocated(self.device),
            "reserved": torch.cuda.memory_reserved(self.device),
        }

    @property
    def cores(self) -> int:
        """Of the CPU, which passes that run at once may share; 1 where one has all, as with torchvision's modules."""
        shared = self.device.type == "cpu" and self._fallback is None and can_share()
        return torch.get_num_threads() if shared else 1

    def segment(
        self, images: Sequence[np.ndarray], options: Sequence[Options], *, cores: int | None = None
    ) -> list[Instances]:
        """The instances in each of a batch of images.

        Args:
            images: each [H, W, 3] uint8, RGB, all of one padded shape.
            options: one for each image.
            cores: of the CPU, for this batch while others have the rest; None for all. The answer is the same.

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
        with use_device(self.device, self.precision), use_threads(cores or torch.get_num_threads()):
            return self._segment_or_raise(images, options)

    def _segment_or_raise(
        self, images: Sequence[np.ndarray], options: Sequence[Options], *, blank: bool = False
    ) -> list[Instances]:
        """blank: nothing is found, so the heads are run with a box of their own."""
        try:
            if self.batches:
                return self._forward(images, options, blank=blank)
            # A batch would be no faster, and no answer can depend on the other images, not even in the last bit.
            return [
                found
                for image, wanted in zip(images, options, strict=True)
                for found in self._forward([image], [wanted], blank=blank)
            ]
        except Exception as error:
            failure = device_error(error, self.device)
            if failure is None:
                raise
            # The traceback holds the frames of the failed attempt, and they its tensors.
            traceback.clear_frames(error.__traceback__)
            if isinstance(failure, OutOfDeviceMemory):
                if self._fallback is None and isinstance(self._extract, CudaGraphCache):
                    self._extract.clear()
                torch.cuda.empty_cache()
            raise failure from error

    @torch.inference_mode()
    def _forward(
        self, images: Sequence[np.ndarray], options: Sequence[Options], *, blank: bool = False
    ) -> list[Instances]:
        shapes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
        sizes = [self.input_size(*shape) for shape in shapes]
        padded = self.padded_shape(*shapes[0])
        allowed = torch.stack([self._allowed_classes(o) for o in options])
        if self._fallback is not None:
            pixels = self._preprocess(images, sizes, padded)
            detections_of_all, grids = self._fallback(pixels, sizes, allowed.to(self.device), options)
            return [
                self._instances(_to_cpu(detections), grid, shape, size)
                for detections, grid, shape, size in zip(detections_of_all, grids, shapes, sizes, strict=True)
            ]
        # A cascade's boxes depend on one another, and it asks the device for their number anyway.
        at_once = self.batches and self.model.architecture.box_stages == 1
        limits = DetectionLimits(sizes, options, allowed, self.device) if at_once else None
        maps = self._extract(self._preprocess(images, sizes, padded))
        found = None
        if limits is not None:
            found = detect_without_sync(self._propose, self._box_head, maps, padded, limits)
        on_device, on_host = found or self._detect(maps, padded, sizes, options, allowed)
        side, pad = self.model.architecture.mask_side, self.batches
        grids = masks_of_all(self._mask_head, maps, on_device, options, side=side, pad=pad)
        keypoints = keypoints_of_all(self._keypoint_head, maps, on_device, options, pad=pad)
        if blank:
            self._run_heads(maps, padded)
        return [self._instances(*each) for each in zip(on_host, grids, shapes, sizes, keypoints, strict=True)]

    def _detect(
        self,
        maps: FeatureMaps,
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
        options: Sequence[Options],
        allowed: Tensor,
    ) -> tuple[list[Detections], list[Detections]]:
        """Each image's detections on the device, and the same on the CPU."""
        proposals = self._propose(maps, padded, sizes)
        together, boxes_of_all = self._box_head.extract(maps, proposals, sizes)
        features = torch.split(together, [len(boxes) for boxes in boxes_of_all])
        found = [
            self._box_head.detect(
                rois,
                boxes,
                size,
                score_threshold=wanted.score_threshold,
                allowed=wanted_classes,
                max_instances=wanted.limit,
            )
            for rois, boxes, size, wanted, wanted_classes in zip(
                features, boxes_of_all, sizes, options, allowed.to(self.device), strict=True
            )
        ]
        return found, [_to_cpu(detections) for detections in found]

    def _allowed_classes(self, wanted: Options) -> Tensor:
        """[classes] bool: the network's outputs that the caller wants."""
        allowed = self._is_category
        if wanted.categories is not None:
            chosen = torch.tensor(sorted(wanted.categories), dtype=torch.int64)
            allowed = allowed & torch.isin(self._label_ids, chosen)
        return allowed

    def _instances(
        self,
        detections: Detections,
        grid: Tensor | None,
        shape: tuple[int, int],
        size: tuple[int, int],
        keypoints: Keypoints | None = None,
    ) -> Instances:
        return to_instances(
            detections, grid, (shape, size), self._label_ids, self._conventions, keypoints=keypoints
        )


def _to_cpu(detections: Detections) -> Detections:
    boxes, scores, labels = detections
    return boxes.cpu(), scores.cpu(), labels.cpu()
