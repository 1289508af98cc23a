"""The second stage: RoIAlign, then class and box of every proposal, then masks of what is kept (Mask R-CNN, section 3).

Less is computed than torchvision computes: boxes only where a class scores high enough, masks only of instances that
the caller gets, and of those only their own class's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from model.inference.features import LEVELS, prepare
from model.inference.proposals import are_large, clip_boxes, decode_boxes
from model.kernels.convolution import Format, Linear
from model.kernels.nms import TRIED_PER_BOX, batched_nms, keep_mask, overlap_matrix, top_after_nms
from model.kernels.openmp import one_thread
from model.kernels.roi_align import Sampling, roi_align
from model.network.conventions import TORCHVISION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.inference.features import FeatureMaps
    from model.inference.limits import DetectionLimits
    from model.kernels.convolution import Step
    from model.network.conventions import Conventions

# Classes of proposals that score enough, in one image, in `detect_fixed`; trained models have some hundreds. Of models
# that find more than 400 instances it is TRIED_PER_BOX for each of them.
MAX_CANDIDATES = 1024
# Instances whose masks are computed at once: their features take 0.2 MB each at 256 channels in float32, and four times
# that once they are upsampled. On a CPU 64 are no faster than 40, and took 45 MB more for tiles of `nuclei`; 32 are
# slower by 8 %.
MASKS_AT_ONCE = {"cpu": 40, "cuda": 1024}
# On a CPU the last layers get multiples of so many masks; for a GPU instance_heads.py pads.
MASK_MULTIPLE = {"cpu": 8, "cuda": 1}

# Boxes [N, 4], scores [N], labels [N] (network classes).
Detections = tuple["Tensor", "Tensor", "Tensor"]


def boxes_together(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The boxes [R, 4] of each image as one [ΣR, 4], and [ΣR] int64 the number of the image that each is in."""
    # Not from a list of numbers, for whose upload a GPU's host would wait.
    image = [torch.full((len(b),), n, dtype=torch.int64, device=b.device) for n, b in enumerate(boxes)]
    return torch.cat(list(boxes)), torch.cat(image)


def pool_rois(maps: FeatureMaps, boxes: Tensor, image: Tensor, sampling: Sampling) -> Tensor:
    """Features of regions: [R, bins, bins, C].

    Args:
        maps: of the batch.
        boxes: [R, 4] xyxy, input pixels.
        image: [R] int64, the number of the image that each is in.
        sampling: how RoIAlign samples.
    """
    return roi_align(maps.table, maps.shapes[:LEVELS], boxes, image, sampling)


def sampling_of(pool: Any, bins: int, samples: int, *, aligned: bool, rules: Conventions) -> Sampling:
    """How RoIAlign samples.

    Args:
        pool: the network's own module.
        bins: a side of the result.
        samples: a side of a bin; 0: as many as it spans cells.
        aligned: whether boxes are moved by half a pixel.
        rules: the conventions of the model.

    Raises TypeError where the network's own module says otherwise.
    """
    known = tuple(pool.output_size), getattr(pool, "sampling_ratio", samples)
    if known != ((bins, bins), samples):
        raise TypeError(f"no way to prepare a RoIAlign of {known[0]} bins, sampled {known[1]} times a side")
    return Sampling(bins, samples, aligned, rules.level_rule, rules.first_stride)


