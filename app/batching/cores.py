"""The cores of a CPU, which the passes that run at the same time share."""

from __future__ import annotations


class Cores:
    """One pass alone has all cores; several have equal parts of them, down to one core each.

    Two images on a core each are ready sooner than one after the other on both, where the threads wait for one another
    after every layer. docs/engine.md has the measurements. The schedule's lock guards it.
    """

    def __init__(self, count: int) -> None:
        self.count = self.free = count
        # Passes that run now.
        self.passes = 0

    def take(self, waiting: int, most_passes: int) -> int:
        """Cores for one more pass; 0 if there is nothing to run, or if it has to wait until another ends.

        Args:
            waiting: images that could run now, that of this pass included.
            most_passes: that may run at the same time.
        """
        beginning = min(waiting, most_passes - self.passes, self.free)
        if beginning <= 0:
            return 0
        cores = self.free // beginning
        self.free -= cores
        self.passes += 1
        return cores

    def give_back(self, cores: int) -> None:
        """The pass that took them has ended."""
        self.free += cores
        self.passes -= 1
