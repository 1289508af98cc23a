"""The forward pass against torchvision's own, what the options leave out, and how failures are named."""

from __future__ import annotations

import contextlib
import copy
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_iou

from bench.synthetic_weights import synthetic_weights
from model.data import Category
from model.errors import DeviceFailed, EngineError, OutOfDeviceMemory
from model.images.decode import decode as decode_image
from model.inference.cuda_graphs import CudaGraphCache
from model.inference.devices import current, device_named, resolved, runs_on
from model.inference.engine import Engine
from model.inference.roi_heads import BoxHead
from model.instances import Options
from model.masks.paste import decode, paste
from model.network.architecture import BACKBONES, DIVISIBLE, SMALL, V1, V2, Architecture
from model.zoo import catalogue as weights
from model.zoo import model_file, zoo

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from model.instances import Instances

    Fail = Callable[[Exception], "_Failing"]

THIN: dict[str, Any] = {
    "classes": 11,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "fpn_channels": 16,
    "box_channels": 32,
    "mask_channels": 16,
    "proposals": 60,
    "min_size": 96,
    "max_size": 160,
}
THIN_SMALL = replace(SMALL, **THIN)
ARCHITECTURES = {
    "small": THIN_SMALL,
    "v1": replace(V1, **THIN),
    "v2": replace(V2, **THIN),
    # The backbones of those are ResNet-18 and ResNet-50.
    **{
        name: replace(THIN_SMALL, backbone=name) for name in BACKBONES if name not in ("resnet18", "resnet50")
    },
    "odd v2": replace(
        V2, **{**THIN, "fpn_channels": 20, "mask_channels": 20}
    ),  # widths that Winograd cannot take
}
CPU = torch.device("cpu")


@cache
def network(architecture: Architecture) -> nn.Module:
    return synthetic_weights(architecture, torch.from_numpy(photo(96, 128)).permute(2, 0, 1) / 255, seed=5)


def described(architecture: Architecture) -> model_file.Model:
    """Category ids that are not the network's outputs: 10, 20, …"""
    categories = tuple(Category(10 * n, f"kind {n}") for n in range(1, architecture.classes))
    return model_file.describe("random", architecture, categories)


