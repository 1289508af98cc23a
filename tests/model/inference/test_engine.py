"""The forward pass against torchvision's own, and batches against single images."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from model.errors import EngineError
from model.inference.engine import Engine
from model.inference.roi_heads import BoxHead
from model.instances import Options
from model.kernels import onednn
from model.kernels.convolution import Format, Linear
from model.masks.paste import decode, paste

if TYPE_CHECKING:
    from torch import Tensor


from tests.model.inference.networks import (
    ARCHITECTURES,
    CPU,
    THIN_SMALL,
    Calls,
    assert_same,
    described,
    engine_of,
    network,
    photo,
    segment,
)

# Against torchvision


@pytest.mark.parametrize(
    ("kind", "size"),
    [(kind, (96, 128)) for kind in ARCHITECTURES]
    + [(kind, size) for kind in ("small", "v1", "odd v2") for size in ((61, 97), (201, 50))],
)
def test_finds_what_torchvision_finds(kind: str, size: tuple[int, int]) -> None:
    image = photo(*size)
    with torch.inference_mode():
        (theirs,) = network(ARCHITECTURES[kind])([torch.from_numpy(image).permute(2, 0, 1) / 255])
    ours = segment(engine_of(ARCHITECTURES[kind]), image)
    assert 5 <= len(ours) <= 100
    assert ours.size == size
    assert len(ours) == len(theirs["scores"])
    # In the same order, up to scores that the order of summation decides between.
    torch.testing.assert_close(ours.scores, theirs["scores"], atol=1e-4, rtol=0)
    assert (ours.scores.diff() <= 0).all()
    left = list(range(len(ours)))
    shared = either = 0
    for box, score, label, pasted in zip(
        theirs["boxes"], theirs["scores"], theirs["labels"], theirs["masks"][:, 0], strict=True
    ):
        twin = next(
            row
            for row in left
            if ours.labels[row] == 10 * label
            and (ours.boxes[row] - box).abs().max() <= 0.01
            and (ours.scores[row] - score).abs() <= 1e-4
        )
        left.remove(twin)
        # In their place: a mask begins at a whole pixel, which may be the next one for a millionth of a pixel.
        (rle,) = paste(ours.probabilities[twin, None], box[None], size)
        mine, other = torch.from_numpy(decode(rle)).bool(), pasted > 0.5
        assert (
            (pasted[mine != other] - 0.5).abs() < 1e-3
        ).all()  # only where torchvision itself is undecided
        shared, either = shared + int((mine & other).sum()), either + int((mine | other).sum())
    assert either > 500
    assert shared / either >= 0.999


LIMITS = [(800, 1333), (384, 768), (96, 160), (1, 1), (600, 600)]


def assert_sized_as_torchvision(engine: Engine, limits: tuple[int, int], height: int, width: int) -> None:
    """Against torchvision's transform itself, of which only the computing of pixels is left out."""
    low, high = limits
    architecture = replace(THIN_SMALL, min_size=low, max_size=high)
    sizer = copy.copy(engine)
    sizer.model = described(architecture)
    size, padded = sizer.input_size(height, width), sizer.padded_shape(height, width)
    transform = GeneralizedRCNNTransform(low, high, [0.5] * 3, [0.5] * 3)

    def resized(image: Tensor, output: list[int], *_: object) -> Tensor:
        return image.new_empty((1, 3, *output))

    with mock.patch.object(torch._C._nn, "upsample_bilinear2d", resized):
        inputs, _ = transform([torch.empty((3, height, width), device="meta")])
    (expected,) = inputs.image_sizes
    if min(expected) == 0:  # which torchvision then fails at
        assert size == (max(expected[0], 1), max(expected[1], 1))
    else:
        assert (size, padded) == (expected, tuple(inputs.tensors.shape[-2:]))


