"""One drawn person: where the 17 keypoints are, and how limbs, head and clothes are painted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from model.data.drawing import colour, smooth_noise
from model.data.person import PERSON_KEYPOINTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator

# How much finer than the scene a person is painted, for smooth edges.
_FINE = 2
# Of people that turn their backs.
_FACE_AWAY = 0.2
# Lengths, as parts of the height.
_TORSO, _NECK, _HEAD = 0.30, 0.07, 0.075
_SHOULDERS, _HIPS = 0.11, 0.075
_UPPER_ARM, _LOWER_ARM, _THIGH, _SHIN = 0.17, 0.16, 0.24, 0.23
# Half a limb's width.
_WIDTHS = 0.022, 0.045
_AT = {name: place for place, name in enumerate(PERSON_KEYPOINTS.names)}


@dataclass(frozen=True, slots=True)
class Figure:
    """Where a person's joints are, before it is put into a scene."""

    points: np.ndarray  # [17, 2] x and y, pixels
    head: np.ndarray  # [2] its middle
    # From head to foot if it stood upright, pixels.
    height: float
    # Half the width of limbs, pixels.
    limb: float
    faces_away: bool

    def at(self, name: str) -> np.ndarray:
        """[2] the place of one keypoint."""
        place: np.ndarray = self.points[_AT[name]]
        return place


class Drawn(NamedTuple):
    """Something painted."""

    painted: np.ndarray  # [h, w, 3] float32, multiplied by its coverage
    coverage: np.ndarray  # [h, w] float32, 0 to 1
    # The place of the first pixel's corner, x and y, in the coordinates of what was painted.
    corner: tuple[float, float]


def pose(rng: Generator, height: float) -> Figure:
    """A person in a random pose. height: pixels."""
    points = np.zeros((len(_AT), 2))
    faces_away = bool(rng.random() < _FACE_AWAY)
    lean = rng.normal(0, 0.2)
    up = np.array([np.sin(lean), -np.cos(lean)])
    across = np.array([np.cos(lean), np.sin(lean)])
    # Seen from the front, the person's left is on the image's right. Turned aside, shoulders and hips are narrower.
    side = -across if faces_away else across
    turn = rng.uniform(0.45, 1.0)
    neck = up * _TORSO
    head = neck + up * (_NECK + _HEAD) + across * rng.normal(0, 0.01)
    for name, sign in (("left", 1), ("right", -1)):
        outward = sign * side
        shoulder, hip = neck + outward * _SHOULDERS * turn, outward * _HIPS * turn
        # From straight down, outwards.
        arm, leg = rng.uniform(-0.15, 2.4), rng.uniform(-0.15, 0.7)
        elbow = shoulder + _towards(up, outward, arm) * _UPPER_ARM
        wrist = elbow + _towards(up, outward, arm + rng.uniform(-0.9, 1.5)) * _LOWER_ARM
        knee = hip + _towards(up, outward, leg) * _THIGH
        ankle = knee + _towards(up, outward, leg + rng.uniform(-0.8, 0.3)) * _SHIN
        for part, place in (
            ("shoulder", shoulder), ("elbow", elbow), ("wrist", wrist), ("hip", hip), ("knee", knee), ("ankle", ankle),
        ):  # fmt: skip
            points[_AT[f"{name}_{part}"]] = place
        # The face looks a little aside.
        points[_AT[f"{name}_ear"]] = head + outward * _HEAD * 0.85
        points[_AT[f"{name}_eye"]] = head + outward * _HEAD * 0.35 + up * _HEAD * 0.2
    look = side * rng.uniform(-0.25, 0.25) * _HEAD
    points[_AT["nose"]] = head - up * _HEAD * 0.15 + look
    for name in ("left_eye", "right_eye"):
        points[_AT[name]] += look
    scale = height / (_TORSO + _NECK + 2 * _HEAD + _THIGH + _SHIN)
    limb = rng.uniform(*_WIDTHS) * height
    return Figure(points * scale, head * scale, height, max(1.2, limb), faces_away)


def _towards(up: np.ndarray, outward: np.ndarray, angle: float) -> np.ndarray:
    """[2] the direction of a limb. angle: from straight down, outwards, radians."""
    direction: np.ndarray = -up * np.cos(angle) + outward * np.sin(angle)
    return direction


