"""Draw instances on an image: a tint and an outline for each mask, and labels.

Time and memory grow with the area of the boxes, not with instances × image. `model/masks/paste.py` makes the masks.
"""

from __future__ import annotations

import math
from itertools import starmap
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from model.images.skeleton import draw_skeleton
from model.images.text import Line, label_name, lay_out
from model.masks.paste import Crop
from model.masks.paste import crops as make_crops

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from model.instances import Instances

    # [H, W, 4]: RGB and a byte of padding, so that a pixel can be copied as one number.
    Canvas = NDArray[np.uint8]

Colour = tuple[int, int, int]

# Okabe and Ito, "Color Universal Design" (2002): colours that can be told apart with any kind of colour vision. Their
# black would look like a shadow, so the wine of Tol's "muted" scheme (2021) replaces it. With either, the closest pair
# is orange and yellow for a deuteranope, CIE76 17 apart.
_BASE_COLOURS: tuple[Colour, ...] = (
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


# From the ninth category on, lighter and then darker colours, which only the labels tell apart reliably.
PALETTE: tuple[Colour, ...] = (
    *_BASE_COLOURS,
    *(_mix(colour, 255, 0.5) for colour in _BASE_COLOURS),
    *(_mix(colour, 0, 0.45) for colour in _BASE_COLOURS),
)

# The share of the colour inside an outline. The image keeps 1/2 + 1/8, which two shifts compute.
_TINT = 0.375
# Line widths and font sizes per shorter side of the image: large photos are viewed scaled down.
_LINES_PER_SIDE = 300
_FONTS_PER_SIDE = 40
# And at most this share of an object's shorter side: else the lines of a large image would hide its small objects.
_LINES_PER_OBJECT = 8
# Pixels. Smaller text is not legible.
_MIN_FONT_SIZE = 9
# Pixels that are blended at once, so that the arithmetic stays in a core's cache.
_BLOCK_PIXELS = 1 << 15
# Labels cover at most this share of the image. Where all of them would cover more, those that are larger than their
# instance are left out first, since they hide others, and then those of the lowest scores.
_MAX_LABEL_SHARE = 0.4


def colour_of(category_id: int) -> Colour:
    """The colour of a category, the same in every picture. Ids that differ by 24 share a colour."""
    return PALETTE[(category_id - 1) % len(PALETTE)]


def overlay(
    pixels: NDArray[np.uint8],
    instances: Instances,
    names: Mapping[int, str],
    crops: Sequence[Crop] | None = None,
    *,
    skeleton: Sequence[tuple[int, int]] = (),
) -> NDArray[np.uint8]:
    """Draw instances on a copy of an image. Large instances are drawn first, so that small ones stay visible.

    Args:
        pixels: [H, W, 3] uint8 RGB, of the instances' size.
        instances: what to draw. Without `crops`, masks come from their probabilities; without those, boxes are drawn.
        names: category id → name. Without a name, the id is shown; "#" and the id if no font has the name's characters.
        crops: the mask of each instance, if it has been made already.
        skeleton: pairs of keypoints that lines join.

    Returns [H, W, 3] uint8 RGB, each pixel in four bytes of memory. Raises ValueError if the sizes differ.
    """
    height, width = pixels.shape[:2]
    if (height, width) != instances.size:
        raise ValueError(f"the instances belong to an image of size {instances.size}, not {(height, width)}")
    if not len(instances):
        return pixels.copy()
    canvas = np.empty((height, width, 4), dtype=np.uint8)
    for channel in range(3):
        # One by one, in a quarter of the time that NumPy needs for all three at once.
        canvas[..., channel] = pixels[..., channel]
    line = max(1, round(min(height, width) / _LINES_PER_SIDE))
    boxes: list[list[float]] = instances.boxes.tolist()
    colours = [colour_of(category) for category in instances.labels.tolist()]
    order = sorted(range(len(boxes)), key=lambda i: -_area(boxes[i]))
    masks = _masks(instances, crops, order)
    if masks is None:
        for i in order:
            _draw_box(canvas, _clip_box(boxes[i], width, height), colours[i], line)
    else:
        for i, crop in zip(order, masks, strict=True):
            _draw_mask(canvas, crop, colours[i], line)
    if instances.keypoints is not None and instances.keypoint_scores is not None:
        shown = (instances.keypoint_scores >= instances.keypoints_from).tolist()
        for i in order:
            places = instances.keypoints[i, :, :2].tolist()
            draw_skeleton(canvas, places, shown[i], skeleton, colour=colours[i], line=line)
    captions = [
        f"{label_name(names.get(category, str(category)), category)} {score:.2f}"
        for category, score in zip(instances.labels.tolist(), instances.scores.tolist(), strict=True)
    ]
    _draw_labels(canvas, boxes, captions, colours)
    # No copy of what may have 64 megapixels.
    return canvas[..., :3]


def _masks(instances: Instances, crops: Sequence[Crop] | None, order: list[int]) -> Iterator[Crop] | None:
    """Yield the masks in drawing order; None if the instances have none."""
    if crops is not None:
        return (crops[i] for i in order)
    if instances.runs is not None:
        return starmap(Crop, instances.runs.take(np.array(order)).crops())
    if instances.probabilities is None:
        return None
    # Transposed, because `paste` makes bitmaps column by column and images are stored row by row. Values within 1e-6
    # of the threshold may be rounded differently, which is not visible.
    probabilities = instances.probabilities[order].transpose(1, 2)
    boxes = instances.boxes[order][:, [1, 0, 3, 2]]
    transposed = make_crops(probabilities, boxes, instances.size[::-1], rule=instances.pasting)
    return (Crop(crop.top, crop.left, crop.bitmap.T) for crop in transposed)


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _clip_box(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """The first and last pixel of a box inside the image (left, top, right, bottom), at least one pixel."""
    left, top = (min(max(int(low), 0), side - 1) for low, side in zip(box[:2], (width, height), strict=True))
    right, bottom = (math.ceil(high) - 1 for high in box[2:])
    return left, top, max(left, min(right, width - 1)), max(top, min(bottom, height - 1))


def _draw_box(canvas: Canvas, box: tuple[int, int, int, int], colour: Colour, line: int) -> None:
    """Draw the edges of a box, inside it."""
    left, top, right, bottom = box
    area = canvas[top : bottom + 1, left : right + 1, :3]
    line = min(line, max(1, min(area.shape[:2]) // _LINES_PER_OBJECT))
    area[:line] = area[-line:] = area[:, :line] = area[:, -line:] = colour


def _draw_mask(canvas: Canvas, crop: Crop, colour: Colour, line: int) -> None:
    """Tint a mask and draw its outline, inside its edge."""
    left, top, bitmap = crop
    height, width = bitmap.shape
    if not bitmap.size:
        return
    inner = _erode(bitmap, min(line, max(1, min(height, width) // _LINES_PER_OBJECT)))
    # Four bytes as one number. Shifting and masking gives 1/2 and 1/8 of each byte, and no sum reaches 256.
    whole = canvas.view(np.uint32)[top : top + height, left : left + width, 0]
    full = _as_uint32(colour)
    # The shifts round down by up to 1.
    tint = _as_uint32(_mix(colour, 0, 1 - _TINT)) + np.uint32(0x01010101)
    step = max(1, _BLOCK_PIXELS // width)
    for first in range(0, height, step):
        rows = slice(first, first + step)
        mixed = whole[rows] >> np.uint32(1)
        mixed &= np.uint32(0x7F7F7F7F)
        eighth = whole[rows] >> np.uint32(3)
        eighth &= np.uint32(0x1F1F1F1F)
        mixed += eighth
        mixed += tint
        np.copyto(whole[rows], mixed, where=inner[rows])
        np.copyto(whole[rows], full, where=bitmap[rows] ^ inner[rows])


def _as_uint32(colour: Colour) -> np.uint32:
    """A colour as a pixel of the canvas, in the machine's byte order."""
    number: np.uint32 = np.array([*colour, 0], dtype=np.uint8).view(np.uint32)[0]
    return number


def _erode(bitmap: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Erode a mask by a square: keep pixels whose neighbours up to `distance` away belong to the mask.

    The window doubles with each pass, so that a distance of 10 takes 5 passes per axis instead of 20.
    """
    height, width = bitmap.shape
    across = np.zeros((height, width + 2 * distance), dtype=np.bool_)
    across[:, distance : distance + width] = bitmap
    for step in _doublings(2 * distance + 1):
        across = across[:, :-step] & across[:, step:]
    # Packed bits need an eighth of the work in the other direction.
    packed = np.packbits(across, axis=1)
    down = np.zeros((height + 2 * distance, packed.shape[1]), dtype=np.uint8)
    down[distance : distance + height] = packed
    for step in _doublings(2 * distance + 1):
        down = down[:-step] & down[step:]
    return np.unpackbits(down, axis=1, count=width).view(np.bool_)


def _doublings(window: int) -> Iterator[int]:
    """The shifts that extend a window of one pixel to a window of that many pixels."""
    size = 1
    while size < window:
        step = min(size, window - size)
        yield step
        size += step


def _draw_labels(
    canvas: Canvas, boxes: list[list[float]], captions: list[str], colours: list[Colour]
) -> None:
    """Draw labels at the edges of their boxes, inside the picture and side by side if possible.

    The instances come in descending score, so that the highest scores get the best places.
    """
    height, width = canvas.shape[:2]
    size = max(_MIN_FONT_SIZE, round(min(width, height) / _FONTS_PER_SIDE))
    pad = max(1, size // 5)
    placed = np.empty((0, 4), dtype=np.int64)  # [P, 4] xyxy of the labels so far
    room = width * height * _MAX_LABEL_SHARE
    is_crowded: bool | None = None
    for box, caption, colour in zip(boxes, captions, colours, strict=True):
        # A label has four digits at least, so it is wider than high. Most of thousands need not be laid out.
        if is_crowded and (size + 2 * pad) ** 2 > _area(box):
            continue
        line = _shorten(caption, size, width - 2 * pad)
        if line is None:
            return
        # Letters of some scripts are higher than Latin's, which the label has room for.
        baseline = max(pad + round(0.87 * size), math.ceil(line.ascent) + 1)
        label_width = math.ceil(line.width) + 2 * pad
        label_height = max(size + 2 * pad, baseline + math.ceil(line.descent) + 1)
        if is_crowded is None:
            # As if all labels were as large as the first.
            is_crowded = len(boxes) * label_width * label_height > room
        if is_crowded and label_width * label_height > _area(box):
            continue
        room -= label_width * label_height
        if label_height > height or room < 0:
            return
        left, top, right, bottom = _place(box, label_width, label_height, placed, (width, height))
        placed = np.vstack([placed, (left, top, right, bottom)])
        area = canvas[top:bottom, left:right, :3]
        label = Image.fromarray(np.ascontiguousarray(area))
        draw = ImageDraw.Draw(label)
        draw.rounded_rectangle((0, 0, label_width - 1, label_height - 1), size // 4, fill=colour)
        line.draw(draw, pad, baseline, _text_colour(colour))
        area[:] = np.asarray(label)


def _place(
    box: Sequence[float], width: int, height: int, placed: NDArray[np.int64], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Choose the place of a label at a corner of its box or a few lines away, where it covers other labels least.

    Args:
        box: xyxy of the instance, pixels.
        width: of the label, pixels.
        height: of the label, pixels.
        placed: [P, 4] xyxy of other labels.
        size: (width, height) of the image.

    Returns xyxy of the label.
    """
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
    covered = np.maximum(shared, 0).prod(axis=2).sum(axis=1)  # [C] pixels of other labels
    x, y = corners[int(covered.argmin())].tolist()
    return x, y, x + width, y + height


def _shorten(caption: str, size: int, width: int) -> Line | None:
    """The caption with its name shortened until it fits, down to the score alone; None if that does not fit.

    Args:
        caption: name and score.
        size: of the letters, pixels.
        width: that there is, pixels.
    """
    name, _, score = caption.rpartition(" ")
    for length in range(min(len(name), 64), -1, -1):
        text = caption if length == len(name) else f"{name[:length].rstrip()}… {score}" if length else score
        line = lay_out(text, size)
        if line.width <= width:
            return line
    return None


def _text_colour(colour: Colour) -> Colour:
    """Black or white, whichever contrasts more: equal at a relative luminance of 0.179 (WCAG 2.2)."""
    shares = [value / 255 for value in colour]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in shares)
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else (255, 255, 255)
