"""The scenes that draw themselves: the same everywhere, exactly annotated, as varied as they claim."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from model.data import Category, DatasetError, drawing, shapes
from model.data.outlines import (
    DISTRACTORS,
    SHAPES,
    Outline,
    coverage,
    distort,
    distractor,
    letter_coverage,
    outline,
)
from model.data.shapes import (
    CATEGORIES,
    LEAST_PIXELS,
    LEAST_VISIBLE,
    Shapes,
    held_out_scenes,
    training_scenes,
)

if TYPE_CHECKING:
    from pathlib import Path

    from model.data import Sample

# pycocotools 2.0.11's decoder has not learnt numpy 2's `copy` argument.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALL_SIDES = (64, 160)


@pytest.fixture(scope="module")
def dataset() -> Shapes:
    """Scenes small enough to draw many of."""
    return Shapes(seed=11, length=60, sides=SMALL_SIDES)


@pytest.fixture(scope="module")
def scenes(dataset: Shapes) -> list[Sample]:
    return [dataset[index] for index in range(len(dataset))]


# The same everywhere


def test_same_seed_and_index_draw_the_same_scene(dataset: Shapes, scenes: list[Sample]) -> None:
    again = Shapes(seed=11, length=7, sides=SMALL_SIDES)  # another length, and drawn in another order
    for index in (6, 2):
        ours, theirs = again[index], scenes[index]
        for field in ("pixels", "boxes", "labels", "masks", "visibility"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))


def test_other_seeds_and_indices_draw_other_scenes(dataset: Shapes, scenes: list[Sample]) -> None:
    other = Shapes(seed=12, length=1, sides=SMALL_SIDES)[0]
    drawn = [scene.pixels.tobytes() for scene in (*scenes, other)]
    assert len(set(drawn)) == len(drawn)


def test_scenes_of_the_bundled_model_stay_what_they_were() -> None:
    """What a model was trained and measured on must not change unseen; pixels may differ in their last bits."""
    first, measured = training_scenes()[0], held_out_scenes()[0]
    assert first.pixels.shape == (559, 569, 3)
    assert first.labels.tolist() == [6, 7, 10, 5]
    np.testing.assert_allclose(first.boxes[0], [351, 98, 539, 336], atol=1)
    np.testing.assert_allclose(first.pixels.mean((0, 1)), [63.0, 142.3, 77.9], atol=0.5)
    assert measured.pixels.shape == (411, 295, 3)
    assert measured.labels.tolist() == [9, 8, 7, 7, 2, 1]


def test_held_out_scenes_are_of_another_seed() -> None:
    assert (training_scenes().seed, held_out_scenes().seed) == (1, 2)
    assert (len(training_scenes()), len(held_out_scenes())) == (50_000, 500)
    assert held_out_scenes().sides == (200, 1024)


# What no object is


def covers(drawn: Outline) -> np.ndarray:
    """An outline's coverage of 48 × 48 pixels, its centroid in the middle, its area a fifth of the square's."""
    inside, _ = coverage(drawn.fit(70))
    inside = np.pad(inside, 100)
    area = inside.sum()
    x, y = (inside.sum(axis) @ (np.arange(inside.shape[1 - axis]) + 0.5) / area for axis in (0, 1))
    half = np.sqrt(5 * area) / 2
    square = (x - half, y - half, x + half, y + half)
    small = Image.fromarray(inside).resize((48, 48), Image.Resampling.BOX, box=square)
    return np.asarray(small).ravel()


@pytest.fixture(scope="module")
def turned_shapes() -> tuple[np.ndarray, list[str]]:
    """Each shape at 24 angles, unstretched and stretched along four axes as far as scenes do: [N, 48 · 48], names."""
    rng = np.random.default_rng(0)
    masks, names = [], []
    for shape in SHAPES:
        for _ in range(3 if shape in ("star", "ring", "cross", "crescent") else 1):  # which vary
            upright = outline(shape, rng)
            for axis, factor in [
                (0.0, 1.0),
                *((a, f) for a in np.arange(4) * np.pi / 4 for f in (0.88, 1.12)),
            ]:
                c, s = np.cos(axis), np.sin(axis)
                turn = np.array([[c, -s], [s, c]])
                stretched = upright.transform(turn.T @ np.diag([1, factor]) @ turn)
                for angle in np.arange(24) * np.pi / 12:
                    c, s = np.cos(angle), np.sin(angle)
                    masks.append(covers(stretched.transform(np.array([[c, -s], [s, c]]))))
                    names.append(shape)
    return np.array(masks, np.float32), names


def likeness(drawn: Outline, turned_shapes: tuple[np.ndarray, list[str]]) -> tuple[float, str]:
    """The best IoU with any shape, laid on one another by their centroids at the same area, and which that is."""
    masks, names = turned_shapes
    mask = covers(drawn)
    shared = np.minimum(masks, mask).sum(1)
    ratio = shared / (masks.sum(1) + mask.sum() - shared)
    return float(ratio.max()), names[int(ratio.argmax())]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_told_by_their_likeness(shape: str, turned_shapes: tuple[np.ndarray, list[str]]) -> None:
    """That the next test can fail."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        found, name = likeness(distort(outline(shape, rng), rng, stretch=0.1), turned_shapes)
        assert found > {"ring": 0.6, "crescent": 0.8}.get(shape, 0.85)  # those vary most
        assert name == shape


