"""What scenes are painted with: colours, noise, fills, backgrounds. The outlines are outlines.py's."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from model.data.outlines import coverage, distort, distractor

if TYPE_CHECKING:
    from numpy.random import Generator

# How often each kind of part is one of a thing's: ovals, blobs, rounded bars, half discs, splinters.
_PARTS = (0.4, 0.25, 0.15, 0.1, 0.1)


def colour(rng: Generator) -> np.ndarray:
    """[3] float32, 0 to 255: any hue, from grey to saturated, from dark to light."""
    grey = rng.uniform(15, 240)
    tint = rng.uniform(-1, 1, 3)
    tint -= tint.mean()
    mixed: np.ndarray = np.clip(grey + tint * rng.choice([10.0, 60.0, 140.0]), 0, 255).astype(np.float32)
    return mixed


def blur(field: np.ndarray, radius: float) -> np.ndarray:
    """A [h, w] float32 field in 0 to 1 after a Gaussian blur."""
    image = Image.fromarray((field * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, np.float32) / 255


def smooth_noise(rng: Generator, height: int, width: int, cell: float) -> np.ndarray:
    """[h, w] float32 in 0 to 1: random values every `cell` pixels, bicubic between them.

    Args:
        rng: draws everything.
        height: pixels.
        width: pixels.
        cell: distance of the values, pixels.
    """
    grid = rng.random((max(2, round(height / cell) + 1), max(2, round(width / cell) + 1)), np.float32)
    image = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    field: np.ndarray = np.clip(np.asarray(image), 0, 1)
    return field


def natural_noise(rng: Generator, height: int, width: int) -> np.ndarray:
    """[h, w] float32 in 0 to 1: octaves whose strength grows with their cells, as in photos (1/f).

    Args:
        rng: draws everything.
        height: pixels.
        width: pixels.
    """
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


def paint_dead_leaves(rng: Generator, height: int, width: int) -> np.ndarray:
    """[H, W, 3] float32: irregular patches over one another, many small and few large, textured and partly soft.

    The "dead leaves" model of natural images (Lee, Mumford and Huang, "Occlusion models for natural images", 2001):
    what photos are to a network that has never seen one.

    Args:
        rng: draws everything.
        height: pixels.
        width: pixels.
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
        shape = distort(distractor(kind, rng), rng, stretch=0.15).fit(size)
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
    """A fill that no shape has: [h, w, 3] float32, rough and unevenly lit as things in photos are.

    Args:
        rng: draws everything.
        height: pixels.
        width: pixels.
        base: [3] float32, the colour that it is near to.
    """
    second = np.clip(base + rng.uniform(-110, 110) + rng.uniform(-30, 30, 3), 0, 255).astype(np.float32)
    return _mix(natural_noise(rng, height, width), base, second)


def paint_things(rng: Generator, canvas: np.ndarray) -> np.ndarray:
    """The canvas with one to four things on it that are made of parts, as people and animals are: ovals and blobs that
    touch, each rough, unevenly lit and soft at its edge.
    """
    height, width = canvas.shape[:2]
    side = min(height, width)
    painted = canvas.copy()
    for _ in range(int(rng.integers(1, 5))):
        whole = side * float(np.exp(rng.uniform(np.log(0.12), np.log(0.9))))
        centre = rng.uniform(0, 1, 2) * [width, height]
        softness = rng.uniform(0.004, 0.03) * whole
        for _ in range(int(rng.integers(2, 5))):
            size = max(12.0, whole * rng.uniform(0.3, 1.0))
            kind = str(rng.choice(["oval", "blob", "rounded bar", "half disc", "splinter"], p=_PARTS))
            margin = round(3 * softness)
            inside, _ = coverage(distort(distractor(kind, rng), rng, stretch=0.15).fit(size))
            inside = blur(np.pad(inside, margin), softness)
            h, w = inside.shape
            x, y = (round(v) for v in centre + rng.normal(0, 0.3, 2) * whole - [w / 2, h / 2])
            x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
            if x1 <= x0 or y1 <= y0:
                continue
            own = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
            part = natural_fill(rng, h, w, colour(rng))[own]
            part *= 1 + rng.uniform(0.1, 0.6) * (_ramp(rng, h, w)[own][..., None] - 0.5)
            under = painted[y0:y1, x0:x1]
            under += (part - under) * inside[own][..., None]
    return painted


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
    """What an object is painted with: [h, w, 3] float32 around a base colour.

    Args:
        rng: draws everything.
        height: pixels.
        width: pixels.
        base: [3] float32, the colour.
    """
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
    # Shading: lit from one side.
    if rng.random() < 0.35:
        painted = painted * (1 + rng.uniform(0.15, 0.35) * (_ramp(rng, height, width)[..., None] - 0.5) * 2)
    return painted


def background(rng: Generator, height: int, width: int) -> np.ndarray:
    """[H, W, 3] float32: dead leaves, or one to three layers of ramps, noise, stripes, checks and blots.

    Args:
        rng: draws everything.
        height: pixels.
        width: pixels.
    """
    if rng.random() < 0.45:
        return paint_dead_leaves(rng, height, width)
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
        # Soft- or hard-edged regions, as of sky, ground and foliage.
        else:
            noise = smooth_noise(rng, height, width, side * rng.uniform(0.15, 0.7))
            field = np.clip((noise - rng.uniform(0.35, 0.65)) * rng.choice([4.0, 12.0, 60.0]) + 0.5, 0, 1)
        canvas = canvas + (colour(rng) - canvas) * (field * np.float32(rng.uniform(0.3, 1.0)))[..., None]
    return canvas


def cut_out(rng: Generator, photo: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W, 3] float32: a part of a photo [h, w, 3] uint8, anywhere, mirrored or not, as large as there is room for or
    down to half of that.

    Args:
        rng: draws which part.
        photo: [h, w, 3] uint8.
        height: of the result, pixels.
        width: of the result, pixels.
    """
    room = min(photo.shape[0] / height, photo.shape[1] / width) * rng.uniform(0.5, 1.0)
    rows, columns = max(1, round(room * height)), max(1, round(room * width))
    top = int(rng.integers(0, photo.shape[0] - rows + 1))
    left = int(rng.integers(0, photo.shape[1] - columns + 1))
    part = photo[top : top + rows, left : left + columns][:, :: int(rng.choice([1, -1]))]
    image = Image.fromarray(part).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32)


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


def simulate_camera(rng: Generator, canvas: np.ndarray) -> np.ndarray:
    """What a camera would make of a canvas: light, blur, noise and JPEG; [H, W, 3] uint8."""
    height, width = canvas.shape[:2]
    canvas = canvas * np.float32(rng.uniform(0.75, 1.2)) + np.float32(rng.uniform(-15, 15))
    if rng.random() < 0.4:
        canvas = canvas + rng.normal(0, rng.uniform(1, 11), canvas.shape).astype(np.float32)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.0025 * min(height, width) + 0.4)))
    if rng.random() < 0.6:
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=int(rng.integers(40, 96)))
        image = Image.open(packed)
    return np.array(image)
