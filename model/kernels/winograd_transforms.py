"""The matrices of Winograd's F(4, 3), by Toom and Cook (Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", 2015). A product belongs to one of the points 0, near, -near, far, -far, infinity.
"""

from __future__ import annotations

import numpy as np


def weight_transform(near: float, far: float) -> np.ndarray:
    """How the 3 weights of an axis become those of its 6 products [6, 3]: Lavin and Gray's G."""
    at = np.array([0, near, -near, far, -far])
    others = np.array([np.prod(p - np.delete(at, n)) for n, p in enumerate(at)])
    return np.vstack([np.vander(at, 3, increasing=True) / others[:, None], [0, 0, 1]])


def input_transform(near: float, far: float) -> np.ndarray:
    """How the 6 inputs of an axis become those of its 6 products [6, 6]: Lavin and Gray's Bᵀ."""
    at = [0, near, -near, far, -far]
    rows = [[*np.poly(at[:n] + at[n + 1 :])[::-1], 0] for n in range(len(at))]
    return np.array([*rows, np.poly(at)[::-1]])


def largest_sums(near: float, far: float) -> np.ndarray:
    """How large the 36 sums of a tile's bytes can be, whatever their zero point z is: cells lie from -z to 255 - z."""
    one_axis = input_transform(near, far)
    both_axes = np.kron(one_axis, one_axis)  # [36, 36]
    up = both_axes.clip(min=0).sum(1)
    largest: np.ndarray = 255 * np.maximum(up, up - both_axes.sum(1))
    return largest
