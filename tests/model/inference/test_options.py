"""What the options leave out, what is never computed for it, and the warm-up."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from model.data import Category
from model.inference.engine import Engine
from model.instances import Options
from model.zoo import model_file

if TYPE_CHECKING:
    import pytest
    from torch import Tensor


from tests.model.inference.networks import (
    CPU,
    THIN_SMALL,
    Calls,
    described,
    engine_of,
    network,
    photo,
    segment,
)


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


def test_mask_head_sees_only_the_instances_that_were_asked_for(engine: Engine) -> None:
    with Calls(engine, "_mask_head") as calls:
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
    with Calls(engine, "_extract") as images, Calls(engine, "_mask_head") as masks:
        engine.warm_up()
    # Once: it is part of the time until the service is ready.
    assert len(images) == 1
    assert [len(labels) for _, _, labels in masks] == [1]


def test_warm_up_of_what_runs_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of()
    engine.batches = True
    with Calls(engine, "_extract") as calls:
        engine.warm_up()
    shapes = {tuple(images.shape) for (images,) in calls}
    assert shapes == {(n, 3, *size) for n in (1, 2, 4, 8) for size in [(96, 128), (128, 96)]}
    whole, ran = engine._extract, []

    def small(images: Tensor) -> Any:
        ran.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(images)

    monkeypatch.setattr(engine, "_extract", small)
    engine.warm_up()
    assert max(ran) == 4
    assert ran[-1] == 1


def test_warm_up_of_a_network_without_masks() -> None:
    engine = engine_of(replace(THIN_SMALL, mask_convs=0))
    with Calls(engine, "_extract") as images:
        engine.warm_up()
    assert len(images) == 1
