"""What scenes are drawn with: outlines, coverage, fills, backgrounds. shapes.py puts the scenes together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

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

# Letters that look like none of the shapes (no O, Q, C, D, X or digits with round holes).
_LETTERS = "ABEFGHJKLMNPRSTUVWYZ123457&%#?"


@dataclass(frozen=True, slots=True)
class Outline:
    """A closed curve with an optional hole; [P, 2] float64 points, y down."""

    outer: np.ndarray
    hole: np.ndarray | None = None

    def transformed(self, matrix: np.ndarray) -> Outline:
        """The outline under a 2×2 linear map."""
        return Outline(self.outer @ matrix.T, None if self.hole is None else self.hole @ matrix.T)

    def fitted(self, size: float) -> Outline:
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
    x = (1 + shift**2 - radius**2) / (2 * shift)  # where the circles meet
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
    """An outline that is none of SHAPES, so that the model learns to look and not to fire at anything closed."""
    if kind == "blob":
        t = np.linspace(0, 2 * np.pi, 80, endpoint=False)
        radius = 1 + sum(
            rng.uniform(0.08, 0.34) / k**0.6 * np.cos(k * t + rng.uniform(0, 6.3)) for k in (2, 3, 4, 5)
        )
        return Outline(np.stack([radius * np.cos(t), radius * np.sin(t)], 1))
    if kind == "bar":
        return Outline(np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [1, rng.uniform(0.1, 0.5)])
    if kind == "ellipse":
        return Outline(_circle() * [1, rng.uniform(0.25, 0.55)])
    if kind == "half disc":
        return Outline(_circle(40, 1.0, 0, np.pi))
    if kind == "arc":
        sweep = rng.uniform(1.0, 3.6)
        width = rng.uniform(0.1, 0.3)
        return Outline(np.concatenate([_circle(40, 1.0, 0, sweep), _circle(40, 1 - width, 0, sweep)[::-1]]))
    if kind == "trapezoid":
        a, b = rng.uniform(0.2, 0.55), rng.uniform(-0.3, 0.3)
        return Outline(np.array([[-1, 0.7], [1, 0.7], [a + b, -0.7], [b - a, -0.7]]))
    if kind == "zigzag":
        x = np.linspace(-1, 1, int(rng.integers(4, 8)))
        y = np.where(np.arange(len(x)) % 2 == 0, -0.3, 0.3) * rng.uniform(0.5, 1.5)
        width = rng.uniform(0.1, 0.25)
        line = np.stack([x, y], 1)
        return Outline(np.concatenate([line, line[::-1] + np.array([0, width])]))
    if kind == "splinter":  # a polygon of unlike sides and corners
        corners = int(rng.integers(4, 9))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        return Outline(np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.3, 1, (corners, 1)))
    if kind == "burst":  # more or fewer tips than a star or a cross has
        tips = _circle(2 * int(rng.choice([3, 7, 8, 9, 12])))
        tips[1::2] *= rng.uniform(0.3, 0.75)
        return Outline(tips)
    if kind == "rounded bar":
        shift = np.array([rng.uniform(0.6, 3), 0])
        ends = (
            _circle(20, 1.0, -np.pi / 2, np.pi / 2) + shift,
            _circle(20, 1.0, np.pi / 2, 3 * np.pi / 2) - shift,
        )
        return Outline(np.concatenate(ends))
    raise ValueError(f"no such distractor: {kind!r}; there are {', '.join(DISTRACTORS)}")


def turned(shape: Outline, rng: Generator, stretch: float) -> Outline:
    """The outline stretched along a random axis by at most `stretch`, then turned by any angle."""
    squeeze = np.diag([1.0, rng.uniform(1 - stretch, 1 + stretch)])
    first, second = (_rotation(rng.uniform(0, 2 * np.pi)) for _ in range(2))
    return shape.transformed(second @ squeeze @ first)


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


def colour(rng: Generator) -> np.ndarray:
    """[3] float32, 0 to 255: any hue, from grey to saturated, from dark to light."""
    grey = rng.uniform(15, 240)
    tint = rng.uniform(-1, 1, 3)
    tint -= tint.mean()
    mixed: np.ndarray = np.clip(grey + tint * rng.choice([10.0, 60.0, 140.0]), 0, 255).astype(np.float32)
    return mixed


def blurred(field: np.ndarray, radius: float) -> np.ndarray:
    """A [h, w] float32 field in 0 to 1 after a Gaussian blur."""
    image = Image.fromarray((field * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, np.float32) / 255


def smooth_noise(rng: Generator, height: int, width: int, cell: float) -> np.ndarray:
    """[h, w] float32 in 0 to 1: random values every `cell` pixels, bicubic between them."""
    grid = rng.random((max(2, round(height / cell) + 1), max(2, round(width / cell) + 1)), np.float32)
    image = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    field: np.ndarray = np.clip(np.asarray(image), 0, 1)
    return field


def natural_noise(rng: Generator, height: int, width: int) -> np.ndarray:
    """[h, w] float32 in 0 to 1: octaves whose strength grows with their cells, as in photos (1/f)."""
    cells = max(height, width) / 2.0 ** np.arange(1, 8)
    cells = cells[cells >= 1.5]
    roughness = rng.uniform(0.45, 0.8)
    weights = roughness ** np.arange(len(cells))
    layers = (
        weight * smooth_noise(rng, height, width, cell) for weight, cell in zip(weights, cells, strict=True)
    )
    field: np.ndarray = sum(layers, np.zeros((height, width), np.float32))
    low, high = float(field.min()), float(field.max())
    return (field - low) / max(high - low, 1e-6)


def undergrowth(rng: Generator, height: int, width: int) -> np.ndarray:
    """[H, W, 3] float32: irregular patches over one another, many small and few large, textured and partly soft.

    The "dead leaves" model of natural images (Lee, Mumford and Huang, "Occlusion models for natural images", 2001):
    what photos are to a network that has never seen one.
    """
    side = min(height, width)
    palette = [colour(rng) for _ in range(int(rng.integers(2, 7)))]
    image = Image.new("RGB", (width, height), tuple(int(v) for v in palette[0]))
    draw = ImageDraw.Draw(image)
    count = int(rng.integers(40, 220))
    low, high = rng.uniform(0.02, 0.12) * side, rng.uniform(0.3, 0.9) * side
    # Sizes by a power law with exponent 3, cut off at both ends; large ones first, or they would hide the others.
    sizes = np.sort((low**-2 + rng.random(count) * (high**-2 - low**-2)) ** -0.5)[::-1]
    kinds = rng.choice(
        ["blob", "splinter", "bar", "ellipse", "trapezoid", "arc"], count, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05]
    )
    for kind, size in zip(kinds.tolist(), sizes.tolist(), strict=True):
        shape = turned(distractor(kind, rng), rng, stretch=0.15).fitted(size)
        points = shape.outer + rng.uniform(-0.5, 1.0, 2) * [width, height]
        ink = palette[int(rng.integers(len(palette)))] + rng.normal(0, 18, 3)
        draw.polygon([tuple(p) for p in points.tolist()], fill=tuple(int(v) for v in np.clip(ink, 0, 255)))
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.012 * side)))
    canvas = np.asarray(image, np.float32)
    light = 1 + rng.uniform(0.1, 0.9) * (natural_noise(rng, height, width) - 0.5)
    if rng.random() < 0.5:
        light = light * (1 + rng.uniform(0.1, 0.5) * (natural_noise(rng, height, width) - 0.5))
    shaded: np.ndarray = canvas * light[..., None].astype(np.float32)
    return shaded


def natural_fill(rng: Generator, height: int, width: int, base: np.ndarray) -> np.ndarray:
    """A fill that no shape has: [h, w, 3] float32, rough and unevenly lit as things in photos are."""
    second = np.clip(base + rng.uniform(-110, 110) + rng.uniform(-30, 30, 3), 0, 255).astype(np.float32)
    return _mix(natural_noise(rng, height, width), base, second)


def _ramp(rng: Generator, height: int, width: int) -> np.ndarray:
    """[h, w] float32 in 0 to 1, linear in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
    field = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    ramp: np.ndarray = (field - field.min()) / max(float(np.ptp(field)), 1e-6)
    return ramp


