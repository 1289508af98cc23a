"""Passes on some of the cores: they give the answers of a pass on all, also while others run."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from model.data.shapes import Shapes
from model.inference.engine import Engine
from model.instances import Options
from model.kernels import int8, onednn
from model.network.build import build
from model.network.conventions import Conventions
from tests.model.inference.networks import ARCHITECTURES, CPU, described, network, photo, segment

if TYPE_CHECKING:
    import numpy as np

    from model.instances import Instances

CORES = (1, 3)
SMALL = ARCHITECTURES["small"]
NETWORKS = {
    "small": SMALL,
    "v2": ARCHITECTURES["v2"],
    "keypoints": replace(SMALL, classes=2, keypoints=5, keypoint_channels=16),
    "probabilities": replace(SMALL, conventions=Conventions(rpn_sigmoid=True)),
    # Of maps as large as torch needs to divide the sums of a norm between threads.
    "group norm": replace(
        ARCHITECTURES["v2"], fpn_channels=32, mask_channels=32, head_norm="group", min_size=160, max_size=200
    ),
}
# Sides of photos; the second is resized as large ones are.
SIZES = (91, 113), (701, 903)
PRECISIONS = (
    "float32",
    pytest.param("bfloat16", marks=pytest.mark.skipif(not onednn.has_bfloat16(), reason="oneDNN has no bfloat16 here")),
    pytest.param("int8", marks=pytest.mark.skipif(not int8.is_supported(), reason="int8 needs AVX2")),
)  # fmt: skip


def assert_equal(ours: Instances, theirs: Instances) -> None:
    """Bit for bit."""
    for name in ("boxes", "scores", "labels", "probabilities", "keypoints", "keypoint_scores"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None and other is None) or torch.equal(one, other), name


def on(engine: Engine, image: np.ndarray, cores: int | None) -> Instances:
    (found,) = engine.segment([image], [Options(score_threshold=0.0)], cores=cores)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_number_of_cores_does_not_change_the_answer(name: str) -> None:
    architecture = NETWORKS[name]
    engine = Engine(copy.deepcopy(network(architecture)), described(architecture), CPU)
    for size in SIZES:
        image = photo(*size)
        whole = on(engine, image, None)
        assert len(whole) > 3
        for cores in CORES:
            assert_equal(on(engine, image, cores), whole)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bundled_model_gives_the_same_on_any_number_of_cores(precision: str) -> None:
    engine, other = (Engine.load("shapes", precision=precision) for _ in range(2))
    image = Shapes(seed=7, length=1)[0].pixels
    whole = on(engine, image, 2)
    assert len(whole) > 3
    for cores in CORES:
        assert_equal(on(engine, image, cores), whole)
    # Weights are laid out at the first image, whatever it has of the cores.
    assert_equal(on(other, image, 1), whole)
    assert_equal(on(other, image, 2), whole)


def test_several_threads_may_use_an_engine_at_once() -> None:
    engine = Engine(copy.deepcopy(network(SMALL)), described(SMALL), CPU)
    images = [photo(60 + 7 * n, 100, seed=n) for n in range(12)]
    expected = [on(engine, image, None) for image in images]
    # Prepared by nobody yet.
    fresh = Engine(copy.deepcopy(network(SMALL)), described(SMALL), CPU)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(lambda image: on(fresh, image, 1), images)
            for ours, theirs in zip(found, expected, strict=True):
                assert_equal(ours, theirs)


def test_what_torchvision_computes_shares_no_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    cores = [
        Engine(build(architecture), described(architecture), CPU).cores
        for architecture in (SMALL, replace(SMALL, masks="agnostic"))
    ]
    assert cores == [8, 1]


def test_pass_on_some_cores_leaves_the_number_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(copy.deepcopy(network(SMALL)), described(SMALL), CPU)
    before, seen = torch.get_num_threads(), []
    some = before + 2
    forward = engine._forward
    monkeypatch.setattr(
        engine, "_forward", lambda *a, **k: [seen.append(torch.get_num_threads()), forward(*a, **k)][1]
    )
    on(engine, photo(64, 64), some)
    segment(engine, photo(64, 64))
    assert seen == [some, before]
    assert torch.get_num_threads() == before

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("on purpose")

    monkeypatch.setattr(engine, "_forward", fail)
    with pytest.raises(ValueError, match="on purpose"):
        on(engine, photo(64, 64), some)
    assert torch.get_num_threads() == before
