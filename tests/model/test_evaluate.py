import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.data import Category, Sample
from model.data.shapes import CATEGORIES, Shapes
from model.evaluate import FIGURES, coco_results, evaluate, score
from model.instances import Instances, Options
from model.network import SMALL
from model.zoo import describe

GOLDEN = Path(__file__).parents[3] / "shared" / "data" / "coco_eval_golden"


class Oracle:
    """An engine that answers with the annotations themselves: full masks in boxes, or spoilt ones."""

    def __init__(self, dataset, *, shift=0.0, categories=CATEGORIES, masks=True):
        self.model = describe("oracle", SMALL, categories)
        self.answers = {}
        for index in range(len(dataset)):
            sample = dataset[index]
            count = len(sample.labels)
            self.answers[sample.pixels.tobytes()] = Instances(
                sample.pixels.shape[:2],
                torch.from_numpy(sample.boxes) + shift,
                torch.linspace(0.9, 0.6, count),
                torch.from_numpy(sample.labels),
                torch.ones(count, 28, 28) if masks else None,
            )

    def segment(self, images, options):
        assert options == [Options(score_threshold=0.0, categories=options[0].categories)]
        return [self.answers[image.tobytes()] for image in images]


@pytest.fixture(scope="module")
def scenes():
    return Shapes(seed=5, length=6, sides=(96, 160))


def test_perfect_boxes_score_one(scenes):
    found = evaluate(Oracle(scenes, masks=False), scenes)
    assert found.images == 6
    assert found.objects == sum(len(scenes[n].labels) for n in range(6))
    assert found.box.figures["AP"] == pytest.approx(1.0)
    assert found.box.figures["AR 100"] == pytest.approx(1.0)
    assert found.mask is None
    assert found.ap() == {"box": 1.0, "box50": 1.0}


def test_shifted_boxes_score_less_at_strict_overlap(scenes):
    found = evaluate(Oracle(scenes, shift=4.0, masks=False), scenes)
    assert found.box.figures["AP"] < 0.8
    assert found.box.figures["AP75"] <= found.box.figures["AP50"]


def test_full_boxes_as_masks_score_less_than_the_shapes_they_hide(scenes):
    found = evaluate(Oracle(scenes), scenes)
    assert found.mask is not None
    assert 0 < found.mask.figures["AP"] < 0.6 < found.box.figures["AP"]
    assert set(found.mask.per_category) == {c.name for c in CATEGORIES}


def test_categories_are_matched_by_name_not_by_number(scenes):
    class Renumbered:
        categories = tuple(Category(c.id + 100, c.name) for c in scenes.categories)

        def __len__(self):
            return len(scenes)

        def __getitem__(self, index):
            s = scenes[index]
            return Sample(s.image_id, s.pixels, s.boxes, s.labels + 100, s.masks)

        def annotations(self, sample):
            return [{**a, "category_id": a["category_id"]} for a in scenes.annotations(sample)]

    dataset = Renumbered()
    assert evaluate(Oracle(scenes, masks=False), dataset).box.figures["AP"] == pytest.approx(1.0)


def test_model_that_finds_nothing_scores_zero(scenes):
    truth = {
        "images": [{"id": 1, "height": 9, "width": 9}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "circle"}],
    }
    assert score(truth, [], "bbox").figures["AP"] == 0.0


def test_object_size_of_a_mask_is_its_own_area_not_its_boxes():
    """A thin diagonal in a large box is a small object; pycocotools takes the box's area if it sees one."""
    bitmap = torch.eye(28)[None] * 0.98
    found = Instances(
        (200, 200), torch.tensor([[0.0, 0, 60, 60]]), torch.tensor([0.9]), torch.tensor([1]), bitmap
    )
    (record,) = coco_results(found, 1, {1: 1})
    truth = {
        "images": [{"id": 1, "height": 200, "width": 200}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [0, 0, 60, 60],
                "area": 200,
                "iscrowd": 0,
                "segmentation": record["segmentation"],
            }
        ],
        "categories": [{"id": 1, "name": "line"}],
    }
    far_away = {**record, "score": 0.99, "segmentation": {**record["segmentation"]}}
    figures = score(truth, [record, far_away], "segm").figures
    assert figures["AP small"] == figures["AP"]


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden COCO evaluation in shared/data is not here")
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_golden_evaluation_is_reproduced(kind):
    expected = json.loads((GOLDEN / "EXPECTED.json").read_text())[kind]
    truth = json.loads((GOLDEN / "instances_val2014_100.json").read_text())
    results = json.loads((GOLDEN / f"instances_val2014_fake{kind}100_results.json").read_text())
    figures = score(truth, results, kind).figures
    assert list(figures) == list(FIGURES)
    assert np.allclose(list(figures.values()), list(expected.values()), rtol=0, atol=1e-9)
