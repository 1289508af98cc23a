"""The picture that people look at: an image with its instances tinted, outlined and named.

Work and memory grow with the instances' boxes, never with instances × image. `model/masks/paste.py` makes masks.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.masks import paste as masks
from model.masks.paste import Crop

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from model.instances import Instances

    Canvas = NDArray[np.uint8]  # [H, W, 4]: a byte of padding, so that a pixel can be copied as one number

Colour = tuple[int, int, int]

# Okabe and Ito, "Color Universal Design" (2002): colours to tell apart with any kind of colour vision. Their
# black would be a shadow rather than a tint; the wine of Tol's "muted" scheme (2021) stands in for it at no
# loss: the closest pair is orange and yellow to a deuteranope, CIE76 17 apart, with either.
_FIRST: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (136, 34, 85),
)


def _mix(colour: Colour, other: int, share: float) -> Colour:
    red, green, blue = (round(value + (other - value) * share) for value in colour)
    return red, green, blue


# Past eight categories, lighter and then darker ones; there the names on the chips have to help.
PALETTE: tuple[Colour, ...] = (
    *_FIRST,
    *(_mix(colour, 255, 0.5) for colour in _FIRST),
    *(_mix(colour, 0, 0.45) for colour in _FIRST),
)

_TINT = 0.375  # how much of the colour covers the image inside an outline; the rest, 1/2 + 1/8, is two shifts
_LINES_PER_SIDE = 300  # the image's shorter side is so many line widths …
_LETTERS_PER_SIDE = 40  # … and so many font sizes, because large photos are looked at scaled down
_SMALLEST_FONT = 9  # pixels; below that letters run together
_PIXELS_AT_ONCE = 1 << 15  # whose arithmetic stays in a core's cache
_LABELLED = 0.4  # chips cover at most this share of the image; past it only the surest instances have one


def colour_of(category_id: int) -> Colour:
    """A category's colour, the same in every picture. Ids that lie 24 apart share one."""
    return PALETTE[(category_id - 1) % len(PALETTE)]


def overlay(
    pixels: NDArray[np.uint8],
    instances: Instances,
    names: Mapping[int, str],
    crops: Sequence[Crop] | None = None,
) -> NDArray[np.uint8]:
    """A copy of an image with its instances drawn on it.

    pixels: [H, W, 3] uint8 RGB, of the instances' size. names: category id → name; where one is missing the
    id is shown. crops: each instance's mask, if not to be made from the instances' probabilities; where there
    are neither, boxes are drawn. Large instances are painted first, so that small ones stay in sight.
    Raises ValueError if the sizes differ.
    """
    height, width = pixels.shape[:2]
    if (height, width) != instances.size:
        raise ValueError(f"the instances are those of an image of {instances.size}, not {(height, width)}")
    if not len(instances):
        return pixels.copy()
    canvas = np.empty((height, width, 4), dtype=np.uint8)
    _copy(pixels, canvas)
    line = max(1, round(min(height, width) / _LINES_PER_SIDE))
    boxes: list[list[float]] = instances.boxes.tolist()
    colours = [colour_of(category) for category in instances.labels.tolist()]
    order = sorted(range(len(boxes)), key=lambda i: -_area(boxes[i]))
    shapes = _shapes(instances, crops, order)
    if shapes is None:
        for i in order:
            _frame(canvas, _within(boxes[i], width, height), colours[i], line)
    else:
        for i, crop in zip(order, shapes, strict=True):
            _paint(canvas, crop, colours[i], line)
    captions = [
        f"{' '.join(names.get(category, str(category)).split())} {score:.2f}"
        for category, score in zip(instances.labels.tolist(), instances.scores.tolist(), strict=True)
    ]
    _label(canvas, boxes, captions, colours)
    picture = np.empty((height, width, 3), dtype=np.uint8)
    _copy(canvas, picture)
    return picture


def _copy(pixels: NDArray[np.uint8], into: NDArray[np.uint8]) -> None:
    """Three channels, one by one: a quarter of the time that NumPy takes for three bytes a pixel."""
    for channel in range(3):
        into[..., channel] = pixels[..., channel]