@settings(max_examples=150, deadline=None)
@given(limits=st.sampled_from(LIMITS), height=st.integers(1, 5000), width=st.integers(1, 5000))
def test_input_sizes_are_torchvisions(
    engine: Engine, limits: tuple[int, int], height: int, width: int
) -> None:
    assert_sized_as_torchvision(engine, limits, height, width)


@pytest.mark.parametrize("width", [480, 1333, 800, 1])
def test_input_sizes_are_torchvisions_along_a_row(engine: Engine, width: int) -> None:
    for height in range(1, 2600, 17):
        assert_sized_as_torchvision(engine, (800, 1333), height, width)


@pytest.mark.parametrize("size", [(1, 13), (13, 1), (11, 17), (427, 640), (1, 5000), (5000, 3)])
def test_network_sees_images_of_the_size_that_is_announced(engine: Engine, size: tuple[int, int]) -> None:
    with Calls(engine, "_extract") as batches:
        engine.segment([photo(*size)], [Options()])
    assert [tuple(batch.shape) for (batch,) in batches] == [(1, 3, *engine.padded_shape(*size))]


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_images_one_pixel_wide_are_answered(engine: Engine, size: tuple[int, int]) -> None:
    found = segment(engine, photo(*size), score_threshold=0.0)
    assert found.size == size
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2] <= size[1]).all()
    assert (found.boxes[:, 3] <= size[0]).all()


@pytest.mark.parametrize("kind", ["small", "v1", "odd v2", "mobilenet_v3_large"])
def test_every_shape_runs_in_bfloat16(kind: str) -> None:
    """oneDNN reads layouts off strides, which say little where a side is one cell long."""
    engine = Engine(network(ARCHITECTURES[kind]), described(ARCHITECTURES[kind]), CPU, "bfloat16")
    for size in [(1, 1), (1, 5000), (5000, 1), (20, 400), (400, 20), (96, 96), (61, 97)]:
        found = segment(engine, photo(*size))
        assert found.size == size
        assert found.boxes.isfinite().all()


def test_bfloat16_runs_where_onednn_has_no_instructions_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "has_bfloat16", lambda: False)
    exact = segment(engine_of(THIN_SMALL), photo(96, 128))
    engine = Engine(copy.deepcopy(network(THIN_SMALL)), described(THIN_SMALL), CPU, "bfloat16")
    with mock.patch.object(onednn, "convolution") as convolution:
        found = segment(engine, photo(96, 128))
    convolution.assert_not_called()
    assert len(found) > 5
    assert abs(len(found) - len(exact)) <= 0.2 * len(exact)


def test_a_very_wide_first_image_does_not_spoil_later_answers(engine: Engine) -> None:
    other = engine_of()
    segment(other, photo(20, 400))
    assert_same(segment(other, photo(96, 128)), segment(engine, photo(96, 128)))


def test_no_proposals_are_no_instances() -> None:
    unlike: Any = copy.deepcopy(network(THIN_SMALL))
    with torch.no_grad():
        unlike.rpn.head.bbox_pred.bias[0::4] = 1000.0  # all anchors go off to the right
    for batches in (False, True):
        engine = Engine(unlike, described(THIN_SMALL), CPU)
        engine.batches = batches
        assert len(segment(engine, photo(96, 128))) == 0