def draw_figure(rng: Generator, figure: Figure) -> Drawn:
    """Paint a person: legs, torso, arms and head over one another, in clothes or in one colour."""
    margin = 2 * figure.limb + 0.1 * figure.height
    low = np.floor(figure.points.min(0) - margin)
    width, height = (int(n) for n in np.ceil(figure.points.max(0) + margin - low))
    brush = _Brush((width, height), low)
    skin, shirt, trousers = colour(rng), colour(rng), colour(rng)
    if rng.random() < 0.3:
        shirt = trousers = skin
    limb, sleeves = figure.limb, shirt if rng.random() < 0.5 else skin
    sides = ("left", "right") if rng.random() < 0.5 else ("right", "left")
    for side in sides:
        leg = [figure.at(f"{side}_{part}") for part in ("hip", "knee", "ankle")]
        brush.limbs(leg, 1.2 * limb, (trousers, trousers if rng.random() < 0.6 else skin))
    trunk = [figure.at(name) for name in ("left_shoulder", "right_shoulder", "right_hip", "left_hip")]
    brush.polygon(trunk, shirt, limb)
    brush.limbs([(trunk[0] + trunk[1]) / 2, figure.head], limb, (skin,))
    for side in sides:
        arm = [figure.at(f"{side}_{part}") for part in ("shoulder", "elbow", "wrist")]
        brush.limbs(arm, limb, (shirt, sleeves))
    radius = _HEAD * figure.height / (_TORSO + _NECK + 2 * _HEAD + _THIGH + _SHIN)
    for side in sides:
        brush.disc(figure.at(f"{side}_ear"), 0.3 * radius, 0.8 * skin)
    brush.disc(figure.head, radius, skin)
    dark = colour(rng) * 0.3 if _is_light(skin) else 255 - colour(rng) * 0.3
    if figure.faces_away:
        # Hair.
        brush.disc(figure.head, 0.8 * radius, dark)
    else:
        for name, size in (("left_eye", 0.16), ("right_eye", 0.16), ("nose", 0.12)):
            brush.disc(figure.at(name), max(0.8, size * radius), dark)
    return brush.finish(rng)


def _is_light(paint: np.ndarray) -> bool:
    return float(paint.mean()) > 90


class _Brush:
    """A picture of a person in the making, in finer pixels than the scene's."""

    def __init__(self, size: tuple[int, int], low: np.ndarray) -> None:
        self._low = low
        fine = (size[0] * _FINE, size[1] * _FINE)
        self._image, self._mask = Image.new("RGB", fine), Image.new("L", fine)
        self._pens = ImageDraw.Draw(self._image), ImageDraw.Draw(self._mask)

    def _to_canvas(self, place: np.ndarray) -> tuple[float, float]:
        x, y = (place - self._low) * _FINE
        return float(x), float(y)

    def _ink_pens(self, paint: np.ndarray) -> list[tuple[ImageDraw.ImageDraw, tuple[int, ...]]]:
        """The pens of the picture and of its mask, and what each draws with."""
        red, green, blue = (int(value) for value in np.clip(paint, 0, 255))
        return [(self._pens[0], (red, green, blue)), (self._pens[1], (255,))]

    def disc(self, place: np.ndarray, radius: float, paint: np.ndarray) -> None:
        x, y = self._to_canvas(place)
        r = radius * _FINE
        for pen, ink in self._ink_pens(paint):
            pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)

    def limbs(self, places: Sequence[np.ndarray], radius: float, paints: Sequence[np.ndarray]) -> None:
        """Bars from place to place with round ends, and at joints a dot that stands out."""
        for first, second, paint in zip(places, places[1:], paints, strict=False):
            ends = (*self._to_canvas(first), *self._to_canvas(second))
            for pen, ink in self._ink_pens(paint):
                pen.line(ends, fill=ink, width=max(1, round(2 * radius * _FINE)))
            for place in (first, second):
                self.disc(place, radius, paint)
        for place, paint in zip(places, (*paints, paints[-1]), strict=False):
            self.disc(place, 0.6 * radius, 0.5 * paint if _is_light(paint) else 255 - 0.5 * (255 - paint))

    def polygon(self, places: Sequence[np.ndarray], paint: np.ndarray, radius: float) -> None:
        """A polygon with round corners."""
        for pen, ink in self._ink_pens(paint):
            pen.polygon([self._to_canvas(place) for place in places], fill=ink)
        for first, second in zip(places, [*places[1:], places[0]], strict=True):
            self.limbs([first, second], radius, (paint,))

    def finish(self, rng: Generator) -> Drawn:
        """The picture in the scene's pixels, unevenly lit."""
        image, mask = (np.asarray(p.reduce(_FINE), np.float32) for p in (self._image, self._mask))
        height, width = mask.shape
        light = 1 + rng.uniform(0, 0.5) * (smooth_noise(rng, height, width, max(4.0, 0.2 * height)) - 0.5)
        x, y = self._low.tolist()
        return Drawn(np.clip(image * light[..., None].astype(np.float32), 0, 255), mask / 255, (x, y))
