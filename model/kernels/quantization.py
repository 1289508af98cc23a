"""How bytes stand for real numbers: affine quantisation with one scale and one zero point for a tensor."""

from __future__ import annotations

from dataclasses import dataclass

# A convolution's name in the network → lowest and highest of its results.
Ranges = dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class QuantParams:
    """A byte q stands for scale × (q - zero_point)."""

    scale: float
    zero_point: int

    @classmethod
    def from_range(cls, low: float, high: float) -> QuantParams:
        """The finest for numbers from low to high, and for 0, which is always exact: convolutions pad with it."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max(high - low, 1e-9) / 255
        return cls(scale, round(-low / scale))


# Of a tensor that is not quantised.
IDENTITY = QuantParams(1.0, 0)