def _shapes(instances: Instances, crops: Sequence[Crop] | None, order: list[int]) -> Iterator[Crop] | None:
    """The masks in painting order, one at a time; None if there are none."""
    if crops is not None:
        return (crops[i] for i in order)
    if instances.probabilities is None:
        return None
    # With the axes exchanged, because bitmaps come column by column and images are painted row by row. That may
    # round otherwise where a value lies within 1e-6 of the threshold, which no eye sees.
    probabilities = instances.probabilities[order].transpose(1, 2)
    boxes = instances.boxes[order][:, [1, 0, 3, 2]]
    found = masks.crops(probabilities, boxes, instances.size[::-1])
    return (Crop(crop.top, crop.left, crop.bitmap.T) for crop in found)


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _within(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """The pixels that a box covers in an image, both ends inside, at least one pixel."""
    left, top = (min(max(int(low), 0), side - 1) for low, side in zip(box[:2], (width, height), strict=True))
    right, bottom = (math.ceil(high) - 1 for high in box[2:])
    return left, top, max(left, min(right, width - 1)), max(top, min(bottom, height - 1))


def _frame(canvas: Canvas, box: tuple[int, int, int, int], colour: Colour, line: int) -> None:
    """Draw a box's edges, inside it."""
    left, top, right, bottom = box
    area = canvas[top : bottom + 1, left : right + 1, :3]
    area[:line] = area[-line:] = area[:, :line] = area[:, -line:] = colour


def _paint(canvas: Canvas, crop: Crop, colour: Colour, line: int) -> None:
    """Tint one mask and draw its outline, inside its edge."""
    left, top, bitmap = crop
    height, width = bitmap.shape
    if not bitmap.size:
        return
    inner = _eroded(bitmap, line)
    # Four bytes as one number: shifted and masked, each keeps its own 1/2 and 1/8, and no sum of them reaches 256.
    whole = canvas.view(np.uint32)[top : top + height, left : left + width, 0]
    full, tint = (
        _number(colour),
        _number(_mix(colour, 0, 1 - _TINT)) + np.uint32(0x01010101),
    )  # the shifts lose 1
    step = max(1, _PIXELS_AT_ONCE // width)
    for begin in range(0, height, step):
        rows = slice(begin, begin + step)
        mixed = whole[rows] >> np.uint32(1)
        mixed &= np.uint32(0x7F7F7F7F)
        eighth = whole[rows] >> np.uint32(3)
        eighth &= np.uint32(0x1F1F1F1F)
        mixed += eighth
        mixed += tint
        np.copyto(whole[rows], mixed, where=inner[rows])
        np.copyto(whole[rows], full, where=bitmap[rows] ^ inner[rows])


def _number(colour: Colour) -> np.uint32:
    """A colour as a pixel of the canvas is read, in the machine's order of bytes."""
    number: np.uint32 = np.array([*colour, 0], dtype=np.uint8).view(np.uint32)[0]
    return number


def _eroded(bitmap: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Those pixels whose neighbours, up to `distance` away in both directions, all belong to the mask.

    The window doubles from step to step: for 10 pixels 5 passes an axis instead of 20.
    """
    height, width = bitmap.shape
    across = np.zeros((height, width + 2 * distance), dtype=np.bool_)
    across[:, distance : distance + width] = bitmap
    for step in _doublings(2 * distance + 1):
        across = across[:, :-step] & across[:, step:]
    packed = np.packbits(across, axis=1)  # an eighth of the work downwards
    down = np.zeros((height + 2 * distance, packed.shape[1]), dtype=np.uint8)
    down[distance : distance + height] = packed
    for step in _doublings(2 * distance + 1):
        down = down[:-step] & down[step:]
    return np.unpackbits(down, axis=1, count=width).view(np.bool_)


def _doublings(window: int) -> Iterator[int]:
    """By how much to shift, from one pixel on, until what is common to all shifts is common to the window."""
    size = 1
    while size < window:
        step = min(size, window - size)
        yield step
        size += step


def _label(canvas: Canvas, boxes: list[list[float]], captions: list[str], colours: list[Colour]) -> None:
    """Write captions on chips at their boxes' edges, inside the picture and beside one another if possible.

    The instances come in descending score, so the surest get the best places.
    """
    height, width = canvas.shape[:2]
    size = max(_SMALLEST_FONT, round(min(width, height) / _LETTERS_PER_SIDE))
    font = _font(size)
    pad = max(1, size // 5)
    chip_height = size + 2 * pad
    placed = np.empty((0, 4), dtype=np.int64)  # [P, 4] xyxy of the chips so far
    room = width * height * _LABELLED
    for box, caption, colour in zip(boxes, captions, colours, strict=True):
        text = _fitting(caption, font, width - 2 * pad)
        chip_width = math.ceil(font.getlength(text)) + 2 * pad
        room -= chip_width * chip_height
        if not text or chip_height > height or room < 0:
            return
        left, top, right, bottom = _place(box, chip_width, chip_height, placed, (width, height))
        placed = np.vstack([placed, (left, top, right, bottom)])
        area = canvas[top:bottom, left:right, :3]
        chip = Image.fromarray(np.ascontiguousarray(area))
        draw = ImageDraw.Draw(chip)
        draw.rounded_rectangle((0, 0, chip_width - 1, chip_height - 1), size // 4, fill=colour)
        draw.text((pad, chip_height / 2), text, fill=_ink(colour), font=font, anchor="lm")
        area[:] = np.asarray(chip)


def _place(
    box: Sequence[float], width: int, height: int, placed: NDArray[np.int64], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Where a chip covers no other, else least of them: at a corner of its box or a few lines off. xyxy."""
    left, top, right, bottom = (round(edge) for edge in box)
    rows = [top - height, top, bottom, bottom - height, (top + bottom - height) // 2]
    rows += [top + lines * height for lines in (-2, 1, -3, 2, -4, 3)]
    columns = [left, right - width, (left + right - width) // 2]
    corners = np.array([(x, y) for y in rows for x in columns])  # [C, 2] best first
    corners = np.clip(corners, 0, np.array(size) - (width, height))
    ends = corners + np.array((width, height))
    shared = np.minimum(ends[:, None], placed[:, 2:]) - np.maximum(
        corners[:, None], placed[:, :2]
    )  # [C, P, 2]
    covered = np.maximum(shared, 0).prod(axis=2).sum(axis=1)  # [C] pixels of other chips
    x, y = corners[int(covered.argmin())].tolist()
    return x, y, x + width, y + height


def _fitting(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The caption, its name shortened until it fits, down to the score alone or nothing."""
    name, _, score = caption.rpartition(" ")
    text = caption
    for length in range(min(len(name), 64), -1, -1):
        text = caption if length == len(name) else f"{name[:length].rstrip()}… {score}" if length else score
        if font.getlength(text) <= width:
            return text
    return ""


def _ink(colour: Colour) -> Colour:
    """Black or white, whichever stands out more: they tie at a relative luminance of 0.179 (WCAG 2.2)."""
    shares = [value / 255 for value in colour]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in shares)
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else (255, 255, 255)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which needs no file."""
    return ImageFont.load_default(size)
