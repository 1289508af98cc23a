"""torchvision's Mask R-CNN from the folder that bench/peers wrote: for the programs that begin with it."""

from __future__ import annotations

import io
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

if TYPE_CHECKING:
    from pathlib import Path


def load_network(folder: Path) -> nn.Module:
    """The module with its weights, in evaluation mode. architecture.json: the fields of model's `Architecture`."""
    a: dict[str, Any] = json.loads((folder / "architecture.json").read_text())
    norm = partial(FrozenBatchNorm2d if a["norm"] == "frozen" else nn.BatchNorm2d, eps=a["norm_eps"])
    body: Any = torchvision.models.get_model(a["backbone"], weights=None, norm_layer=norm)
    layers = {f"layer{n}": str(n - 1) for n in (1, 2, 3, 4)}
    channels = [body.inplanes // 8 * 2**n for n in range(4)]
    width, hidden, masks = a["fpn_channels"], a["box_channels"], a["mask_channels"]
    backbone = BackboneWithFPN(
        body,
        layers,
        channels,
        width,
        LastLevelMaxPool(),
        norm_layer=nn.BatchNorm2d if a["fpn_norm"] else None,
    )
    anchors = AnchorGenerator(
        tuple((size,) for size in a["anchor_sizes"]), (tuple(a["anchor_ratios"]),) * len(a["anchor_sizes"])
    )
    if a["box_convs"]:
        convs = [width] * a["box_convs"]
        box_head: nn.Module = FastRCNNConvFCHead((width, 7, 7), convs, [hidden], norm_layer=nn.BatchNorm2d)
    else:
        box_head = TwoMLPHead(width * 7 * 7, hidden)
    network = MaskRCNN(
        backbone,
        min_size=a["min_size"],
        max_size=a["max_size"],
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(width, anchors.num_anchors_per_location()[0], conv_depth=a["rpn_convs"]),
        rpn_pre_nms_top_n_test=a["proposals"],
        rpn_post_nms_top_n_test=a["proposals"],
        box_head=box_head,
        box_predictor=FastRCNNPredictor(hidden, a["classes"]),
        box_score_thresh=a["score_threshold"],
        mask_head=MaskRCNNHeads(
            width, [masks] * a["mask_convs"], 1, norm_layer=nn.BatchNorm2d if a["mask_norm"] else None
        ),
        mask_predictor=MaskRCNNPredictor(masks, masks, a["classes"]),
    )
    network.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    return network.eval().requires_grad_(requires_grad=False)


def to_tensor(photo: np.ndarray) -> Tensor:
    """[H, W, 3] uint8 → [3, H, W] float32 in 0 to 1"""
    return torch.from_numpy(photo).permute(2, 0, 1) / 255


class OnePhoto(nn.Module):
    """The network as exporters want it: tensors in and out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[3, H, W] → boxes [N, 4], labels [N], scores [N], masks [N, 1, H, W]"""
        (found,) = self.network([image])
        return found["boxes"], found["labels"], found["scores"], found["masks"]


class Segmenter:
    """What the servers do with a photo: decode it, segment it, and write the masks as COCO RLE."""

    def __init__(self, folder: Path) -> None:
        self.network = load_network(folder)

    def __call__(self, jpeg: bytes) -> dict[str, Any]:
        """The answer, ready for JSON."""
        from pycocotools import mask as coco

        photo = np.array(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        with torch.inference_mode():
            (found,) = self.network([to_tensor(photo)])
        instances = []
        for box, label, score, mask in zip(
            found["boxes"].tolist(),
            found["labels"].tolist(),
            found["scores"].tolist(),
            found["masks"][:, 0] > 0.5,
            strict=True,
        ):
            rle = coco.encode(np.asfortranarray(mask.numpy().view(np.uint8)))
            rle["counts"] = rle["counts"].decode()
            x, y, right, bottom = box
            instance = {"category_id": label, "score": score, "bbox": [x, y, right - x, bottom - y]}
            instances.append(instance | {"segmentation": rle})
        return {"instances": instances}
