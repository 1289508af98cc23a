"""Seeded, endless scenes of drawn people with COCO's 17 keypoints: the data set of keypoints that needs no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model.data import Category, Sample
from model.data.drawing import background, colour, fill, natural_fill, scribble, simulate_camera
from model.data.outlines import coverage, distort, distractor
from model.data.person import PERSON_KEYPOINTS
from model.data.pose import Drawn, draw_figure, pose
from model.data.scenes import Scenes
from model.masks.boxes import mask_to_box

if TYPE_CHECKING:
    from numpy.random import Generator

    from model.data.pose import Figure

CATEGORIES = (Category(1, "person"),)
# A person is never hidden further than this part of its area.
LEAST_VISIBLE = 0.7
# The part of the scenes without people.
EMPTY = 0.05
MOST_PEOPLE = 3
# The part of the scenes with lines and patches all over the background.
SCRIBBLED = 0.25
# Nose and eyes, of which nothing is seen from behind.
FACE = slice(0, 3)
# What hides parts of people, or stands beside them.
MOST_OBJECTS = 3
# Of a person, parts of the shorter image side.
HEIGHTS = 0.4, 0.95
# Pixels: smaller people have no joints that can be told apart.
LEAST_HEIGHT = 72


@dataclass(slots=True)
class _Scene:
    """What has been drawn so far."""

    canvas: np.ndarray  # [H, W, 3] float32
    owner: np.ndarray  # [H, W] int16: the person that each pixel shows, or -1
    people: list[_Person]


class _Person(NamedTuple):
    """A person that stands in the scene."""

    points: np.ndarray  # [17, 2] x and y, pixels of the scene
    faces_away: bool
    # Pixels of the whole person, also what lies outside the image or behind others.
    area: int


def training_figures() -> Figures:
    """The scenes to train on."""
    return Figures(seed=11, length=50_000)


def held_out_figures() -> Figures:
    """The scenes that models are measured on, of a seed that is never trained on."""
    return Figures(seed=12, length=500)


class Figures(Scenes):
    """Scenes of people of thick or thin limbs, in clothes or in one colour, from the front or from behind.

    A keypoint is visible (2) where nothing stands before its person, hidden (1) where something does, and not labelled
    (0) outside the image. From behind, the face is hidden and left is on the left side of the image.
    """

    categories = CATEGORIES
    keypoints = PERSON_KEYPOINTS

    def __init__(self, seed: int, length: int, sides: tuple[int, int] = (160, 400)) -> None:
        """As Scenes."""
        super().__init__(seed, length, sides)

    def __getitem__(self, index: int) -> Sample:
        """Scene `index`, with boxes and masks of what is visible of each person, and keypoints."""
        rng = self._generator(index)
        height, width = self._size(rng)
        canvas = background(rng, height, width)
        if rng.random() < SCRIBBLED:
            canvas = scribble(rng, canvas)
        scene = _Scene(canvas, np.full((height, width), -1, np.int16), [])
        people = 0 if rng.random() < EMPTY else int(rng.integers(1, MOST_PEOPLE + 1))
        objects = int(rng.integers(0, MOST_OBJECTS + 1))
        for is_person in rng.permutation([1] * people + [0] * objects).tolist():
            # A crowded scene may have no room left: then it has one thing fewer.
            for _ in range(6):
                if _place(rng, scene, *(_person if is_person else _object)(rng, min(height, width))):
                    break
        return _sample(index, simulate_camera(rng, scene.canvas), scene)


def _person(rng: Generator, short: int) -> tuple[Drawn, Figure | None]:
    least = max(float(LEAST_HEIGHT), HEIGHTS[0] * short)
    most = max(least, HEIGHTS[1] * short)
    figure = pose(rng, least * (most / least) ** rng.random())
    return draw_figure(rng, figure), figure


def _object(rng: Generator, short: int) -> tuple[Drawn, Figure | None]:
    """A bar, a blob or an oval, of one colour or as rough as things in photos."""
    size = short * float(np.exp(rng.uniform(np.log(0.08), np.log(0.45))))
    kind = str(rng.choice(["blob", "rounded bar", "bar", "oval", "trapezoid"]))
    inside, _ = coverage(distort(distractor(kind, rng), rng, stretch=0.15).fit(max(8.0, size)))
    h, w = inside.shape
    painted = (natural_fill if rng.random() < 0.5 else fill)(rng, h, w, colour(rng))
    return Drawn(painted * inside[..., None], inside, (0.0, 0.0)), None


def _place(rng: Generator, scene: _Scene, drawn: Drawn, figure: Figure | None) -> bool:
    """Draw one more thing on top, unless it would hide a person too far or itself lie outside; say if it was."""
    height, width = scene.owner.shape
    h, w = drawn.coverage.shape
    # A fifth may lie beyond the border.
    left, top = (round(rng.uniform(-0.2 * own, side - 0.8 * own)) for own, side in ((w, width), (h, height)))
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + w, width), min(top + h, height)
    if x1 <= x0 or y1 <= y0:
        return False
    crop, own = (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    solid = drawn.coverage > 0.5
    area = int(solid.sum())
    if figure is not None and solid[own].sum() < LEAST_VISIBLE * area:
        return False
    owner = scene.owner.copy()
    owner[crop][solid[own]] = -1 if figure is None else len(scene.people)
    seen = np.bincount(owner.reshape(-1) + 1, minlength=len(scene.people) + 2)[1:]
    if any(seen[n] < LEAST_VISIBLE * person.area for n, person in enumerate(scene.people)):
        return False
    scene.owner = owner
    part = scene.canvas[crop]
    part *= 1 - drawn.coverage[own][..., None]
    part += drawn.painted[own]
    if figure is not None:
        corner = np.array([left, top]) - drawn.corner
        scene.people.append(_Person(figure.points + corner, figure.faces_away, area))
    return True


def _sample(index: int, pixels: np.ndarray, scene: _Scene) -> Sample:
    height, width = scene.owner.shape
    count = len(scene.people)
    masks = np.stack([scene.owner == n for n in range(count)]).astype(np.uint8) if count else None
    if masks is None:
        masks = np.zeros((0, height, width), np.uint8)
    boxes, keypoints = (
        np.zeros((count, 4), np.float32),
        np.zeros((count, len(PERSON_KEYPOINTS.names), 3), np.float32),
    )
    visible = np.zeros(count)
    for n, person in enumerate(scene.people):
        boxes[n] = mask_to_box(masks[n])
        visible[n] = masks[n].sum() / person.area
        cells = np.floor(person.points).astype(int)
        inside = ((cells >= 0) & (cells < [width, height])).all(1)
        keypoints[n, inside, :2] = person.points[inside]
        shown = masks[n][cells[inside, 1], cells[inside, 0]]
        keypoints[n, inside, 2] = 1 + shown
        if person.faces_away:
            keypoints[n, FACE, 2] = np.minimum(keypoints[n, FACE, 2], 1)
    labels = np.full(count, CATEGORIES[0].id, np.int64)
    return Sample(index, pixels, boxes, labels, masks, visible, keypoints, PERSON_KEYPOINTS)
