"""The outlines in a scene, the ten shapes and what is none of them, and how much of each pixel they cover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from numpy.random import Generator

SHAPES = ("circle", "square", "triangle", "pentagon", "hexagon", "star", "ring", "cross", "heart", "crescent")
DISTRACTORS = (
    "blob",
    "bar",
    "ellipse",
    "half disc",
    "arc",
    "letter",
    "trapezoid",
    "zigzag",
    "splinter",
    "burst",
    "rounded bar",
)

# Letters that look like none of the shapes (no O, Q, C, D, G, X, %, & or digits with round holes).
_LETTERS = "ABEFHJKLMNPRSTUVWYZ123457#?"


@dataclass(frozen=True, slots=True)
class Outline:
    """A closed curve with an optional hole; [P, 2] float64 points, y down."""

    outer: np.ndarray
    hole: np.ndarray | None = None

    def transform(self, matrix: np.ndarray) -> Outline:
        """The outline under a 2×2 linear map."""
        return Outline(self.outer @ matrix.T, None if self.hole is None else self.hole @ matrix.T)

    def fit(self, size: float) -> Outline:
        """The outline moved to the origin, the longer side of its box being `size` pixels."""
        low, high = self.outer.min(0), self.outer.max(0)
        scale = size / max(float((high - low).max()), 1e-9)
        return Outline((self.outer - low) * scale, None if self.hole is None else (self.hole - low) * scale)


def _circle(points: int = 72, radius: float = 1.0, start: float = 0.0, stop: float = 2 * np.pi) -> np.ndarray:
    angles = np.linspace(start, stop, points, endpoint=stop - start < 2 * np.pi - 1e-9)
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def _crescent(rng: Generator) -> np.ndarray:
    """A disc less a shifted smaller disc, as one curve: the outer arc out, the inner arc back."""
    radius, shift = rng.uniform(0.78, 0.9), rng.uniform(0.42, 0.55)
    # Where the circles meet.
    x = (1 + shift**2 - radius**2) / (2 * shift)
    outer = np.arccos(x)
    inner = np.arctan2(np.sqrt(1 - x * x), x - shift)
    back = _circle(48, radius, inner, 2 * np.pi - inner)[::-1] + np.array([shift, 0])
    return np.concatenate([_circle(64, 1.0, outer, 2 * np.pi - outer), back])


def outline(shape: str, rng: Generator) -> Outline:
    """One of SHAPES, upright, of any size, with the freedom that its name leaves."""
    if shape == "circle":
        return Outline(_circle())
    if shape == "ring":
        return Outline(_circle(), _circle(radius=rng.uniform(0.45, 0.7)))
    if shape in ("triangle", "square", "pentagon", "hexagon"):
        sides = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}[shape]
        return Outline(_circle(sides))
    if shape == "star":
        tips = _circle(10)
        tips[1::2] *= rng.uniform(0.38, 0.5)
        return Outline(tips)
    if shape == "cross":
        a = rng.uniform(0.28, 0.42)
        quarter = np.array([[a, -1], [a, -a], [1, -a]])
        turns = [quarter @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        return Outline(np.concatenate(turns))
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return Outline(np.stack([16 * np.sin(t) ** 3, -y], 1))
    if shape == "crescent":
        return Outline(_crescent(rng))
    raise ValueError(f"no such shape: {shape!r}; there are {', '.join(SHAPES)}")


def distractor(kind: str, rng: Generator) -> Outline:
    """An outline that is none of SHAPES, so that the model learns to look and not to fire at anything closed.

    It must look like none of them either: laid on one another as well as they can be, the two never have an IoU of 0.9
    (a test tries), or objects would be drawn that the annotations deny.
    """
    if kind == "blob":
        t = np.linspace(0, 2 * np.pi, 80, endpoint=False)
        radius = 1 + sum(
            rng.uniform(0.2, 0.4) / k**0.6 * np.cos(k * t + rng.uniform(0, 6.3)) for k in (2, 3, 4, 5)
        )
        return Outline(np.stack([radius * np.cos(t), radius * np.sin(t)], 1))
    if kind == "bar":
        return Outline(np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [1, rng.uniform(0.1, 0.5)])
    if kind == "ellipse":
        return Outline(_circle() * [1, rng.uniform(0.25, 0.55)])
    # Rounder than an ellipse, and still no circle.
    if kind == "oval":
        return Outline(_circle() * [1, rng.uniform(0.55, 0.66)])
    if kind == "half disc":
        return Outline(_circle(40, 1.0, 0, np.pi))
    if kind == "arc":
        sweep = rng.uniform(1.0, 3.6)
        width = rng.uniform(0.1, 0.3)
        return Outline(np.concatenate([_circle(40, 1.0, 0, sweep), _circle(40, 1 - width, 0, sweep)[::-1]]))
    if kind == "trapezoid":
        a, b = rng.uniform(0.4, 0.6), rng.uniform(-0.3, 0.3)
        return Outline(np.array([[-1, 0.5], [1, 0.5], [a + b, -0.5], [b - a, -0.5]]))
    if kind == "zigzag":
        x = np.linspace(-1, 1, int(rng.integers(4, 8)))
        y = np.where(np.arange(len(x)) % 2 == 0, -0.3, 0.3) * rng.uniform(0.5, 1.5)
        width = rng.uniform(0.1, 0.25)
        line = np.stack([x, y], 1)
        return Outline(np.concatenate([line, line[::-1] + np.array([0, width])]))
    if kind == "splinter":
        return _splinter(rng)
    # More or fewer tips than a star or a cross has.
    if kind == "burst":
        count = int(rng.choice([3, 7, 8, 9, 12]))
        tips = _circle(2 * count)
        # Half as far out as the tips, the corners between three of them would lie on the sides of a triangle.
        tips[1::2] *= rng.uniform(0.15, 0.3) if count == 3 else rng.uniform(0.3, 0.65)
        return Outline(tips)
    if kind == "rounded bar":
        shift = np.array([rng.uniform(0.6, 3), 0])
        ends = (
            _circle(20, 1.0, -np.pi / 2, np.pi / 2) + shift,
            _circle(20, 1.0, np.pi / 2, 3 * np.pi / 2) - shift,
        )
        return Outline(np.concatenate(ends))
    raise ValueError(f"no such distractor: {kind!r}; there are oval, {', '.join(DISTRACTORS)}")


def _splinter(rng: Generator) -> Outline:
    """Three or four unlike tips, the corners between which lie at most 0.6 as far out as the straight line from tip to
    tip: were they further out, it would be a triangle or a square to the eye.
    """
    count = int(rng.integers(3, 5))
    angles = 2 * np.pi / count * (np.arange(count) + rng.uniform(-0.12, 0.12, count))
    tips = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.6, 1, (count, 1))
    points = np.repeat(tips, 2, axis=0)
    points[1::2] = (tips + np.roll(tips, -1, axis=0)) / 2 * rng.uniform(0.3, 0.6, (count, 1))
    return Outline(points)


def distort(shape: Outline, rng: Generator, stretch: float) -> Outline:
    """Stretch an outline along a random axis, then turn it by any angle.

    Args:
        shape: the outline.
        rng: draws axis, stretch and angle.
        stretch: the most that a side gets longer or shorter, as a part of it.
    """
    squeeze = np.diag([1.0, rng.uniform(1 - stretch, 1 + stretch)])
    first, second = (_rotation(rng.uniform(0, 2 * np.pi)) for _ in range(2))
    return shape.transform(second @ squeeze @ first)


def _rotation(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


def coverage(shape: Outline, stroke: float = 0.0) -> tuple[np.ndarray, np.ndarray | None]:
    """How much of each pixel a fitted outline covers, and its contour line if `stroke` pixels wide is asked for.

    Returns [h, w] float32 in 0 to 1 each, by 4×4 samples a pixel (2×2 where it is larger than 256 px).
    """
    width, height = (int(v) for v in np.ceil(shape.outer.max(0)) + 1)
    samples = 2 if max(width, height) > 256 else 4
    fine = (width * samples, height * samples)
    points = [tuple(p) for p in (shape.outer * samples).tolist()]
    image = Image.new("L", fine)
    draw = ImageDraw.Draw(image)
    draw.polygon(points, fill=255)
    if shape.hole is not None:
        draw.polygon([tuple(p) for p in (shape.hole * samples).tolist()], fill=0)
    inside = np.asarray(image.reduce(samples), np.float32) / 255
    if stroke <= 0:
        return inside, None
    line = Image.new("L", fine)
    pen = ImageDraw.Draw(line)
    # Twice the width, because only the half that lies inside the shape is kept.
    for curve in (shape.outer, shape.hole):
        if curve is not None:
            closed = [tuple(p) for p in (np.concatenate([curve, curve[:2]]) * samples).tolist()]
            pen.line(closed, fill=255, width=max(1, round(2 * stroke * samples)), joint="curve")
    return inside, inside * (np.asarray(line.reduce(samples), np.float32) / 255)


def letter_coverage(rng: Generator, size: float) -> np.ndarray:
    """A turned letter as [h, w] float32 coverage."""
    font = ImageFont.load_default(max(8.0, size))
    character = _LETTERS[int(rng.integers(len(_LETTERS)))]
    left, top, right, bottom = font.getbbox(character)
    image = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(image).text((2 - left, 2 - top), character, fill=255, font=font)
    image = image.rotate(rng.uniform(-180, 180), Image.Resampling.BILINEAR, expand=True)
    return np.asarray(image, np.float32) / 255
