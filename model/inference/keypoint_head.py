"""Keypoints of instances: one heatmap for each, and in it the place of the highest value (Mask R-CNN, section 5).

Computed as torchvision's `heatmaps_to_keypoints` does, which Detectron2 has too: a heatmap is enlarged to the box's
pixels by bicubic interpolation, and a keypoint lies in the middle of the highest of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from model.inference.features import prepare
from model.inference.roi_heads import boxes_together, pool_rois, sampling_of
from model.kernels.convolution import Format, Linear
from model.kernels.openmp import one_thread
from model.network.conventions import TORCHVISION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.inference.features import FeatureMaps
    from model.network.conventions import Conventions

# Places [N, K, 2] of x and y, scores [N, K].
Keypoints = tuple["Tensor", "Tensor"]

# Instances at once: 0.4 MB of features each at 512 channels in float32.
AT_ONCE = {"cpu": 32, "cuda": 512}
# After the transposed convolution.
UPSAMPLING = 2


class KeypointHead:
    """Keypoints of instances, prepared from torchvision's modules or a skeleton's."""

    def __init__(self, heads: Any, form: Format, conventions: Conventions = TORCHVISION) -> None:
        """Prepare a copy.

        Args:
            heads: with `keypoint_roi_pool`, `keypoint_head` and `keypoint_predictor`.
            form: of the convolutions; heatmaps are float32.
            conventions: of the model.

        Raises TypeError for modules that there is no way to prepare.
        """
        rules = conventions
        self._sampling = sampling_of(
            heads.keypoint_roi_pool,
            rules.keypoint_bins,
            rules.keypoint_samples,
            aligned=rules.keypoint_aligned,
            rules=rules,
        )
        self._convs = [step for _, step in prepare(heads.keypoint_head.named_children(), form)]
        up = heads.keypoint_predictor.kps_score_lowres
        if (up.kernel_size, up.stride, up.padding) != ((4, 4), (2, 2), (1, 1)):
            raise TypeError("no way to prepare this upsampling of a keypoint head")
        # Each cell gives 4×4 of all heatmaps, which are then summed where they overlap.
        exact = Format(form.device, torch.float32)
        self.count = int(up.out_channels)
        weight = up.weight.detach().flatten(1).T  # [K * 4 * 4, C]
        self._up = Linear(weight, torch.zeros(len(weight)), form, rows=4 * self._sampling.bins**2)
        self._bias = exact.copy(up.bias)
        self._as_probability = rules.keypoint_scores == "probability"

    def __call__(self, maps: FeatureMaps, boxes: Sequence[Tensor], count: int) -> Keypoints:
        """The places [N, K, 2] in input pixels and the scores [N, K] of the first `count` boxes, on the CPU.

        Args:
            maps: of the batch.
            boxes: of each image, [n, 4] xyxy in input pixels.
            count: those that are asked for; the others only fill up the batch.
        """
        together, image = boxes_together(boxes)
        places, scores = [], []
        size = AT_ONCE[together.device.type]
        for first, part in enumerate(zip(torch.split(together, size), torch.split(image, size), strict=True)):
            heatmaps = self.heatmaps(maps, *part)
            for n in range(min(len(heatmaps), count - first * size)):
                place, score = locate(heatmaps[n], part[0][n], as_probability=self._as_probability)
                places.append(place)
                scores.append(score)
        return torch.stack(places).cpu(), torch.stack(scores).cpu()

    def heatmaps(self, maps: FeatureMaps, boxes: Tensor, image: Tensor) -> Tensor:
        """[N, K, 4 * bins, 4 * bins] float32.

        Args:
            maps: of the batch.
            boxes: [N, 4] xyxy in input pixels.
            image: [N] int64, which image of the batch each box is in.
        """
        x = pool_rois(maps, boxes, image, self._sampling).permute(0, 3, 1, 2)
        for conv in self._convs:
            x = conv(x)
        bins = int(x.shape[2])
        cells = self._up(x.permute(0, 2, 3, 1).flatten(1, 2)).float()
        side = 2 * bins
        low = functional.fold(cells.transpose(1, 2), (side, side), 4, padding=1, stride=2)
        low = low + self._bias[:, None, None]
        with one_thread():
            high: Tensor = functional.interpolate(
                low, scale_factor=float(UPSAMPLING), mode="bilinear", align_corners=False
            )
        return high


def locate(heatmaps: Tensor, box: Tensor, *, as_probability: bool) -> Keypoints:
    """The places [K, 2] and scores [K] of one instance's keypoints.

    Args:
        heatmaps: [K, M, M] float32.
        box: [4] xyxy in input pixels.
        as_probability: scores as Detectron2 gives them, the part of the heatmap's exponentials that the place has, not
            the heatmap's value.
    """
    sides = (box[2:] - box[:2]).clamp(min=1)
    width, height = (int(side) for side in sides.ceil().tolist())
    side = int(heatmaps.shape[-1])
    rows, columns = (_bicubic(side, count, box.device) for count in (height, width))
    # A product for each heatmap: one for all together would depend on the number of threads, in the last bits.
    enlarged = (rows @ heatmaps @ columns.T.expand(len(heatmaps), -1, -1)).flatten(1)
    value, place = enlarged.max(1)
    cells = torch.stack([place % width, place // width], 1)
    step = sides / torch.tensor([width, height], dtype=torch.float32, device=box.device)
    places = (cells.float() + 0.5) * step + box[:2]
    if not as_probability:
        return places, value
    with one_thread():
        return places, 1 / (heatmaps.flatten(1) - value[:, None]).exp().sum(1)


def _bicubic(before: int, after: int, device: torch.device) -> Tensor:
    """[after, before]: what each of `after` cells takes of `before` ones when a row of them is enlarged.

    Two products with such matrices are torch's bicubic interpolation of an area, up to 1e-6, in a quarter of its time.
    """
    one_hot = torch.eye(before, device=device)[:, None, :, None]
    return functional.interpolate(one_hot, size=(after, 1), mode="bicubic", align_corners=False)[:, 0, :, 0].T
