"""Augmentation of pixels that leaves objects where they are: intensity, contrast, colour, stain and inversion.

All strengths are limits of random factors: a strength S gives factors from 1 / (1 + S) to 1 + S, evenly distributed in
their logarithm, so that lighter and darker are equally likely. A strength or probability of 0 turns a change off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

# The optical densities of hematoxylin, eosin and diaminobenzidine in red, green and blue, one stain a row (Ruifrok and
# Johnston, "Quantification of histochemical staining by color deconvolution", 2001).
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32)
# Parts of red, green and blue in grey (ITU-R BT.601).
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, slots=True)
class Appearance:
    """How the pixels of an image are changed. The defaults change nothing."""

    # Strength: the exponent of all values, which are from 0 to 1.
    gamma: float = 0.0
    # Strength: amount of each stain, and a third as much stain everywhere (Tellez et al., "Quantifying the effects of
    # data augmentation and stain color normalization", 2019: HED jitter).
    stain: float = 0.0
    # Strength: difference from the image's mean grey value.
    contrast: float = 0.0
    # Strength: factor of all values.
    brightness: float = 0.0
    # Strength: difference of each pixel from its grey value.
    saturation: float = 0.0
    # Probability of grey in place of colours.
    grey: float = 0.0
    # Probability of a negative.
    invert: float = 0.0

    def __call__(self, pixels: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
        """Change an image. pixels: [H, W, 3] uint8, RGB; not modified. rng: draws what is changed, and how much."""
        exponent, stain = _factor(rng, self.gamma), self._draw_stain(rng)
        contrast, brightness = _factor(rng, self.contrast), _factor(rng, self.brightness)
        saturation = _factor(rng, self.saturation)
        if _happens(rng, self.grey):
            saturation = 0.0
        inverted = _happens(rng, self.invert)
        if stain is None and exponent == contrast == brightness == saturation == 1 and not inverted:
            return pixels
        values = np.linspace(0, 1, 256, dtype=np.float32) ** np.float32(exponent)
        if stain is None:
            changed = values[pixels]  # [H, W, 3]
        else:
            # Black has no finite density; half a grey level has.
            densities = -np.log(np.maximum(values, 0.5 / 255))
            changed = np.exp(-np.maximum(densities[pixels] @ stain[0] + stain[1], 0))
        # One affine map of colours: from here on every change is linear.
        grey = np.tile(LUMINANCE[:, None], 3)
        matrix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * grey
        mean = float(changed.reshape(-1, 3).mean(0) @ LUMINANCE)
        scale, offset = brightness * contrast, brightness * (1 - contrast) * mean
        if inverted:
            scale, offset = -scale, 1 - offset
        changed = changed @ (np.float32(255 * scale) * matrix)
        changed += np.float32(255 * offset + 0.5)
        return np.clip(changed, 0, 255, out=changed).astype(np.uint8)

    def _draw_stain(self, rng: Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """A matrix [3, 3] and an offset [3] for optical densities, which change each stain on its own."""
        if not self.stain:
            return None
        factors = np.array([_factor(rng, self.stain) for _ in range(3)], np.float32)
        # In units of a strong stain, whose density is about 1.
        added = rng.uniform(-self.stain / 3, self.stain / 3, 3).astype(np.float32)
        stains = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
        return np.linalg.inv(stains) @ (factors[:, None] * stains), added @ stains


def _factor(rng: Generator, strength: float) -> float:
    """A factor from 1 / (1 + strength) to 1 + strength; 1, and no draw, without strength."""
    return math.exp(rng.uniform(-1, 1) * math.log1p(strength)) if strength else 1.0


def _happens(rng: Generator, probability: float) -> bool:
    return probability > 0 and rng.random() < probability