def engine_of(architecture: Architecture = THIN_SMALL) -> Engine:
    return Engine(copy.deepcopy(network(architecture)), described(architecture), CPU, "float32")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_of()


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """[H, W, 3] uint8 with something to see at every scale."""
    random = np.random.default_rng([seed, height, width])
    canvas = np.zeros((height, width, 3))
    for cell in (1, 4, 16):
        grid = random.normal(0, cell, (-(-height // cell), -(-width // cell), 3))
        canvas += np.kron(grid, np.ones((cell, cell, 1)))[:height, :width]
    return np.clip(128 + 6 * canvas, 0, 255).astype(np.uint8)


def segment(engine: Engine, image: np.ndarray, **options: Any) -> Instances:
    (found,) = engine.segment([image], [Options(**{"score_threshold": 0.05, **options})])
    return found


def assert_same(ours: Instances, theirs: Instances) -> None:
    assert ours.size == theirs.size
    assert ours.labels.tolist() == theirs.labels.tolist()
    torch.testing.assert_close(ours.boxes, theirs.boxes, atol=0.01, rtol=0)
    torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.probabilities, theirs.probabilities, atol=1e-3, rtol=0)


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
    with _Calls(engine, "_dense") as batches:
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
    head._class, head._box = (torch.eye(91), torch.zeros(91)), (torch.zeros(364, 91), torch.zeros(364))
    head._weights, head._least_score, head._overlap, head._most = (10.0, 10.0, 5.0, 5.0), 0.05, 0.5, 100
    head._least_side, head._clamp_both = 0.01, False
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
        _, scores, _ = head.detections(
            features, proposals, (800, 1088), threshold=threshold, allowed=allowed, most=100
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


# Options


def test_instances_score_at_least_the_threshold(engine: Engine) -> None:
    everything = segment(engine, photo(96, 128))
    threshold = float(everything.scores[len(everything) // 2])
    found = segment(engine, photo(96, 128), score_threshold=threshold)
    assert found.scores.tolist() == [score for score in everything.scores.tolist() if score >= threshold]


def test_the_best_scoring_instances_are_kept(engine: Engine) -> None:
    everything = segment(engine, photo(96, 128))
    found = segment(engine, photo(96, 128), max_instances=3)
    assert len(everything) > 3 == len(found)
    assert found.scores.tolist() == everything.scores[:3].tolist()
    assert found.probabilities is not None
    assert found.probabilities.shape == (3, 28, 28)


def test_only_wanted_categories_are_kept(engine: Engine) -> None:
    everything = segment(engine, photo(96, 128))
    present = sorted(set(everything.labels.tolist()))
    assert len(present) > 2
    wanted = frozenset(present[:2])
    found = segment(engine, photo(96, 128), categories=wanted)
    assert set(found.labels.tolist()) == wanted
    expected = [label for label in everything.labels.tolist() if label in wanted]
    assert found.labels.tolist()[: len(expected)] == expected
    assert len(segment(engine, photo(96, 128), categories=frozenset())) == 0


def test_the_hundred_best_are_those_of_the_wanted_categories(engine: Engine) -> None:
    everything = segment(engine, photo(96, 128))
    assert len(everything) == 100  # there is more to find than an answer holds
    rare = min(everything.labels.tolist(), key=everything.labels.tolist().count)
    found = segment(engine, photo(96, 128), categories=frozenset({rare}))
    assert len(found) > everything.labels.tolist().count(rare)


def test_each_image_of_a_batch_has_its_own_options(engine: Engine) -> None:
    images = [photo(96, 128, seed) for seed in range(3)]
    options = [
        Options(score_threshold=0.05, max_instances=2),
        Options(score_threshold=0.05, masks=False),
        Options(score_threshold=1.1),
    ]
    first, second, third = engine.segment(images, options)
    assert (len(first), len(third)) == (2, 0)
    assert len(second) > 2
    assert first.probabilities is not None
    assert first.probabilities.shape == (2, 28, 28)
    assert second.probabilities is None
    assert third.probabilities is not None
    assert third.probabilities.shape == (0, 28, 28)


class _Calls:
    """The arguments that a part of an engine is called with, call by call."""

    def __init__(self, engine: Engine, part: str) -> None:
        self._engine, self._part = engine, part
        self.arguments: list[tuple[Any, ...]] = []

    def __enter__(self) -> list[tuple[Any, ...]]:
        self._whole = getattr(self._engine, self._part)

        def noted(*arguments: Any) -> Any:
            self.arguments.append(arguments)
            return self._whole(*arguments)

        setattr(self._engine, self._part, noted)
        return self.arguments

    def __exit__(self, *_: object) -> None:
        setattr(self._engine, self._part, self._whole)


def test_mask_head_sees_only_the_instances_that_were_asked_for(engine: Engine) -> None:
    with _Calls(engine, "_masks") as calls:
        segment(engine, photo(96, 128), masks=False)
        assert calls == []
        segment(engine, photo(96, 128), score_threshold=1.1)
        assert calls == []
        engine.segment(
            [photo(96, 128)] * 2,
            [Options(score_threshold=0.05, masks=False), Options(score_threshold=0.05, max_instances=4)],
        )
        assert [len(labels) for _, _, labels in calls] == [4]


def test_answers_are_on_the_cpu_in_the_declared_types(engine: Engine) -> None:
    found = segment(engine, photo(96, 128))
    count = len(found)
    assert count > 0
    assert found.probabilities is not None
    tensors = (found.boxes, found.scores, found.labels, found.probabilities)
    shapes = [(count, 4), (count,), (count,), (count, 28, 28)]
    types = [torch.float32, torch.float32, torch.int64, torch.float32]
    assert [tuple(tensor.shape) for tensor in tensors] == shapes
    assert [tensor.dtype for tensor in tensors] == types
    assert {tensor.device.type for tensor in tensors} == {"cpu"}


def test_outputs_of_the_network_that_are_no_category_are_left_out() -> None:
    everything = segment(engine_of(), photo(96, 128))
    kept = [label for label in set(everything.labels.tolist()) if label % 20]
    labels = tuple(label // 10 for label in sorted(kept))
    categories = tuple(Category(0 if n == 0 else label * 10, str(label)) for n, label in enumerate(labels))
    model = model_file.Model("gaps", THIN_SMALL, categories, labels)
    found = segment(Engine(copy.deepcopy(network(THIN_SMALL)), model, CPU, "float32"), photo(96, 128))
    ids = {label * 10: category.id for label, category in zip(labels, categories, strict=True)}
    expected = [ids[label] for label in everything.labels.tolist() if label in ids]
    assert 0 < len(expected) < len(everything)
    assert found.labels.tolist()[: len(expected)] == expected
    assert set(found.labels.tolist()) == set(ids.values())
    assert 0 in expected  # a category may well have the id 0


def test_faster_rcnn_has_boxes_and_no_masks() -> None:
    found = segment(engine_of(replace(THIN_SMALL, mask_convs=0)), photo(96, 128))
    assert len(found) > 0
    assert found.probabilities is None


def test_warm_up_runs_every_part_though_it_finds_nothing() -> None:
    unsure: Any = copy.deepcopy(network(THIN_SMALL))
    unsure.roi_heads.score_thresh = 1.0
    engine = Engine(unsure, described(THIN_SMALL), CPU, "float32")
    with _Calls(engine, "_dense") as images, _Calls(engine, "_masks") as masks:
        engine.warm_up()
    assert images
    assert [len(labels) for _, _, labels in masks] == [1]


def test_warm_up_of_what_runs_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of()
    engine.batches = True
    with _Calls(engine, "_dense") as calls:
        engine.warm_up()
    shapes = {tuple(images.shape) for (images,) in calls}
    assert shapes == {(n, 3, *size) for n in (1, 2, 4, 8) for size in [(96, 128), (128, 96)]}
    whole, ran = engine._dense, []

    def small(images: Tensor) -> Any:
        ran.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(images)

    monkeypatch.setattr(engine, "_dense", small)
    engine.warm_up()
    assert max(ran) == 4
    assert ran[-1] == 1


def test_warm_up_of_a_network_without_masks() -> None:
    engine = engine_of(replace(THIN_SMALL, mask_convs=0))
    with _Calls(engine, "_dense") as images:
        engine.warm_up()
    assert len(images) == 1


# Failures


class _Failing:
    """A dense part that holds a tensor, as a real one would, and raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.held: weakref.ref[Tensor] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        activations = images + 1
        self.held = weakref.ref(activations)
        raise self.error


@pytest.fixture
def failing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], _Failing]:
    """Make the engine's dense part raise."""

    def fail(error: Exception) -> _Failing:
        forward = _Failing(error)
        monkeypatch.setattr(engine, "_dense", forward)
        return forward

    return fail


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_running_out_of_memory_is_named(engine: Engine, failing: Fail, error: Exception) -> None:
    failing(error)
    with pytest.raises(OutOfDeviceMemory) as caught:
        segment(engine, photo(96, 128))
    assert caught.value.__cause__ is error


def test_what_the_cpu_allocator_raises_is_named(engine: Engine, failing: Fail) -> None:
    with pytest.raises(RuntimeError) as real:
        torch.empty(10**15)
    failing(real.value)
    with pytest.raises(OutOfDeviceMemory):
        segment(engine, photo(96, 128))


def test_failed_attempt_lets_go_of_its_tensors(engine: Engine, failing: Fail) -> None:
    backbone = failing(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(OutOfDeviceMemory) as caught:
        segment(engine, photo(96, 128))
    assert caught.value.__traceback__ is not None  # somebody still holds the error, as a log would
    assert backbone.held is not None
    assert backbone.held() is None


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: unspecified launch failure",
    ],
)
def test_lost_device_is_named(
    engine: Engine, failing: Fail, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(RuntimeError(text))
    ready = torch.zeros(1, 3, 96, 128)
    monkeypatch.setattr(engine, "_normalise", lambda *_: ready)
    monkeypatch.setattr(engine, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    with pytest.raises(DeviceFailed, match=text):
        segment(engine, photo(96, 128))


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), ValueError("CUDA error"), KeyError(1)]
)
def test_other_errors_pass_as_they_are(engine: Engine, failing: Fail, error: Exception) -> None:
    failing(error)
    with pytest.raises(type(error)) as caught:
        segment(engine, photo(96, 128))
    assert caught.value is error


# Loading


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "thin.safetensors"
    model_file.save(path, network(THIN_SMALL), described(THIN_SMALL))
    return path


def test_engine_from_a_file_answers_as_the_network_that_was_saved(saved: Path, engine: Engine) -> None:
    loaded = Engine.load(str(saved), device="cpu")
    assert (loaded.model.name, loaded.device, loaded.precision) == ("random", CPU, "float32")
    assert_same(segment(loaded, photo(96, 128)), segment(engine, photo(96, 128)))


def test_downloaded_weights_are_looked_for_in_the_folder_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def load(name: str, folder: Path, *, runnable: bool) -> tuple[nn.Module, model_file.Model]:
        assert not runnable
        asked.append(folder)
        return copy.deepcopy(network(THIN_SMALL)), described(THIN_SMALL)

    monkeypatch.setattr(zoo, "load", load)
    Engine.load("anything", device="cpu", weights_folder=tmp_path)
    Engine.load("anything", device="cpu")
    assert asked == [tmp_path, weights.default_folder()]


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "meta", "mps", "", "cuda:-1", "cuda:999", "cuda:256"])
def test_unusable_devices_are_refused_before_anything_is_loaded(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "load", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(EngineError, match="device"):
        Engine.load("shapes", device=device)


def test_unknown_precision_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "load", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(
        EngineError, match="no such precision: 'float8'; there are auto, float32, bfloat16, float16"
    ):
        Engine.load("shapes", device="cpu", precision="float8")


@pytest.mark.parametrize(("usable", "device"), [(0, "cpu"), (2, "cuda")])
def test_auto_takes_a_gpu_if_there_is_one(usable: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: usable)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    assert device_named("auto") == torch.device(device)


def test_gpus_that_torch_was_not_built_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "compute_80"])
    for device in ("cuda", "auto"):
        with pytest.raises(EngineError, match=r"compute capability 7\.0: it was built for sm_75, sm_80"):
            Engine.load("shapes", device=device)


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((7, 0), False), ((7, 5), True), ((8, 9), True), ((9, 0), False), ((10, 0), True)],
)
def test_machine_code_runs_on_its_own_major_generation(capability: tuple[int, int], runs: bool) -> None:
    assert runs_on(capability, ["sm_75", "sm_80", "sm_100a"]) is runs
    assert runs_on(capability, ["compute_70"])


