"""Suppression in matrices, and of no more boxes than are needed, against torchvision's nms."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from torchvision import ops
from torchvision.ops import nms

from model.errors import EngineError
from model.kernels.nms import (
    MAX_PASSES,
    batched_nms,
    keep_mask,
    kernel,
    load_operators,
    overlap_matrix,
    top_after_nms,
)
from model.kernels.nms import nms as compiled_nms

if TYPE_CHECKING:
    from pathlib import Path


def scattered(count: int, room: float, seed: int = 0) -> Tensor:
    """[count, 4] boxes in a square; the less room, the more of them overlap."""
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random) * room
    return torch.cat([corner, corner + 1 + 30 * torch.rand(count, 2, generator=random)], 1)


def in_a_row(count: int) -> Tensor:
    """[count, 4] boxes each of which overlaps the next with an IoU of 0.43, and no other by more than 0.12."""
    left = torch.arange(count)[:, None] * 4.0
    return torch.cat([left, torch.zeros_like(left), left + 10, torch.full_like(left, 10.0)], 1)


def kept(boxes: Tensor, most: float, valid: Tensor | None = None) -> tuple[list[int], bool]:
    everything = torch.ones(len(boxes), dtype=torch.bool)
    keep, sure = keep_mask(overlap_matrix(boxes, most), everything if valid is None else valid)
    return keep.nonzero()[:, 0].tolist(), bool(sure)


def theirs(boxes: Tensor, most: float) -> list[int]:
    return sorted(nms(boxes, -torch.arange(len(boxes), dtype=torch.float32), most).tolist())


@pytest.mark.parametrize("most", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("room", [5.0, 60.0, 400.0])
@pytest.mark.parametrize("count", [1, 2, 300])
def test_survivors_are_torchvisions(count: int, room: float, most: float) -> None:
    boxes = scattered(count, room)
    assert kept(boxes, most) == (theirs(boxes, most), True)


def test_boxes_without_area_and_equal_boxes_are_treated_as_torchvision_treats_them() -> None:
    boxes = scattered(40, 20.0)
    boxes[::5, 2:] = boxes[::5, :2]  # points
    boxes = torch.cat([boxes, boxes])
    assert kept(boxes, 0.5) == (theirs(boxes, 0.5), True)


def test_no_boxes_at_all_are_no_trouble() -> None:
    assert kept(torch.zeros(0, 4), 0.5) == ([], True)


@pytest.mark.parametrize("count", [MAX_PASSES, MAX_PASSES + 1, 4 * MAX_PASSES])
def test_a_row_longer_than_the_passes_is_not_called_final(count: int) -> None:
    boxes = in_a_row(count)
    found, sure = kept(boxes, 0.3)
    assert sure is (count <= MAX_PASSES)
    assert found == theirs(boxes, 0.3) or not sure


def test_unusable_boxes_neither_survive_nor_suppress() -> None:
    boxes = scattered(200, 60.0)
    valid = torch.arange(200) % 3 > 0
    found, sure = kept(boxes, 0.4, valid)
    assert sure
    places = valid.nonzero()[:, 0]
    assert found == places[theirs(boxes[valid], 0.4)].tolist()


def test_many_at_once_are_each_by_itself() -> None:
    boxes = torch.stack([scattered(100, 80.0, seed) for seed in range(6)])
    keep, sure = keep_mask(overlap_matrix(boxes, 0.5), torch.ones(6, 100, dtype=torch.bool))
    assert sure
    for row, one in zip(keep, boxes, strict=True):
        assert row.nonzero()[:, 0].tolist() == theirs(one, 0.5)


@pytest.mark.parametrize(
    ("room", "most", "looks"),
    [
        pytest.param(400.0, 7, [17], id="enough of the first survive"),
        pytest.param(5.0, 40, [100, 200], id="enough of twice as many survive"),
        pytest.param(5.0, 100, [250, 300], id="too few of all survive"),
        pytest.param(400.0, 150, [300], id="there are no more than would be tried first"),
    ],
)
def test_the_best_of_the_first_few_are_the_best_of_all(room: float, most: int, looks: list[int]) -> None:
    boxes = scattered(300, room)
    scores = (torch.rand(300, generator=torch.Generator().manual_seed(1)) * 50).round()  # with ties
    looked_at = []

    def run_nms(rows: Tensor) -> Tensor:
        looked_at.append(len(rows))
        return nms(boxes[rows], scores[rows], 0.5)

    order = scores.sort(descending=True, stable=True).indices
    expected = order[nms(boxes[order], scores[order], 0.5).sort().values][:most]
    torch.testing.assert_close(top_after_nms(scores, most, run_nms), expected, rtol=0, atol=0)
    assert looked_at == looks


@pytest.mark.skipif(kernel() is None, reason="there is no compiled kernel here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("room", [5.0, 100.0, 600.0])
@pytest.mark.parametrize("count", [0, 1, 7, 64, 700])
def test_compiled_suppression_is_torchvisions(count: int, room: float, dtype: torch.dtype) -> None:
    boxes = scattered(count, room, count).to(dtype)
    boxes[::7, 2:] = boxes[::7, :2]  # points
    boxes[3::50] = torch.nan
    boxes[1::9] = boxes[1::9].round()
    # With ties.
    scores = (torch.rand(count, generator=torch.Generator().manual_seed(1)) * 50).round().to(dtype)
    for most in (0.0, 0.3, 0.5, 0.7, 1.0):
        assert torch.equal(compiled_nms(boxes, scores, most), nms(boxes, scores, most))


def test_without_a_compiled_kernel_it_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, scores = scattered(90, 60.0), torch.rand(90)
    monkeypatch.setattr("model.kernels.nms.kernel", lambda: None)
    assert torch.equal(compiled_nms(boxes, scores, 0.5), nms(boxes, scores, 0.5))


# torchvision's operators, without the package


@pytest.mark.parametrize("count", [0, 1, 50, 999, 1001, 4000])
def test_suppression_by_label_is_torchvisions(count: int) -> None:
    torch.manual_seed(count)
    corners = torch.rand(count, 2) * 1000
    boxes = torch.cat([corners, corners + torch.rand(count, 2) * 300], 1)
    scores, labels = torch.rand(count), torch.randint(0, 91, (count,))
    found = batched_nms(boxes, scores, labels, 0.5)
    assert torch.equal(found, ops.batched_nms(boxes.double(), scores.double(), labels, 0.5))
    if count > 999:
        assert len(found) < count


def test_a_missing_torchvision_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(EngineError, match=r"torchvision's operators cannot be loaded: [^\n]*$"):
        load_operators.__wrapped__()


@pytest.mark.parametrize("name", ["_C.so", "_C_stable.so"])
def test_operators_that_do_not_fit_torch_are_named_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"of another build")
    spec = importlib.machinery.ModuleSpec("torchvision", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    with pytest.raises(EngineError, match=rf"torchvision's operators cannot be loaded: [^\n]*{name}[^\n]*$"):
        load_operators.__wrapped__()