def _waves(rng: Generator, height: int, width: int, period: float) -> np.ndarray:
    """Stripes, hard or soft, straight or bent: [h, w] float32 in 0 to 1."""
    angle = rng.uniform(0, np.pi)
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    phase: np.ndarray = (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y) * np.float32(
        2 * np.pi / period
    )
    if rng.random() < 0.4:
        phase = phase + smooth_noise(rng, height, width, 6 * period) * np.float32(6)
    wave = np.sin(phase)
    hard = np.float32(rng.choice([1.0, 3.0, 30.0]))
    stripes: np.ndarray = np.clip(wave * hard, -1, 1) * np.float32(0.5) + np.float32(0.5)
    return stripes


def _checks(rng: Generator, height: int, width: int, period: float) -> np.ndarray:
    y = np.arange(height)[:, None] // max(1, round(period / 2))
    x = np.arange(width) // max(1, round(period / 2 * rng.uniform(0.6, 1.6)))
    return ((x + y) % 2).astype(np.float32)


def _mix(field: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    mixed: np.ndarray = first + (second - first) * field[..., None]
    return mixed


def fill(rng: Generator, height: int, width: int, base: np.ndarray) -> np.ndarray:
    """What an object is painted with: [h, w, 3] float32 around a base colour."""
    kind = rng.choice(["plain", "ramp", "noise", "stripes", "checks"], p=[0.4, 0.25, 0.15, 0.12, 0.08])
    period = rng.uniform(0.12, 0.4) * max(height, width)
    second = np.clip(base + rng.uniform(-55, 55) + rng.uniform(-25, 25, 3), 0, 255).astype(np.float32)
    painted: np.ndarray
    if kind == "plain":
        painted = np.broadcast_to(base, (height, width, 3)).astype(np.float32)
    elif kind == "ramp":
        painted = _mix(_ramp(rng, height, width), base, second)
    elif kind == "noise":
        painted = _mix(smooth_noise(rng, height, width, max(2.0, period / 3)), base, second)
    elif kind == "stripes":
        painted = _mix(_waves(rng, height, width, max(3.0, period)), base, second)
    else:
        painted = _mix(_checks(rng, height, width, max(4.0, period)), base, second)
    if rng.random() < 0.35:  # shading: lit from one side
        painted = painted * (1 + rng.uniform(0.15, 0.35) * (_ramp(rng, height, width)[..., None] - 0.5) * 2)
    return painted


def background(rng: Generator, height: int, width: int) -> np.ndarray:
    """[H, W, 3] float32: undergrowth, or one to three layers of ramps, noise, stripes, checks and blots."""
    if rng.random() < 0.45:
        return undergrowth(rng, height, width)
    canvas: np.ndarray = np.broadcast_to(colour(rng), (height, width, 3)).astype(np.float32)
    side = min(height, width)
    for _ in range(int(rng.integers(1, 4))):
        kind = rng.choice(["ramp", "octaves", "stripes", "checks", "blots"], p=[0.3, 0.3, 0.12, 0.06, 0.22])
        if kind == "ramp":
            field = _ramp(rng, height, width)
        elif kind == "octaves":
            cells = side * rng.uniform(0.1, 0.6) / 2.0 ** np.arange(4)
            layers = [smooth_noise(rng, height, width, max(1.5, c)) / 2**k for k, c in enumerate(cells)]
            field = sum(layers[1:], layers[0]) / 1.875
        elif kind == "stripes":
            field = _waves(rng, height, width, side * rng.uniform(0.03, 0.3))
        elif kind == "checks":
            field = _checks(rng, height, width, side * rng.uniform(0.06, 0.4))
        else:  # soft- or hard-edged regions, as of sky, ground and foliage
            noise = smooth_noise(rng, height, width, side * rng.uniform(0.15, 0.7))
            field = np.clip((noise - rng.uniform(0.35, 0.65)) * rng.choice([4.0, 12.0, 60.0]) + 0.5, 0, 1)
        canvas = canvas + (colour(rng) - canvas) * (field * np.float32(rng.uniform(0.3, 1.0)))[..., None]
    return canvas


def scribble(rng: Generator, canvas: np.ndarray) -> np.ndarray:
    """The canvas with lines and arcs of random width drawn across it, as of wires, twigs and edges."""
    height, width = canvas.shape[:2]
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 25))):
        ink = tuple(int(v) for v in colour(rng))
        pen = int(rng.integers(1, max(3, min(height, width) // 50)))
        points = rng.uniform(-0.1, 1.1, (int(rng.integers(2, 5)), 2)) * [width, height]
        draw.line([tuple(p) for p in points.tolist()], fill=ink, width=pen)
    return np.asarray(image, np.float32)