class BoxHead:
    """Classes and boxes of proposals, as torchvision's RoIHeads or another framework's computes them."""

    def __init__(self, heads: Any, form: Format, conventions: Conventions = TORCHVISION) -> None:
        rules, pool = conventions, heads.box_roi_pool
        self._sampling = sampling_of(
            pool, rules.box_bins, rules.box_samples, aligned=rules.box_aligned, rules=rules
        )
        head, predictor = heads.box_head, heads.box_predictor
        self._convs: list[Step] = []
        self._averages = hasattr(head, "res5")
        layers: list[nn.Linear] = []
        # A C4's, whose features are the means of res5's.
        if self._averages:
            self._convs = [step for _, step in prepare([("res5", head.res5)], form)]
        elif hasattr(head, "fc6"):
            layers = [head.fc6, head.fc7]
        else:
            # FastRCNNConvFCHead: convolutions, then Flatten, then fully connected layers with ReLU.
            convs = [(name, m) for name, m in head.named_children() if isinstance(m, nn.Sequential)]
            self._convs = [step for _, step in prepare(convs, form)]
            layers = [m for m in head.children() if isinstance(m, nn.Linear)]
        weights = [layer.weight.detach() for layer in layers]
        scores_and_boxes = [
            (layer.weight.detach(), layer.bias) for layer in (predictor.cls_score, predictor.bbox_pred)
        ]
        if weights:
            weights[0] = self._channels_last(weights[0])
        elif not self._averages:
            scores_and_boxes = [(self._channels_last(weight), bias) for weight, bias in scores_and_boxes]
        self._layers = [
            form.pooled_linear(weight, layer.bias, "relu")
            if n == 0 and not self._convs
            else Linear(weight, layer.bias, form, "relu")
            for n, (weight, layer) in enumerate(zip(weights, layers, strict=True))
        ]
        # Scores and boxes are computed in float32 whatever the features are.
        exact = Format(form.device, torch.float32)
        self._class, self._box = (Linear(weight, bias, exact) for weight, bias in scores_and_boxes)
        weight, bias = scores_and_boxes[1]
        self._first_box = Linear(weight[4:8], bias[4:8], exact)
        self._weights = heads.box_coder.weights
        self._score_threshold, self._iou_threshold = float(heads.score_thresh), float(heads.nms_thresh)
        self._max_detections = int(heads.detections_per_img)
        self._max_candidates = max(MAX_CANDIDATES, int(TRIED_PER_BOX * self._max_detections))
        self._min_side, self._clamp_both = conventions.box_min_size, conventions.clamp_both

    def _channels_last(self, weight: Tensor) -> Tensor:
        """A layer's columns [O, C * bins * bins] in the order of pooled features, [O, bins * bins * C]."""
        return weight.view(len(weight), -1, self._sampling.bins**2).transpose(1, 2).flatten(1)

    def features(self, maps: FeatureMaps, proposals: Sequence[Tensor]) -> Tensor:
        """[ΣR, D] float32 from the proposals of each image, [R, 4] xyxy in input pixels."""
        x = pool_rois(maps, *boxes_together(proposals), self._sampling)
        if self._convs:
            x = x.permute(0, 3, 1, 2)
            for conv in self._convs:
                x = conv(x)
            x = x.permute(0, 2, 3, 1)
        x = x.flatten(1, 2).mean(1) if self._averages else x.flatten(1)
        for layer in self._layers:
            x = layer(x)
        return x.float()

    def extract(
        self, maps: FeatureMaps, proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """What `detect` reads: features [ΣR, D] and the boxes that they are of, [R, 4] of each image.

        Args:
            maps: of the batch.
            proposals: [R, 4] xyxy of each image, input pixels.
            sizes: (height, width) of each image in the input.
        """
        # A cascade's boxes are cut to them.
        del sizes
        return self.features(maps, proposals), proposals

    def _probabilities(self, features: Tensor) -> Tensor:
        """[R, classes] from features [R, D]."""
        return self._class(features).softmax(-1)

    def _deltas(self, features: Tensor) -> Tensor:
        """[R, 4 * classes] from features [R, D]."""
        return self._box(features)

    def decode_one(self, features: Tensor, proposals: Tensor) -> Tensor:
        """The first category's boxes [R, 4] from features [R, D] and proposals [R, 4]."""
        return self._decode(self._first_box(features), proposals)

    def _decode(self, deltas: Tensor, proposals: Tensor) -> Tensor:
        return decode_boxes(deltas, proposals, self._weights, clamp_both=self._clamp_both)

    def detect(
        self,
        features: Tensor,
        proposals: Tensor,
        size: tuple[int, int],
        *,
        score_threshold: float,
        allowed: Tensor,
        max_instances: int,
    ) -> Detections:
        """One image's instances by falling score, boxes in input pixels.

        Args:
            features: [R, D].
            proposals: [R, 4] xyxy in input pixels.
            size: (height, width) of the image in the input.
            score_threshold: instances score at least this.
            allowed: [classes] bool, the network's outputs that may be found.
            max_instances: the best-scoring ones are kept.
        """
        scores = self._probabilities(features)
        is_candidate = (scores > self._score_threshold) & (scores >= score_threshold) & allowed
        # Boxes that score less cannot suppress those that score more: to leave them out changes nothing.
        row, label = is_candidate.nonzero(as_tuple=True)
        has_candidate = is_candidate.any(1)
        deltas = self._deltas(features[has_candidate]).view(-1, scores.shape[1], 4)
        deltas = deltas[has_candidate.cumsum(0)[row] - 1, label]
        boxes = clip_boxes(self._decode(deltas, proposals[row]), size)
        valid = are_large(boxes, self._min_side)
        boxes, label, score = boxes[valid], label[valid], scores[row, label][valid]

        def run_nms(rows: Tensor) -> Tensor:
            return batched_nms(boxes[rows], score[rows], label[rows], self._iou_threshold)

        keep = top_after_nms(score, min(self._max_detections, max_instances), run_nms)
        return boxes[keep], score[keep], label[keep]

    def detect_fixed(
        self, features: Tensor, proposals: Tensor, is_proposal: Tensor, limits: DetectionLimits
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The same of all images in tensors of a fixed size, without waiting for the device.

        Returns boxes [B, D, 4], scores [B, D], labels [B, D], how many of them were found [B], and whether this is
        final [].

        Args:
            features: [B * R, D].
            proposals: [B, R, 4] xyxy in input pixels.
            is_proposal: [B, R] bool, which of these there are.
            limits: what is asked of each image.
        """
        batch = len(proposals)
        scores = self._probabilities(features).view(*is_proposal.shape, -1)
        is_candidate = (
            (scores > self._score_threshold)
            & (scores >= limits.score_threshold)
            & limits.allowed
            & is_proposal[..., None]
        )
        candidates = min(self._max_candidates, scores[0].numel())
        ranked = scores.masked_fill(~is_candidate, -1.0).flatten(1).topk(candidates, 1)
        row, label = ranked.indices // scores.shape[2], ranked.indices % scores.shape[2]
        deltas = self._deltas(features).view(batch, -1, 4)
        deltas = deltas.gather(1, ranked.indices[..., None].expand(-1, -1, 4))
        anchors = proposals.gather(1, row[..., None].expand(-1, -1, 4))
        boxes = torch.minimum(self._decode(deltas, anchors).clamp(min=0), limits.image_ends)
        valid = (ranked.values > 0) & are_large(boxes, self._min_side)
        # Many of an image at a time, to save memory.
        parts = torch.split(boxes, batch if candidates <= MAX_CANDIDATES else 1)
        overlaps = torch.cat([overlap_matrix(part, self._iou_threshold) for part in parts])
        keep, is_final = keep_mask(overlaps & (label[:, :, None] == label[:, None, :]), valid)
        # What is kept to the front, in its order, which is that of the scores.
        first = keep.int().sort(dim=1, descending=True, stable=True).indices[:, : self._max_detections]
        wanted = limits.max_instances.clamp(max=self._max_detections)
        counts = torch.minimum(keep.sum(1), wanted)
        # Worse candidates than these suppress none of them, and are not missed where there are enough.
        is_final = is_final & ((is_candidate.flatten(1).sum(1) <= candidates) | (counts == wanted)).all()
        return (
            boxes.gather(1, first[..., None].expand(-1, -1, 4)),
            ranked.values.gather(1, first),
            label.gather(1, first),
            counts,
            is_final,
        )


class MaskHead:
    """Mask probabilities of instances, each for its own class (Mask R-CNN, section 3, "class-specific masks")."""

    def __init__(self, heads: Any, form: Format, conventions: Conventions = TORCHVISION) -> None:
        rules, pool = conventions, heads.mask_roi_pool
        self._sampling = sampling_of(
            pool, rules.mask_bins, rules.mask_samples, aligned=rules.mask_aligned, rules=rules
        )
        predictor = heads.mask_predictor
        res5 = getattr(heads.box_head, "res5", None)
        modules = heads.mask_head.named_children() if res5 is None else [("res5", res5)]
        self._convs = [step for _, step in prepare(modules, form)]
        # 2×2 with stride 2: each of the four cells that it makes of one is a product of its own.
        up = predictor.conv5_mask
        if (up.kernel_size, up.stride, up.padding) != ((2, 2), (2, 2), (0, 0)):
            raise TypeError("no way to prepare this upsampling of a mask head")
        weight = up.weight.detach().permute(2, 3, 1, 0).flatten(0, 2)  # [2 * 2 * D, C]
        self._up = Linear(weight, up.bias.detach().repeat(4), form, "relu", rows=1)
        last = predictor.mask_fcn_logits
        self._class_weight = form.copy(last.weight[:, :, 0, 0])  # [classes, D]
        self._class_bias = Format(form.device, torch.float32).copy(last.bias)

    def __call__(self, maps: FeatureMaps, boxes: Sequence[Tensor], labels: Tensor) -> Tensor:
        """[N, side, side] float32.

        Args:
            maps: of the batch.
            boxes: of each image, N in all, [n, 4] xyxy in input pixels.
            labels: [N] int64, network classes.
        """
        together, image = boxes_together(boxes)
        count = MASKS_AT_ONCE[together.device.type]
        parts = (torch.split(x, count) for x in (together, image, labels))
        return torch.cat([self._grids(maps, *part) for part in zip(*parts, strict=True)])

    def _grids(self, maps: FeatureMaps, boxes: Tensor, image: Tensor, labels: Tensor) -> Tensor:
        """As above. image: [N] int64, which image of the batch each box is in."""
        x = pool_rois(maps, boxes, image, self._sampling).permute(0, 3, 1, 2)
        for conv in self._convs:
            x = conv(x)
        x = x.permute(0, 2, 3, 1)
        count, depth = len(x), self._class_weight.shape[1]
        # Padded for the reason that `Linear` has.
        spare = -count % MASK_MULTIPLE[x.device.type]
        x = self._up(functional.pad(x, (0,) * 7 + (spare,)) if spare else x)  # [N, bins, bins, 4 D]
        weight = self._class_weight[functional.pad(labels, (0, spare))][..., None]
        logits = torch.bmm(x.reshape(len(x), -1, depth), weight)[:count]
        bins = int(x.shape[1])
        logits = logits.view(count, bins, bins, 2, 2).transpose(2, 3)  # [N, y, y within, x, x within]
        logits = logits.reshape(count, 2 * bins, 2 * bins).float()
        with one_thread():
            grids: Tensor = (logits + self._class_bias[labels][:, None, None]).sigmoid()
        return grids
