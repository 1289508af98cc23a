"""The box around a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def mask_to_box(mask: NDArray[Any]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom edge of what is not zero in a mask [H, W], pixels; all 0 where it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