def test_the_threshold_decides_nothing_but_who_is_left_out() -> None:
    """Two boxes of a high class that overlap by a half, in a batched_nms that moved its boxes in float32."""
    head: Any = BoxHead.__new__(BoxHead)
    exact = Format(CPU, torch.float32)
    head._class = Linear(torch.eye(91), torch.zeros(91), exact)
    head._box = Linear(torch.zeros(364, 91), torch.zeros(364), exact)
    head._weights, head._score_threshold, head._iou_threshold, head._max_detections = (
        (10.0, 10.0, 5.0, 5.0),
        0.05,
        0.5,
        100,
    )
    head._min_side, head._clamp_both = 0.01, False
    proposals = torch.tensor(
        [
            [560.0079956054688, 112.72061920166016, 573.58935546875, 126.30195617675781],
            [564.5331420898438, 112.72061920166016, 578.114501953125, 126.30195617675781],
            [0.0, 0.0, 1088.0, 800.0],
        ]
    )
    features = torch.full((3, 91), -20.0)
    for row, (label, score) in enumerate([(90, 0.9), (90, 0.8), (1, 0.07)]):
        features[row, label], features[row, 0] = 0, np.log((1 - score) / score)
    allowed = torch.ones(91, dtype=torch.bool).index_fill(0, torch.tensor([0]), False)
    counts = []
    for threshold in (0.05, 0.5):
        _, scores, _ = head.detect(
            features, proposals, (800, 1088), score_threshold=threshold, allowed=allowed, max_instances=100
        )
        counts.append(int((scores >= 0.5).sum()))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("pool", ["box_roi_pool", "mask_roi_pool"])
def test_a_roi_align_that_samples_otherwise_is_refused(pool: str) -> None:
    other: Any = copy.deepcopy(network(THIN_SMALL))
    getattr(other.roi_heads, pool).sampling_ratio = 4
    with pytest.raises(TypeError, match="sampled 4 times a side"):
        Engine(other, described(THIN_SMALL), CPU)


# Batches


def test_batch_of_four_equals_batches_of_one(engine: Engine) -> None:
    images = [photo(96, 128), photo(480, 640, seed=1), photo(90, 110, seed=2), photo(192, 250, seed=3)]
    assert len({engine.padded_shape(*image.shape[:2]) for image in images}) == 1
    assert len({engine.input_size(*image.shape[:2]) for image in images}) > 1
    one_pass = engine_of()
    one_pass.batches = True
    together = one_pass.segment(images, [Options(score_threshold=0.05)] * 4)
    for found, image in zip(together, images, strict=True):
        assert len(found) > 0
        assert_same(found, segment(engine, image))


def test_images_of_unlike_padded_shape_are_refused(engine: Engine) -> None:
    with pytest.raises(EngineError, match="same padded shape"):
        engine.segment([photo(96, 128), photo(128, 96)], [Options(), Options()])


def test_as_many_options_as_images_are_needed(engine: Engine) -> None:
    with pytest.raises(EngineError, match="2 images came with 1 options"):
        engine.segment([photo(96, 128)] * 2, [Options()])


def test_no_images_give_no_instances(engine: Engine) -> None:
    assert engine.segment([], []) == []


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(np.zeros((96, 128), np.uint8), id="grey"),
        pytest.param(np.zeros((96, 128, 4), np.uint8), id="alpha"),
        pytest.param(np.zeros((3, 96, 128), np.uint8), id="channels first"),
        pytest.param(np.zeros((96, 128, 3), np.float32), id="floats"),
        pytest.param(np.zeros((0, 128, 3), np.uint8), id="no rows"),
    ],
)
def test_images_that_are_no_rgb_bytes_are_refused(engine: Engine, image: np.ndarray) -> None:
    with pytest.raises(EngineError, match=r"\[H, W, 3\] uint8"):
        engine.segment([image], [Options()])


def test_images_may_be_read_only_or_strided(engine: Engine) -> None:
    image = photo(96, 128)
    wide = np.repeat(image, 2, axis=1)[:, ::2]
    wide.flags.writeable = False
    assert_same(segment(engine, wide), segment(engine, image))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_answers_do_not_depend_on_which_shapes_came_before(precision: str) -> None:
    def fresh() -> Engine:
        return Engine(network(ARCHITECTURES["small"]), described(ARCHITECTURES["small"]), CPU, precision)

    used = fresh()
    for size in [(96, 128), (128, 96), (96, 96), (96, 160), (160, 96), (96, 128)]:
        assert_same(segment(used, photo(*size)), segment(fresh(), photo(*size)))
