import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.data import Category, DatasetError, Sample
from model.data.cityscapes import Cityscapes
from model.data.shapes import CATEGORIES, Shapes
from model.evaluation.coco import FIGURES, coco_results, evaluate, score
from model.instances import Instances, Options
from model.masks.paste import encode
from model.network.architecture import SMALL
from model.zoo.model_file import describe

GOLDEN = Path(__file__).parent / "golden"
COCOAPI = Path(__file__).parents[4] / "shared" / "data" / "coco_eval_golden"


class Oracle:
    """An engine that answers with the annotations themselves: full masks in boxes, or spoilt ones."""

    def __init__(self, dataset, *, shift=0.0, categories=CATEGORIES, masks=True):
        architecture = SMALL if masks else replace(SMALL, mask_convs=0)
        self.model = describe("oracle", architecture, categories)
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
    assert found.matching is None
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
    assert found.matching is not None
    assert found.matching.true_positives[0] + found.matching.false_negatives[0] == found.objects


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


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_golden_figures_are_those_of_pycocotools(kind):
    """The files and their figures are made by golden/make.py."""
    golden = json.loads((GOLDEN / "coco.json").read_text())
    figures = score(golden["truth"], golden["results"], kind).figures
    assert list(figures) == list(FIGURES)
    assert figures == pytest.approx(golden["expected"][kind], rel=0, abs=1e-9)
    assert min(figures.values()) > 0


@pytest.mark.skipif(not COCOAPI.is_dir(), reason="needs cocoapi's golden set in shared/data")
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_golden_set_of_cocoapi_is_reproduced(kind):
    expected = json.loads((COCOAPI / "EXPECTED.json").read_text())[kind]
    truth = json.loads((COCOAPI / "instances_val2014_100.json").read_text())
    results = json.loads((COCOAPI / f"instances_val2014_fake{kind}100_results.json").read_text())
    figures = score(truth, results, kind).figures
    assert list(figures) == list(FIGURES)
    assert np.allclose(list(figures.values()), list(expected.values()), rtol=0, atol=1e-9)


def random_truth_and_results(rng, images=12):
    """Objects of three sizes and two categories, crowds among them, and detections near some of them."""
    truth = {
        "images": [{"id": n, "height": 240, "width": 320} for n in range(images)],
        "annotations": [],
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
    }
    results = []
    for image in range(images):
        for _ in range(rng.integers(0, 9)):
            side = rng.choice([12, 50, 120])
            x, y, w, h = rng.uniform((0, 0, side / 2, side / 2), (200, 120, side, side)).round(2).tolist()
            category, crowd = int(rng.choice([3, 8])), int(rng.random() < 0.15)
            bitmap = np.zeros((240, 320), np.uint8, order="F")
            bitmap[int(y) : int(y + h), int(x) : int(x + w)] = 1
            rle = encode(bitmap)
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": image, "category_id": category, "iscrowd": crowd,
                 "bbox": [x, y, w, h], "area": rle.area, "segmentation": rle.to_coco()}
            )  # fmt: skip
            for _ in range(rng.integers(0, 3)):
                moved = (np.array([x, y, w, h]) + rng.normal(0, side / 12, 4)).clip(1).tolist()
                bitmap = np.roll(bitmap, int(rng.integers(-3, 4)), int(rng.integers(2)))
                score = round(float(rng.random()), 2)
                label = category if rng.random() < 0.8 else 11 - category
                results.append({"image_id": image, "category_id": label, "score": score, "bbox": moved,
                                "segmentation": encode(bitmap).to_coco()})  # fmt: skip
    return truth, results


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_random_detections_score_what_pycocotools_says_of_the_files(tmp_path, kind, seed):
    """Through files, as pycocotools is meant to be used, and one category at a time for what is per category."""
    truth, results = random_truth_and_results(np.random.default_rng(seed))
    ours = score(truth, results, kind)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    hidden = "bbox" if kind == "segm" else "segmentation"
    (tmp_path / "results.json").write_text(
        json.dumps([{k: v for k, v in r.items() if k != hidden} for r in results])
    )
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = COCO(tmp_path / "truth.json")
        found = annotated.loadRes(str(tmp_path / "results.json"))
        for categories, figures in (([3, 8], ours.figures), ([3], ours.per_category["cat"])):
            theirs = COCOeval(annotated, found, kind)
            theirs.params.catIds = categories
            theirs.evaluate()
            theirs.accumulate()
            theirs.summarize()
            expected = dict(zip(FIGURES, theirs.stats.tolist(), strict=True))
            for name, value in figures.items():
                assert value == pytest.approx(expected[name], abs=1e-9), name


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_more_than_a_hundred_detections_are_counted_as_pycocotools_counts_them(kind):
    """Its summary takes any three numbers of detections, and AP as a mean over its table."""
    rng = np.random.default_rng(9)
    truth = {"images": [{"id": 1, "height": 240, "width": 320}], "annotations": [],
             "categories": [{"id": 3, "name": "cat"}]}  # fmt: skip
    results = []
    for number in range(220):
        x, y, w, h = (*rng.integers(0, (280, 200)).tolist(), *rng.integers(4, 40, 2).tolist())
        for moved in ((0, 0), rng.integers(-3, 4, 2).tolist()):
            bitmap = np.zeros((240, 320), np.uint8)
            bitmap[max(0, y + moved[0]) : y + h + moved[0], max(0, x + moved[1]) : x + w + moved[1]] = 1
            rle, box = encode(bitmap), [max(0, x + moved[1]), max(0, y + moved[0]), w, h]
            record = {"image_id": 1, "category_id": 3, "bbox": box, "segmentation": rle.to_coco()}
            if moved == (0, 0):
                truth["annotations"].append({**record, "id": number + 1, "iscrowd": 0, "area": rle.area})
            else:
                results.append({**record, "score": round(float(rng.random()), 3)})
    ours = score(truth, results, kind, detections=150).figures
    hidden = "bbox" if kind == "segm" else "segmentation"
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = COCO()
        annotated.dataset = truth
        annotated.createIndex()
        kept = [{k: v for k, v in record.items() if k != hidden} for record in results]
        theirs = COCOeval(annotated, annotated.loadRes(kept), kind)
        theirs.params.maxDets = [1, 10, 150]
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    precision = theirs.eval["precision"][:, :, :, 0, -1]
    assert ours["AP"] == pytest.approx(precision[precision > -1].mean(), abs=1e-12)
    names = ["AP50", "AP75", "AP small", "AP medium", "AP large", "AR 1", "AR 10", "AR 150"]
    names += ["AR small", "AR medium", "AR large"]
    for name, value in zip(names, theirs.stats[1:].tolist(), strict=True):
        assert ours[name] == pytest.approx(value, abs=1e-12), name
    standard = score(truth, results, kind).figures
    assert standard["AR 100"] == ours["AR 100"] < ours["AR 150"]
    assert 0 < standard["AP"] < ours["AP"]
    assert "AR 150" not in standard


