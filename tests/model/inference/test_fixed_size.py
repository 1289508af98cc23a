"""The way of fixed sizes that GPUs go, run on the CPU, against the way that CPUs go."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.synthetic_weights import synthetic_weights
from model.data import Category
from model.inference.engine import Engine
from model.inference.fixed_size import detect_without_sync
from model.inference.limits import DetectionLimits
from model.instances import Instances, Options
from model.kernels import nms as suppression
from model.network.architecture import SMALL, V2, Architecture
from model.zoo import model_file

CPU = torch.device("cpu")
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
ARCHITECTURES = {"small": replace(SMALL, **THIN), "v2": replace(V2, **THIN)}
ARCHITECTURES["boxes only"] = replace(ARCHITECTURES["small"], mask_convs=0)

# In inputs of three sizes and one padded shape.
IMAGES = [
    np.random.default_rng(n).integers(0, 256, shape, np.uint8)
    for n, shape in enumerate([(96, 128, 3), (96, 121, 3), (90, 116, 3)])
]
OPTIONS = [
    Options(score_threshold=0.05),
    Options(score_threshold=0.2, max_instances=7, masks=False),
    Options(score_threshold=0.05, categories=frozenset({1, 2, 3})),
]


@cache
def engine(kind: str = "small", *, at_once: bool = True) -> Engine:
    architecture: Architecture = ARCHITECTURES[kind]
    image = torch.from_numpy(IMAGES[0]).permute(2, 0, 1) / 255
    model = model_file.describe("random", architecture, tuple(Category(n, f"kind {n}") for n in range(1, 11)))
    made = Engine(synthetic_weights(architecture, image, seed=5), model, CPU)
    made.batches = at_once
    return made


def assert_same(found: list[Instances], expected: list[Instances]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.labels.tolist() == theirs.labels.tolist()
        torch.testing.assert_close(ours.boxes, theirs.boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=0)
        assert (ours.probabilities is None) == (theirs.probabilities is None)
        if ours.probabilities is not None:
            torch.testing.assert_close(ours.probabilities, theirs.probabilities, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_batch_gets_the_answers_that_its_images_get_alone(kind: str) -> None:
    found = engine(kind)._forward(IMAGES, OPTIONS)
    assert len(found[0]) > 7
    assert len(found[1]) == 7
    assert_same(found, engine(kind, at_once=False).segment(IMAGES, OPTIONS))


def test_nothing_to_find_is_an_answer() -> None:
    nothing = [Options(score_threshold=1.0)] * 2
    assert [len(found) for found in engine()._forward(IMAGES[:2], nothing)] == [0, 0]


@pytest.mark.parametrize("together", [True, False])
def test_numbers_that_overflowed_cost_only_their_own_image(
    together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN reaches no index, which a GPU would not survive."""
    made = engine(at_once=together)
    expected, dense = made.segment(IMAGES, OPTIONS), made._extract
    spoilt = iter([True, False, False])

    def overflowing(images: torch.Tensor) -> Any:
        maps = dense(images)
        if next(spoilt):
            for deltas in maps.deltas:
                deltas[0] = torch.nan
        return maps

    monkeypatch.setattr(made, "_extract", overflowing)
    first, *others = made.segment(IMAGES, OPTIONS)
    assert len(first) == 0
    assert_same(others, expected[1:])


def test_the_mask_head_sees_few_numbers_of_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each, a GPU's libraries would choose kernels again."""
    made, seen = engine(), []
    head: Any = made._mask_head
    monkeypatch.setattr(made, "_mask_head", lambda *args: (seen.append(len(args[2])), head(*args))[1])
    found = made.segment(IMAGES, OPTIONS)
    count = sum(len(f) for f, o in zip(found, OPTIONS, strict=True) if o.masks)
    assert seen == [1 << (count - 1).bit_length() if count <= 64 else -(-count // 64) * 64]
    assert seen != [count]


def at_once(made: Engine) -> object:
    sizes, padded = [made.input_size(*i.shape[:2]) for i in IMAGES], made.padded_shape(96, 128)
    wanted = DetectionLimits(sizes, OPTIONS, torch.stack([made._allowed_classes(o) for o in OPTIONS]), CPU)
    maps = made._extract(made._preprocess(IMAGES, sizes, padded))
    return detect_without_sync(made._propose, made._box_head, maps, padded, wanted)


@pytest.mark.parametrize("limit", ["passes", "candidates"])
def test_what_this_way_is_not_sure_of_goes_the_other(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert at_once(engine()) is not None
    if limit == "passes":
        monkeypatch.setattr(suppression, "MAX_PASSES", 1)
    else:
        monkeypatch.setattr(engine()._box_head, "_max_candidates", 1)
    assert at_once(engine()) is None
    assert_same(engine()._forward(IMAGES, OPTIONS), engine(at_once=False).segment(IMAGES, OPTIONS))


class _Asking(TorchDispatchMode):
    """Notes what a GPU's host would wait for: sizes and numbers that it asks for, and constants that it uploads."""

    WAITS = (
        "nonzero",
        "_local_scalar_dense",
        "masked_select",
        "unique",
        "lift_fresh",
        "nms",
        "repeat_interleave",
    )

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        picks = func.__name__.startswith("index.") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if picks or any(name in func.__name__ for name in self.WAITS):
            self.asked.append(func.__name__)
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def test_the_host_waits_for_nothing_until_all_is_found() -> None:
    made = engine()
    sizes, padded = [made.input_size(*i.shape[:2]) for i in IMAGES], made.padded_shape(96, 128)
    wanted = DetectionLimits(sizes, OPTIONS, torch.stack([made._allowed_classes(o) for o in OPTIONS]), CPU)
    maps = made._extract(made._preprocess(IMAGES, sizes, padded))
    made._box_head.features(maps, [torch.zeros(1, 4)] * 3)  # what is uploaded once for a shape
    with _Asking() as mode:
        proposals, real, _ = made._propose.propose_fixed(maps, padded, wanted.image_ends)
        made._box_head.detect_fixed(made._box_head.features(maps, list(proposals)), proposals, real, wanted)
    assert mode.asked == []
    with _Asking() as mode:  # which does see what the other way asks
        made._propose(maps, padded, sizes)
    assert mode.asked
