"""Draw the keypoints of an instance, and lines between those that belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Of a keypoint's dot and of a limb's line, in widths of an outline.
_RADIUS, _LIMB = 2.0, 2.0
# Around a dot, so that it can be seen on a mask of its own colour.
_RIM = (255, 255, 255)


def draw_skeleton(
    canvas: NDArray[np.uint8],
    places: Sequence[Sequence[float]],
    shown: Sequence[bool],
    skeleton: Sequence[tuple[int, int]],
    *,
    colour: tuple[int, int, int],
    line: int,
) -> None:
    """Draw one instance's keypoints in place. What lies outside of the image is cut off.

    Args:
        canvas: [H, W, 3 or more] uint8, RGB first.
        places: [K] pairs of x and y, pixels.
        shown: [K] whether to draw each; a line is drawn where both of its ends are.
        skeleton: pairs of keypoints that lines join.
        colour: of dots and lines.
        line: width of an outline, pixels.
    """
    drawn = [place for place, wanted in zip(places, shown, strict=True) if wanted]
    if not drawn:
        return
    radius, limb = max(1.5, _RADIUS * line), max(1, round(_LIMB * line))
    margin = int(radius) + limb + 1
    height, width = canvas.shape[:2]
    columns, rows = zip(*drawn, strict=True)
    left, right = max(0, int(min(columns)) - margin), min(width, int(max(columns)) + margin)
    top, bottom = max(0, int(min(rows)) - margin), min(height, int(max(rows)) + margin)
    if left >= right or top >= bottom:
        return
    area = canvas[top:bottom, left:right, :3]
    image = Image.fromarray(np.ascontiguousarray(area))
    draw = ImageDraw.Draw(image)
    # The middle of the first pixel is at half a pixel, where Pillow has 0.
    moved = [(x - left - 0.5, y - top - 0.5) for x, y in places]
    for first, second in skeleton:
        if shown[first] and shown[second]:
            draw.line((*moved[first], *moved[second]), fill=colour, width=limb)
    for (x, y), wanted in zip(moved, shown, strict=True):
        if wanted:
            ends = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(ends, fill=colour, outline=_RIM, width=max(1, limb // 3))
    area[:] = np.asarray(image)