def test_image_that_cannot_be_read_is_left_out_and_named(scenes):
    class Damaged(Shapes):
        def __getitem__(self, index):
            if index == 2:
                raise DatasetError("scene 2: cut short")
            return super().__getitem__(index)

    found = evaluate(Oracle(scenes), Damaged(seed=5, length=6, sides=(96, 160)))
    assert found.images == 5
    assert found.unreadable == ("scene 2: cut short",)


def test_dataset_of_which_nothing_can_be_read_is_refused(scenes):
    class Gone(Shapes):
        def __getitem__(self, index):
            raise DatasetError(f"scene {index}: gone")

    with pytest.raises(DatasetError, match="scene 0: gone"):
        evaluate(Oracle(scenes), Gone(seed=5, length=6, sides=(96, 160)))


def test_confusion_and_verdicts_are_of_the_surest_detections(scenes):
    found = evaluate(Oracle(scenes, masks=False), scenes)
    assert np.array_equal(found.confusion.matrix, np.diag(np.diag(found.confusion.matrix)))
    assert found.confusion.matrix.sum() == found.objects
    assert found.confusion.worst(9) == []


def test_streets_are_measured_by_cityscapes_protocol_too(tmp_path):
    photos, maps = (tmp_path / kind / "val" / "ulm" for kind in ("leftImg8bit", "gtFine"))
    photos.mkdir(parents=True)
    maps.mkdir(parents=True)
    ids = np.full((96, 128), 7, np.uint16)
    ids[10:60, 20:90] = 26001
    Image.fromarray(ids).save(maps / "ulm_0_0_gtFine_instanceIds.png")
    Image.new("RGB", (128, 96)).save(photos / "ulm_0_0_leftImg8bit.png")
    dataset = Cityscapes(tmp_path, "val")
    found = evaluate(Oracle(dataset, categories=dataset.categories), dataset)
    assert found.cityscapes.ap50 == 1.0
    assert found.mask.figures["AP50"] == pytest.approx(1.0)
    assert found.cityscapes.per_category["car"] == (found.cityscapes.ap, 1.0)
    assert evaluate(Oracle(dataset, categories=dataset.categories, masks=False), dataset).cityscapes is None
