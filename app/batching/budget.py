"""The limits of one batch: what the settings allow, or less while the device is short of memory."""

from __future__ import annotations

from math import ceil

# Batches that must succeed before twice as much is tried again.
RECOVERY_BATCHES = 64


class BatchBudget:
    """Halves the limits of a batch when the device runs out of memory, and doubles them after RECOVERY_BATCHES.

    Another process on the same GPU, or a few large images, may take memory away for a while. The service then continues
    with smaller batches, and a trial that fails costs one attempt in RECOVERY_BATCHES. On a CPU, "a batch" means the
    images that run at the same time, each in a pass of its own. The schedule's lock guards it.
    """

    def __init__(self, max_images: int, max_pixels: int) -> None:
        self.max_images = max_images
        self.max_pixels = max_pixels
        # The part of both limits that is in use, from 0 to 1.
        self.share = 1.0
        # Batches since the last change.
        self._successes = 0

    @property
    def images(self) -> int:
        """Images that may run together."""
        return max(1, int(self.max_images * self.share))

    @property
    def pixels(self) -> int:
        """Pixels of padded input that may run together; one image alone always may."""
        return ceil(self.max_pixels * self.share)

    def record_out_of_memory(self) -> None:
        """The device did not have enough memory for a batch."""
        self._successes = 0
        if self.images > 1:
            self.share /= 2

    def record_success(self) -> None:
        """A batch succeeded."""
        if self.share == 1.0:
            return
        self._successes += 1
        if self._successes == RECOVERY_BATCHES:
            self._successes = 0
            self.share *= 2
