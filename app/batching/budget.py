"""How much goes to the device at once: all that the settings allow, until its memory runs out."""

from __future__ import annotations

from math import ceil

RECOVERY = 64  # batches that must pass before twice as much is tried again


class BatchBudget:
    """Limits of a batch, halved whenever the device ran out of memory and doubled again after RECOVERY batches.

    A GPU that others use too, or a few large images, takes memory away for a while: the service then goes on in
    smaller batches, and a probe that fails costs one attempt in RECOVERY. Belongs to the device thread.
    """

    def __init__(self, max_images: int, max_pixels: int) -> None:
        self.max_images = max_images
        self.max_pixels = max_pixels
        self.share = 1.0  # of both limits
        self._passed = 0  # batches since the last change

    @property
    def images(self) -> int:
        """Images that may run together."""
        return max(1, int(self.max_images * self.share))

    @property
    def pixels(self) -> int:
        """Pixels of padded input that may run together; one image alone always may."""
        return ceil(self.max_pixels * self.share)

    def ran_out(self) -> None:
        """The device had not enough memory for a batch."""
        self._passed = 0
        if self.images > 1:
            self.share /= 2

    def passed(self) -> None:
        """A batch went through."""
        if self.share == 1.0:
            return
        self._passed += 1
        if self._passed == RECOVERY:
            self._passed = 0
            self.share *= 2
