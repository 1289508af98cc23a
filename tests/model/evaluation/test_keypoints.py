"""AP of keypoints against pycocotools' own summary."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.data import Keypoints
from model.data.figures import CATEGORIES, Figures
from model.data.person import PERSON_KEYPOINTS
from model.evaluation.coco import evaluate
from model.evaluation.keypoints import FIGURES, SIGMA, score_keypoints, sigmas
from model.instances import Instances
from model.network.architecture import SMALL
from model.zoo.model_file import describe

if TYPE_CHECKING:
    from model.data import Sample


def case(seed: int, keypoints: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects of two categories, some without keypoints or in crowds, and detections near and far from them."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, 7):
        for _ in range(int(rng.integers(0, 5))):
            side = float(rng.uniform(20, 200))
            points = np.concatenate(
                [
                    rng.uniform(0, side, (keypoints, 2)),
                    rng.choice([0, 1, 2], (keypoints, 1), p=[0.2, 0.2, 0.6]),
                ],
                1,
            ).round(2)
            points[points[:, 2] == 0] = 0
            if rng.random() < 0.15:
                points[:] = 0
            category = int(rng.integers(1, 3))
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": category,
                "iscrowd": int(rng.random() < 0.1), "area": side * side * 0.6, "bbox": [0, 0, side, side],
                "keypoints": points.reshape(-1).tolist(), "num_keypoints": int((points[:, 2] > 0).sum()),
            })  # fmt: skip
            for _ in range(int(rng.integers(0, 3))):
                found = points.copy()
                found[:, :2] += rng.normal(0, rng.choice([0.01, 0.05, 0.2]) * side, (keypoints, 2))
                found[:, 2] = 1
                results.append({
                    "image_id": image, "category_id": category, "score": float(rng.random()),
                    "keypoints": found.reshape(-1).tolist(), "bbox": [0, 0, side, side], "area": side * side,
                })  # fmt: skip
    truth = {
        "images": [{"id": image, "width": 300, "height": 300} for image in range(1, 7)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}],
    }
    return truth, results


def summary(
    truth: dict[str, Any], results: list[dict[str, Any]], deviations: tuple[float, ...]
) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = COCO()
        annotated.dataset = truth
        annotated.createIndex()
        kept = [{k: v for k, v in r.items() if k not in ("bbox", "area")} for r in results]
        counting = COCOeval(annotated, annotated.loadRes(kept), "keypoints")
        counting.params.kpt_oks_sigmas = np.array(deviations)
        counting.evaluate()
        counting.accumulate()
        counting.summarize()
    return list(counting.stats)


@pytest.mark.parametrize("seed", range(6))
def test_figures_are_pycocotools(seed: int) -> None:
    own = PERSON_KEYPOINTS if seed % 2 else Keypoints(("a", "b", "c", "d"))
    truth, results = case(seed, len(own.names))
    figures, per_category, _ = score_keypoints(truth, results, sigmas(own))
    expected = summary(truth, results, sigmas(own))
    np.testing.assert_allclose([figures[name] for name in FIGURES], expected, rtol=0, atol=1e-9)
    assert set(per_category) == {"person", "dog"}


def test_deviations_of_a_person_are_pycocotools() -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        default = COCOeval(iouType="keypoints").params.kpt_oks_sigmas
    np.testing.assert_allclose(sigmas(PERSON_KEYPOINTS), default, rtol=0, atol=1e-12)
    assert sigmas(Keypoints(("a", "b"))) == (SIGMA, SIGMA)


def test_without_any_detection_nothing_is_found() -> None:
    truth, _ = case(1, 17)
    figures, _, _ = score_keypoints(truth, [], sigmas(PERSON_KEYPOINTS))
    assert figures["AP"] == 0


class Oracle:
    """An engine that knows where the drawn people are, up to a shift of their keypoints."""

    def __init__(self, data: Figures, shift: float) -> None:
        architecture = replace(SMALL, classes=2, mask_convs=0, keypoints=17)
        self.model = describe("oracle", architecture, CATEGORIES, keypoints=PERSON_KEYPOINTS)
        self._samples = {
            sample.pixels.tobytes(): sample for sample in map(data.__getitem__, range(len(data)))
        }
        self._shift = shift

    def segment(self, images: list[np.ndarray], _options: Any) -> list[Instances]:
        sample = self._samples[images[0].tobytes()]
        count = len(sample.labels)
        points = torch.from_numpy(sample.keypoints) + torch.tensor([self._shift, 0, 0])
        return [
            Instances(
                images[0].shape[:2],
                torch.from_numpy(sample.boxes),
                torch.linspace(0.9, 0.5, count),
                torch.from_numpy(sample.labels),
                None,
                keypoints=points,
                keypoint_scores=torch.ones(count, 17),
            )
        ]


def test_exact_keypoints_score_one_and_shifted_ones_less() -> None:
    data = Figures(seed=5, length=5, sides=(128, 200))
    exact, shifted = (evaluate(Oracle(data, shift), data) for shift in (0.0, 6.0))
    assert exact.keypoints is not None
    assert shifted.keypoints is not None
    assert exact.keypoints.figures["AP"] == pytest.approx(1.0)
    assert exact.ap()["keypoints"] == 1.0
    assert list(exact.by_kind()) == ["box", "keypoints"]
    assert shifted.keypoints.figures["AP"] < 0.8
    # Of boxes nothing has changed.
    assert shifted.box.figures["AP"] == pytest.approx(1.0)


class Unlabelled(Figures):
    """Drawn people whose keypoints are labelled in crowds only."""

    def annotations(self, sample: Sample) -> list[dict[str, Any]]:
        given = super().annotations(sample)
        crowd = {**given[0], "iscrowd": 1}
        return [crowd, *({**annotation, "num_keypoints": 0} for annotation in given)]


def test_without_a_labelled_keypoint_there_are_no_figures() -> None:
    data = Unlabelled(seed=5, length=2, sides=(128, 200))
    evaluation = evaluate(Oracle(data, 0.0), data)
    assert evaluation.keypoints is None
    assert evaluation.box.figures["AP"] == pytest.approx(1.0)
