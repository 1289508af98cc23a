"""SIGINT and SIGTERM during a run of one process: the step that runs is finished and saved before the run ends."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedRunError(KeyboardInterrupt):
    """A run got SIGINT or SIGTERM."""

    def __init__(self, number: int) -> None:
        """number: of the signal."""
        super().__init__()
        self.number = number


class Interruption:
    """Context in which SIGINT and SIGTERM raise InterruptedRunError: at once, or after a block that must be finished.

    Only the first signal does; then the handlers from before are back, so that a second one ends the process at once.
    Signals that were ignored still are. Outside the main thread, where Python allows no handlers, nothing changes.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        """enabled: False installs no handlers."""
        self.enabled = enabled
        # The step from which the checkpoint in the run folder continues, once there is one.
        self.step: int | None = None
        self._before: dict[int, Any] = {}
        self._received: int | None = None
        self._postponed = False

    def __enter__(self) -> Self:
        if self.enabled and threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # None: a handler that was not installed from Python and could not be restored.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    @contextmanager
    def postpone(self) -> Iterator[None]:
        """A block that a first signal does not interrupt; InterruptedRunError is raised at its end instead."""
        self._postponed = True
        try:
            yield
        finally:
            self._postponed = False
        if self._received is not None:
            raise InterruptedRunError(self._received)

    def _handle(self, number: int, _: object) -> None:
        self._restore()
        self._received = number
        if not self._postponed:
            raise InterruptedRunError(number)

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