def test_a_gpu_is_the_current_one_and_its_float32_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[object] = []

    @contextlib.contextmanager
    def device(name: object) -> Any:
        entered.append(name)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    second = torch.device("cuda:1")
    for precision, reduced in [("float32", False), ("bfloat16", True)]:
        with current(second, precision):
            assert torch.backends.cudnn.allow_tf32 is reduced
        assert torch.backends.cudnn.allow_tf32
    assert entered == [second] * 2


def test_a_pass_makes_the_engines_device_the_current_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.inference import engine as module

    entered: list[tuple[torch.device, str]] = []

    def noted(device: torch.device, precision: str) -> Any:
        entered.append((device, precision))
        return contextlib.nullcontext()

    monkeypatch.setattr(module, "current", noted)
    segment(engine, photo(96, 128))
    assert entered == [(CPU, "float32")]


def test_recordings_are_dropped_where_memory_ran_out(
    engine: Engine, failing: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = CudaGraphCache(failing(torch.OutOfMemoryError("CUDA out of memory.")))
    forget = mock.Mock()
    monkeypatch.setattr(captured, "forget", forget)
    monkeypatch.setattr(CudaGraphCache, "__call__", lambda made, images: made._dense(images))
    monkeypatch.setattr(engine, "_dense", captured)
    with pytest.raises(OutOfDeviceMemory):
        segment(engine, photo(96, 128))
    forget.assert_called_once_with()


def test_gpus_that_are_not_there_are_refused_with_their_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EngineError, match="'cuda:2' was asked for, but 2 CUDA devices"):
        Engine.load("shapes", device="cuda:2")