@pytest.mark.parametrize("kind", ["oval", *(kind for kind in DISTRACTORS if kind != "letter")])
def test_no_distractor_looks_like_a_shape(kind: str, turned_shapes: tuple[np.ndarray, list[str]]) -> None:
    """Objects that the annotations deny teach a model nothing, and cost it precision where it is right."""
    rng = np.random.default_rng(2)
    found = [likeness(distort(distractor(kind, rng), rng, stretch=0.15), turned_shapes) for _ in range(25)]
    assert max(found)[0] < 0.9, max(found)


def enclosed(points: np.ndarray) -> float:
    """The area inside a closed curve [P, 2]."""
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def test_splinters_are_no_triangles_or_squares() -> None:
    """Of no proportions, also such as no triangle in a scene has."""
    rng = np.random.default_rng(2)
    for _ in range(200):
        points = distractor("splinter", rng).outer
        assert enclosed(points) <= 0.6 * enclosed(points[::2])


# Backgrounds


def test_scenes_can_be_drawn_on_photos(tmp_path: Path) -> None:
    for name, size in (("b.png", (40, 30)), ("a.jpg", (300, 500)), ("c.WEBP", (64, 64))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photo")
    assert [photo.name for photo in shapes.photos_in(tmp_path)] == ["a.jpg", "b.png", "c.WEBP"]
    drawn = Shapes(seed=11, length=60, sides=SMALL_SIDES, photos=shapes.photos_in(tmp_path))
    red = 0
    for index in range(60):
        sample = drawn[index]
        assert sample.pixels.shape[:2] == drawn.size(index)
        others = sample.pixels[..., 1:].max(2).astype(int)
        red += (sample.pixels[..., 0] > others + 120).mean() > 0.3
    assert 0.5 * shapes.PHOTO_PART < red / 60 < 1.5 * shapes.PHOTO_PART


def test_part_of_a_photo_keeps_its_place_and_scale() -> None:
    photo = np.zeros((100, 200, 3), np.uint8)
    photo[..., 0] = np.arange(200)  # brighter to the right
    seen = [drawing.cut_out(np.random.default_rng(seed), photo, 50, 100) for seed in range(30)]
    assert {part.shape for part in seen} == {(50, 100, 3)}
    slopes = np.array([np.diff(part[25, 5:95, 0]).mean() for part in seen])
    assert (slopes > 0).any()
    assert (slopes < 0).any()  # mirrored
    assert (
        0.95 < np.abs(slopes).min() < np.abs(slopes).max() < 2.05
    )  # as large as there is room for, or half of that
    tiny = drawing.cut_out(np.random.default_rng(0), photo[:1, :1], 30, 60)
    assert tiny.shape == (30, 60, 3)


def test_photos_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere: cannot be read as a folder of photos: No such file"):
        training_scenes(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"no images \(JPEG, PNG.*\) in this folder"):
        training_scenes(tmp_path)
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    scenes = Shapes(seed=11, length=40, sides=SMALL_SIDES, photos=shapes.photos_in(tmp_path))
    with pytest.raises(DatasetError, match=r"torn\.jpg: "):
        _ = [scenes[index] for index in range(40)]


def test_part_of_the_scenes_has_no_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    monkeypatch.setattr(shapes, "PHOTO_PART", 1.0)

    def empty(photos: tuple[Path, ...]) -> float:
        scenes = Shapes(seed=11, length=40, sides=SMALL_SIDES, photos=photos)
        return sum(len(scenes[index].labels) == 0 for index in range(40)) / 40

    assert 0 < empty(()) < 3 * shapes.EMPTY
    assert 0.6 * shapes.EMPTY_PHOTOS < empty(shapes.photos_in(tmp_path)) < 1.4 * shapes.EMPTY_PHOTOS


# Size


def test_things_lie_behind_the_shapes_and_are_no_objects() -> None:
    plain, strewn = (Shapes(seed=11, length=8, sides=SMALL_SIDES, things=part) for part in (0.0, 1.0))
    for index in range(8):
        sample = strewn[index]
        assert sample.pixels.shape == plain[index].pixels.shape
        assert not np.array_equal(sample.pixels, plain[index].pixels)
        assert len(sample.labels) == len(sample.boxes) == len(sample.masks) <= 12


def test_a_thing_is_painted_on_the_canvas_and_leaves_the_rest() -> None:
    canvas = np.full((120, 160, 3), 128, np.float32)
    covered = []
    for seed in range(20):
        painted = drawing.paint_things(np.random.default_rng(seed), canvas)
        assert painted.shape == canvas.shape
        assert np.isfinite(painted).all()
        covered.append(float((painted != canvas).any(-1).mean()))
    assert (canvas == 128).all()
    assert 0.02 < np.median(covered) < 0.98
    assert len(set(covered)) > 15


def test_size_is_known_without_drawing(dataset: Shapes, scenes: list[Sample]) -> None:
    assert [dataset.size(n) for n in range(len(dataset))] == [scene.pixels.shape[:2] for scene in scenes]


@pytest.mark.parametrize("sides", [SMALL_SIDES, (200, 600), (200, 1024), (300, 300), (500, 600)])
def test_sides_and_aspect_ratios_keep_their_limits(sides: tuple[int, int]) -> None:
    dataset = Shapes(seed=5, length=800, sides=sides)
    sizes = np.array([dataset.size(n) for n in range(len(dataset))])
    assert sizes.min() >= sides[0]
    assert sizes.max() <= sides[1]
    short, long = sizes.min(1), sizes.max(1)
    assert (long <= 2 * short + 1).all()  # + 1: both are rounded
    wide = sizes[:, 1] > sizes[:, 0]
    if sides[0] < sides[1]:
        assert 0.4 < wide.mean() < 0.6


def test_default_scenes_use_the_whole_range_of_sizes() -> None:
    dataset = Shapes(seed=5, length=2000)
    sizes = np.array([dataset.size(n) for n in range(len(dataset))])
    assert 200 <= sizes.min() < 210
    assert 1000 < sizes.max() <= 1024
    ratios = sizes[:, 1] / sizes[:, 0]
    assert ratios.min() < 0.52
    assert ratios.max() > 1.9


@pytest.mark.parametrize(("length", "sides"), [(-1, (200, 300)), (1, (63, 300)), (1, (300, 200))])
def test_senseless_datasets_are_refused(length: int, sides: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        Shapes(1, length, sides)


@pytest.mark.parametrize("index", [-1, 60, 1000])
def test_scenes_beyond_the_length_are_no_scenes(dataset: Shapes, index: int) -> None:
    for ask in (dataset.__getitem__, dataset.size):
        with pytest.raises(IndexError, match=f"scene {index} of 60"):
            ask(index)


# Annotations


def test_samples_have_the_declared_types(scenes: list[Sample]) -> None:
    for index, scene in enumerate(scenes):
        count = len(scene.labels)
        assert scene.image_id == index
        assert scene.visibility is not None
        arrays = (scene.pixels, scene.boxes, scene.labels, scene.masks, scene.visibility)
        assert [array.dtype for array in arrays] == [np.uint8, np.float32, np.int64, np.uint8, np.float64]
        assert scene.boxes.shape == (count, 4)
        assert scene.masks.shape == (count, *scene.pixels.shape[:2])
        assert scene.masks.max(initial=0) <= 1


def test_masks_are_what_is_visible_and_never_overlap(scenes: list[Sample]) -> None:
    assert all(scene.masks.sum(0).max(initial=0) <= 1 for scene in scenes)


def test_boxes_are_tight_around_masks(scenes: list[Sample]) -> None:
    for scene in scenes:
        for box, mask in zip(scene.boxes.tolist(), scene.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_objects_stay_visible(scenes: list[Sample]) -> None:
    parts = np.concatenate([scene.visibility for scene in scenes])
    pixels = np.concatenate([scene.masks.sum((1, 2)) for scene in scenes])
    assert parts.min() >= LEAST_VISIBLE
    assert parts.max() == 1
    assert (parts < 0.9).any()  # some are occluded, or cut by the border
    assert pixels.min() >= LEAST_PIXELS


def test_every_category_appears(scenes: list[Sample]) -> None:
    seen = Counter(int(label) for scene in scenes for label in scene.labels)
    assert set(seen) == set(range(1, 11))
    assert [c.id for c in CATEGORIES] == list(range(1, 11))
    assert tuple(c.name for c in CATEGORIES) == SHAPES


def test_scenes_range_from_empty_to_crowded(scenes: list[Sample]) -> None:
    counts = [len(scene.labels) for scene in scenes]
    assert min(counts) == 0
    assert max(counts) >= 6


def test_objects_are_drawn_from_16_pixels_to_60_percent_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, tuple[int, ...]]] = []
    real = shapes._draw_shape

    def noted(rng: np.random.Generator, size: float) -> tuple[int, np.ndarray, np.ndarray | None]:
        label, inside, line = real(rng, size)
        drawn.append((size, inside.shape))
        return label, inside, line

    monkeypatch.setattr(shapes, "_draw_shape", noted)
    dataset = Shapes(seed=4, length=30, sides=(64, 300))
    for index in range(len(dataset)):
        drawn.clear()
        short = min(dataset.size(index))
        _ = dataset[index]
        for size, shape in drawn:
            assert max(16, 0.065 * short) <= size <= 0.6 * short + 1e-9
            assert size <= max(shape) <= size + 2


def test_annotations_follow_from_the_sample(dataset: Shapes, scenes: list[Sample]) -> None:
    scene = max(scenes, key=lambda scene: len(scene.labels))
    assert scene.visibility is not None
    annotations = dataset.annotations(scene)
    assert len(annotations) == len(scene.labels) > 1
    for row, annotation in enumerate(annotations):
        x, y, w, h = annotation["bbox"]
        assert [x, y, x + w, y + h] == scene.boxes[row].tolist()
        assert annotation["area"] == scene.masks[row].sum()
        assert annotation["category_id"] == scene.labels[row]
        assert (annotation["image_id"], annotation["iscrowd"]) == (scene.image_id, 0)
        assert annotation["visibility"] == pytest.approx(scene.visibility[row], abs=1e-4)
        np.testing.assert_array_equal(coco.decode(annotation["segmentation"]), scene.masks[row])


def test_export_is_read_by_pycocotools(
    dataset: Shapes, scenes: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [4, 9, 17]
    dataset.export(tmp_path, chosen)
    read = COCO(tmp_path / "instances.json")
    assert "index created" in capsys.readouterr().out
    assert sorted(read.getImgIds()) == chosen
    categories = [Category(c["id"], c["name"]) for c in read.loadCats(read.getCatIds())]
    assert tuple(categories) == CATEGORIES
    ids = read.getAnnIds()
    assert len(set(ids)) == len(ids) == sum(len(scenes[n].labels) for n in chosen) > 3
    assert 0 not in ids  # which pycocotools takes for "no match"
    for image in read.loadImgs(chosen):
        scene = scenes[image["id"]]
        with Image.open(tmp_path / "images" / image["file_name"]) as picture:
            assert (picture.format, picture.size) == ("JPEG", (image["width"], image["height"]))
            error = np.asarray(picture, np.float32) - scene.pixels
        assert np.abs(error).mean() < 6  # quality 90
        masks = [read.annToMask(a) for a in read.loadAnns(read.getAnnIds(image["id"]))]
        np.testing.assert_array_equal(np.array(masks).reshape(scene.masks.shape), scene.masks)


def test_export_without_a_choice_has_every_scene(tmp_path: Path) -> None:
    dataset = Shapes(seed=1, length=3, sides=(64, 80))
    dataset.export(tmp_path)
    document = json.loads((tmp_path / "instances.json").read_text())
    assert [image["id"] for image in document["images"]] == [0, 1, 2]
    assert len(list((tmp_path / "images").iterdir())) == 3


# Drawing


def area(points: np.ndarray) -> float:
    x, y = points.T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def fit(name: str, seed: int) -> Outline:
    rng = np.random.default_rng(seed)
    made = outline(name, rng) if name in SHAPES else distractor(name, rng)
    return distort(made, rng, stretch=0.12).fit(40.0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [*SHAPES, *(kind for kind in DISTRACTORS if kind != "letter"), "oval"])
def test_outlines_are_curves_of_the_size_asked_for(name: str, seed: int) -> None:
    shape = fit(name, seed)
    assert shape.outer.shape[1] == 2
    assert np.isfinite(shape.outer).all()
    np.testing.assert_allclose(shape.outer.min(0), 0, atol=1e-9)
    assert shape.outer.max() == pytest.approx(40)
    covered, _ = coverage(shape)
    assert 0 <= covered.min() <= covered.max() <= 1
    assert (covered > 0.5).sum() > 20


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_cover_what_their_outline_encloses(name: str, seed: int) -> None:
    shape = fit(name, seed)
    hole = 0.0 if shape.hole is None else area(shape.hole)
    # Pillow fills a little beyond the curve, which adds up to 2.5 % at this size.
    assert coverage(shape)[0].sum() == pytest.approx(area(shape.outer) - hole, rel=0.04)


def test_ring_has_a_hole() -> None:
    ring = outline("ring", np.random.default_rng(0)).fit(60.0)
    covered, _ = coverage(ring)
    assert covered[30, 30] == 0
    assert covered[30, 3] == 1


def test_stroke_lies_inside_the_shape() -> None:
    covered, line = coverage(outline("star", np.random.default_rng(0)).fit(60.0), stroke=3.0)
    assert line is not None
    assert (line <= covered).all()
    assert 0 < line.sum() < covered.sum()


@pytest.mark.parametrize("size", [40.0, 300.0])
def test_coverage_is_as_large_as_the_outline(size: float) -> None:
    square = Outline(np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]])).fit(size)
    covered, line = coverage(square)
    assert line is None
    assert covered.dtype == np.float32
    assert covered.sum() == pytest.approx(size**2, rel=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_letters_leave_ink(seed: int) -> None:
    covered = letter_coverage(np.random.default_rng(seed), 30.0)
    assert covered.dtype == np.float32
    assert 0 <= covered.min() < covered.max() <= 1
    assert 20 < covered.sum() < covered.size


@pytest.mark.parametrize("make", [outline, distractor])
def test_unknown_outline_is_refused_with_those_that_there_are(make: Any) -> None:
    with pytest.raises(ValueError, match="'dodecahedron'; there are"):
        make("dodecahedron", np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(12))
def test_backgrounds_and_fills_are_finite_colours(seed: int) -> None:
    rng = np.random.default_rng(seed)
    canvas = drawing.scribble(rng, drawing.background(rng, 40, 56))
    painted = drawing.fill(rng, 20, 30, drawing.colour(rng))
    assert (canvas.shape, painted.shape) == ((40, 56, 3), (20, 30, 3))
    assert np.isfinite(canvas).all()
    assert np.isfinite(painted).all()
    assert 0 <= canvas.min() <= canvas.max() <= 255
