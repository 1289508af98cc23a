"""What only a GPU can show. Skipped where there is none, as on every machine this has been developed on so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torchvision.ops import box_iou

from model.errors import OutOfDeviceMemory
from model.inference.cuda_graphs import CudaGraphCache
from model.inference.engine import Engine
from model.inference.limits import DetectionLimits
from model.instances import Options
from model.masks.paste import paste
from tests.model.inference.networks import ARCHITECTURES, assert_same, described, network, photo

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
GPU = torch.device("cuda")
OPTIONS = Options(score_threshold=0.05)


def engine_of(kind: str, precision: str = "float32", device: torch.device = GPU) -> Engine:
    return Engine(network(ARCHITECTURES[kind]), described(ARCHITECTURES[kind]), device, precision)


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    """torchvision's convolutions in float32, as ours are."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_finds_what_torchvision_finds(kind: str) -> None:
    image, theirs = photo(96, 128), network(ARCHITECTURES[kind]).to(GPU)
    try:
        with torch.inference_mode():
            (expected,) = theirs([torch.from_numpy(image).permute(2, 0, 1).to(GPU) / 255])
    finally:
        theirs.cpu()  # the cached module is the other tests' too
    (found,) = engine_of(kind).segment([image], [OPTIONS])
    assert len(found) == len(expected["scores"]) >= 5
    torch.testing.assert_close(found.scores, expected["scores"].cpu(), atol=1e-4, rtol=0)
    same = box_iou(found.boxes, expected["boxes"].cpu()) * (
        found.labels[:, None] == 10 * expected["labels"].cpu()
    )
    assert (same.max(1).values > 0.999).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_recordings_give_what_their_kernels_give(precision: str) -> None:
    engine = engine_of("small", precision)
    shapes = [(96, 128), (128, 96), (96, 96)]
    images = [photo(*shape, seed=seed) for seed in range(2) for shape in shapes]
    replayed = [engine.segment([image], [OPTIONS])[0] for image in images]
    captured: Any = engine._extract
    assert isinstance(captured, CudaGraphCache)
    assert len(captured._recordings) == len(shapes)
    engine._extract = captured._extract
    for image, found in zip(images, replayed, strict=True):
        assert_same(found, engine.segment([image], [OPTIONS])[0])
    assert replayed[0].boxes.tolist() != replayed[3].boxes.tolist()  # not the first image's again


def test_a_batch_gets_the_answers_that_its_images_get_alone() -> None:
    engine = engine_of("small")
    images = [photo(96, 128, seed=seed) for seed in range(8)]
    for found, image in zip(engine.segment(images, [OPTIONS] * 8), images, strict=True):
        assert_same(found, engine.segment([image], [OPTIONS])[0])


@torch.inference_mode()
def test_the_host_waits_for_nothing_until_all_is_found() -> None:
    engine = engine_of("small")
    image = photo(96, 128)
    size, padded = engine.input_size(96, 128), engine.padded_shape(96, 128)
    engine.segment([image], [OPTIONS])  # what is uploaded and recorded once for a shape
    wanted = DetectionLimits([size], [OPTIONS], engine._allowed_classes(OPTIONS)[None], GPU)
    torch.cuda.set_sync_debug_mode("error")
    try:
        maps = engine._extract(engine._preprocess([image], [size], padded))
        proposals, real, _ = engine._propose.propose_fixed(maps, padded, wanted.image_ends)
        engine._box_head.detect_fixed(
            engine._box_head.features(maps, list(proposals)), proposals, real, wanted
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_running_out_of_memory_is_named_and_survived() -> None:
    engine = engine_of("v1")
    image = photo(96, 128)
    (before,) = engine.segment([image], [OPTIONS])
    # As if others had the rest of it.
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / torch.cuda.mem_get_info()[1])
    try:
        with pytest.raises(OutOfDeviceMemory):
            engine.segment([photo(120, 160, seed=n) for n in range(64)], [OPTIONS] * 64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_same(engine.segment([image], [OPTIONS])[0], before)


def test_warm_up_records_both_orientations_and_four_sizes_of_batch() -> None:
    engine = engine_of("small")
    engine.warm_up()
    captured: Any = engine._extract
    assert len(captured._recordings) == 8


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU here")
def test_the_second_gpu_answers_as_the_first() -> None:
    second = engine_of("small", device=torch.device("cuda:1"))
    for seed in range(3):
        image = photo(96, 128, seed=seed)
        (found,) = second.segment([image], [OPTIONS])
        assert_same(found, engine_of("small").segment([image], [OPTIONS])[0])


def test_masks_are_the_cpus() -> None:
    image = photo(96, 128)
    (ours,), (theirs,) = (
        engine_of("small", device=device).segment([image], [OPTIONS]) for device in (GPU, torch.device("cpu"))
    )
    assert_same(ours, theirs)
    assert ours.probabilities is not None
    assert len(paste(ours.probabilities, ours.boxes, ours.size)) == len(theirs)
