"""A thousand instances in one image: found in either way, and their masks computed some at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from model.inference import roi_heads
from model.inference.fixed_size import detect_without_sync
from model.inference.limits import DetectionLimits
from model.instances import MOST_INSTANCES, Options
from model.kernels.nms import nms
from tests.model.crowd import CPU, MODEL, engine, picture
from tests.model.inference.networks import assert_same

if TYPE_CHECKING:
    import pytest

    from model.instances import Instances

LOW = Options(score_threshold=0.05)


def found(options: Options = LOW) -> Instances:
    (instances,) = engine().segment([picture()], [options])
    return instances


def test_a_thousand_instances_are_found_where_the_model_is_made_for_them() -> None:
    assert MODEL.max_instances == len(found()) == 1000
    assert len(found(replace(LOW, max_instances=300))) == 300
    assert len(found(replace(LOW, max_instances=5000))) == 1000


def test_no_two_of_a_category_overlap_and_none_is_left_out_for_a_worse_one() -> None:
    everything = found()
    scores = everything.scores
    assert (scores[:-1] >= scores[1:]).all()
    for label in (1, 2):
        own = everything.labels == label
        boxes = everything.boxes[own]
        assert len(nms(boxes, scores[own], 0.5)) == len(boxes) > 20


@torch.inference_mode()
def test_the_way_of_fixed_sizes_finds_the_same_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    made, size = engine(), engine().input_size(256, 320)
    limits = DetectionLimits([size], [LOW], made._allowed_classes(LOW)[None], CPU)
    maps = made._extract(made._preprocess([picture()], [size], (256, 320)))
    at_once = detect_without_sync(made._propose, made._box_head, maps, (256, 320), limits)
    # More candidates than it looks at, but enough instances among them.
    assert at_once is not None
    boxes, scores, labels = at_once[0][0]
    expected = found()
    torch.testing.assert_close(scores, expected.scores, atol=1e-5, rtol=0)
    # Two of a thousand may have the same score but for rounding, and then either is the first.
    off, match = (boxes[:, None] - expected.boxes).abs().amax(dim=2).min(dim=1)
    assert float(off.max()) < 1e-3
    assert sorted(match.tolist()) == list(range(1000))
    assert labels.tolist() == expected.labels[match].tolist()
    torch.testing.assert_close(scores, expected.scores[match], atol=1e-5, rtol=0)
    monkeypatch.setattr(made._box_head, "_max_candidates", 1010)
    assert detect_without_sync(made._propose, made._box_head, maps, (256, 320), limits) is None


def test_masks_are_computed_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upsampled features of a thousand take 0.8 GB at 256 channels."""
    whole: Any = roi_heads.roi_align
    pooled: list[int] = []

    def noted(table: Any, shapes: Any, boxes: torch.Tensor, *rest: Any) -> Any:
        pooled.append(len(boxes))
        return whole(table, shapes, boxes, *rest)

    monkeypatch.setattr(roi_heads, "roi_align", noted)
    some = found()
    assert sum(pooled[1:]) == 1000
    assert max(pooled[1:]) == roi_heads.MASKS_AT_ONCE["cpu"]
    monkeypatch.setitem(roi_heads.MASKS_AT_ONCE, "cpu", MOST_INSTANCES)
    assert_same(some, found())
    assert pooled[-1] == 1000
