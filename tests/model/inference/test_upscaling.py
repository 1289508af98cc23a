"""Small images and small objects: 256 × 256 pixels scaled up to 512, anchors from 8 pixels, as torchvision has it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from model.data import Sample
from model.evaluation.coco import evaluate, score
from model.images.decode import decode, encode_png
from model.inference.engine import Engine
from model.instances import Options
from model.masks.paste import encode, paste
from model.network.architecture import SMALL
from tests.model.inference.networks import CPU, THIN, described, network, photo

if TYPE_CHECKING:
    from collections.abc import Sequence

ARCHITECTURE = replace(SMALL, **{**THIN, "proposals": 300, "min_size": 512, "max_size": 768})
IMAGES = [photo(256, 256), photo(256, 256, seed=1), photo(180, 250)]


@cache
def engine() -> Engine:
    return Engine(network(ARCHITECTURE), described(ARCHITECTURE), CPU)


@cache
def theirs() -> list[dict[str, Any]]:
    made: Any = network(ARCHITECTURE)
    with torch.inference_mode():
        return [made([torch.from_numpy(image).permute(2, 0, 1) / 255])[0] for image in IMAGES]


def test_the_input_is_scaled_up_and_padded() -> None:
    assert [engine().input_size(*image.shape[:2]) for image in IMAGES] == [(512, 512), (512, 512), (512, 711)]
    assert engine().padded_shape(180, 250) == (512, 736)


@torch.inference_mode()
@pytest.mark.parametrize("n", [0, 2])
def test_proposals_of_small_anchors_are_torchvisions(n: int) -> None:
    made: Any = network(ARCHITECTURE)
    size, padded = engine().input_size(*IMAGES[n].shape[:2]), engine().padded_shape(*IMAGES[n].shape[:2])
    inputs = engine()._preprocess([IMAGES[n]], [size], padded)
    (ours,) = engine()._propose(engine()._extract(inputs), padded, [size])
    transformed, _ = made.transform([torch.from_numpy(IMAGES[n]).permute(2, 0, 1) / 255])
    torch.testing.assert_close(inputs.contiguous(), transformed.tensors, atol=1e-4, rtol=0)
    (expected,), _ = made.rpn(ImageList(transformed.tensors, [size]), made.backbone(transformed.tensors))
    # Neighbours in objectness may change places.
    apart = (ours[:, None] - expected).abs().amax(2)
    assert len(ours) == len(expected) == 300
    assert max(apart.amin(0).max(), apart.amin(1).max()) < 0.01
    # In the image these are objects of 10 pixels and less.
    assert ((ours[:, 2:] - ours[:, :2]).amin(1) < 20).any()


def test_instances_are_torchvisions_in_pixels_of_the_small_image() -> None:
    for image, expected in zip(IMAGES, theirs(), strict=True):
        (found,) = engine().segment([image], [Options(score_threshold=0.05)])
        assert len(found) == len(expected["scores"]) > 20
        torch.testing.assert_close(found.boxes, expected["boxes"], atol=0.01, rtol=0)
        torch.testing.assert_close(found.scores, expected["scores"], atol=1e-4, rtol=0)
        assert found.labels.tolist() == (10 * expected["labels"]).tolist()
        assert found.probabilities is not None
        for rle, mask in zip(
            paste(found.probabilities, found.boxes, found.size), expected["masks"][:, 0] > 0.5, strict=True
        ):
            assert abs(rle.area - int(mask.sum())) <= 2


class FoundByTorchvision:
    """Every second instance that torchvision finds in the images is an object."""

    def __init__(self) -> None:
        self.categories = engine().model.categories

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> Sample:
        empty = np.zeros((0, *IMAGES[index].shape[:2]), np.uint8)
        # As it comes from a file.
        pixels = decode(encode_png(IMAGES[index]))
        return Sample(index, pixels, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), empty)

    def annotations(self, sample: Sample) -> list[dict[str, Any]]:
        return [
            {**record, "id": 1000 * sample.image_id + n + 1, "iscrowd": 0}
            for n, record in enumerate(records(sample.image_id)[::2])
        ]


def records(index: int) -> Sequence[dict[str, Any]]:
    """What torchvision finds, as COCO results."""
    found = []
    for box, label, value, mask in zip(
        *(theirs()[index][name] for name in ("boxes", "labels", "scores", "masks")), strict=True
    ):
        x0, y0, x1, y1 = box.tolist()
        rle = encode((mask[0] > 0.5).numpy())
        found.append(
            {"image_id": index, "category_id": 10 * int(label), "score": float(value), "area": rle.area,
             "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": rle.to_coco()}
        )  # fmt: skip
    return found


def test_evaluation_is_that_of_torchvisions_instances() -> None:
    dataset: Any = FoundByTorchvision()
    found = evaluate(engine(), dataset)
    truth = {
        "images": [{"id": n, "height": i.shape[0], "width": i.shape[1]} for n, i in enumerate(IMAGES)],
        "annotations": [a for n in range(3) for a in dataset.annotations(dataset[n])],
        "categories": [{"id": c.id, "name": c.name} for c in dataset.categories],
    }
    results = [record for n in range(3) for record in records(n)]
    assert found.mask is not None
    for kind, ours in (("bbox", found.box), ("segm", found.mask)):
        expected = score(truth, results, kind).figures
        assert ours.figures == pytest.approx(expected, abs=1e-3)
        assert 0.3 < expected["AP"] < 0.9
