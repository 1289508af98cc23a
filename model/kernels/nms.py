"""Non-maximum suppression: on CPUs of no more boxes than are needed, on GPUs in matrices of a fixed size.

Nothing in the matrices depends on how many boxes are left, so that the host can queue all of it without waiting for an
answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# A box survives if no better survivor overlaps it. Each pass settles every box whose better ones are settled; so many
# passes are needed as boxes stand in the longest row of which each would suppress the next. See docs/engine.md.
PASSES = 16


# As many boxes are tried at first, for each that is wanted. The bundled model's RPN needed 1.7 to 2.9 on eight images.
AHEAD = 2.5


def best(scores: Tensor, most: int, survive: Callable[[Tensor], Tensor]) -> Tensor:
    """Indices of the `most` best boxes that survive, by falling score.

    scores: [K]. survive: of indices by falling score the positions of those that survive among them. Better boxes
    decide over worse ones and never the other way, so nothing changes if the worst are not looked at.
    """
    order = scores.sort(descending=True, stable=True).indices
    ahead = int(AHEAD * most)
    if ahead < len(order):
        tried = order[:ahead]
        kept = tried[survive(tried).sort().values]
        if len(kept) >= most:
            return kept[:most]
    return order[survive(order).sort().values][:most]


def overlapping(boxes: Tensor, most: float) -> Tensor:
    """[..., K, K] bool: whether box j comes before box i and shares more than `most` with it (intersection over union).

    boxes: [..., K, 4] xyxy float32, best first. The arithmetic is that of torchvision.ops.nms.
    """
    x0, y0, x1, y1 = boxes.unbind(-1)
    area = (x1 - x0) * (y1 - y0)
    width = _pairs(torch.minimum, x1).sub_(_pairs(torch.maximum, x0)).clamp_(min=0)
    height = _pairs(torch.minimum, y1).sub_(_pairs(torch.maximum, y0)).clamp_(min=0)
    shared = width.mul_(height)
    return (shared / _pairs(torch.add, area).sub_(shared) > most).tril(-1)


def _pairs(of: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
    """[..., K, K] from [..., K]."""
    return of(x[..., :, None], x[..., None, :])


def keep_mask(over: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """Which boxes survive, [..., K] bool, and whether that is final, [] bool: if not, PASSES were too few.

    over: as `overlapping` gives it. usable: [..., K] bool, the boxes that take part.
    """
    keep = before = usable
    for _ in range(PASSES):
        before = keep
        keep = usable & ~(over & before[..., None, :]).any(-1)
    return keep, (keep == before).all()