@pytest.mark.parametrize(
    ("instructions", "precision"),
    [
        ((), "float32"),
        (("_is_avx512_bf16_supported",), "bfloat16"),
        (("_is_amx_tile_supported",), "bfloat16"),
    ],
)
def test_auto_precision_on_a_cpu_is_what_it_has_instructions_for(
    instructions: tuple[str, ...], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in instructions)
    assert resolved("auto", CPU) == precision


@pytest.mark.parametrize(
    ("generation", "precision"), [(9, "bfloat16"), (8, "bfloat16"), (7, "float16"), (6, "float32")]
)
def test_auto_precision_on_a_gpu_is_by_its_generation(
    generation: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (generation, 0))
    assert resolved("auto", torch.device("cuda")) == precision


def test_float16_is_refused_on_a_cpu() -> None:
    with pytest.raises(EngineError, match="on a CPU there are float32, bfloat16 and int8"):
        Engine(network(THIN_SMALL), described(THIN_SMALL), CPU, "float16")


def test_bfloat16_finds_in_an_example_what_float32_finds() -> None:
    image = decode_image((Path(__file__).parents[3] / "examples" / "images" / "000012.jpg").read_bytes())
    exact, rounded = (
        segment(Engine.load("shapes", device="cpu", precision=precision), image, score_threshold=0.5)
        for precision in ("float32", "bfloat16")
    )
    assert len(exact) > 3
    assert len(exact) == len(rounded)
    # Which of two like proposals wins may differ, but not by much; nor is the order of scores near 1 the same.
    overlap, match = box_iou(exact.boxes, rounded.boxes).max(1)
    assert sorted(match.tolist()) == list(range(len(exact)))
    assert (overlap > 0.9).all()
    assert rounded.labels[match].tolist() == exact.labels.tolist()
    torch.testing.assert_close(rounded.scores[match], exact.scores, atol=0.02, rtol=0)
    for one, other in zip(
        paste(exact.probabilities, exact.boxes, exact.size),
        paste(rounded.probabilities[match], rounded.boxes[match], rounded.size),
        strict=True,
    ):
        shared, either = (
            combined(decode(one), decode(other)).sum() for combined in (np.logical_and, np.logical_or)
        )
        assert (
            shared / either > 0.9
        )  # some are of 700 pixels, many of them at the edge, and of boxes that differ


def test_padding_is_to_the_coarsest_stride(engine: Engine) -> None:
    assert DIVISIBLE == 32
    assert engine.padded_shape(97, 129)[0] % 32 == 0
