"""One engine's turn: its process is started, warmed up, checked, measured and ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.peers.agreement import Answer, compare
from bench.peers.process import forget_peaks, peak_bytes
from bench.peers.results import Turn

if TYPE_CHECKING:
    from bench.peers.conditions import Conditions
    from bench.peers.registry import Peer
    from bench.peers.results import Result

# Seconds. A compiler takes minutes; a pass of a large photo on a slow machine takes one.
TO_BE_READY, FOR_A_PASS = 1800.0, 300.0


def prepare(peer: Peer, conditions: Conditions) -> None:
    """Let it export, convert or quantize, in a process of its own: its memory is not the engine's. Raises PeerError."""
    with conditions.start(peer, "prepare") as running:
        running.wait(TO_BE_READY)


def turn(result: Result, conditions: Conditions) -> None:
    """Add a turn to the result. Raises PeerError."""
    with conditions.start(result.peer, "run", talks=True) as running:
        running.read(TO_BE_READY)
        path = conditions.folder / f"{result.peer.name}.npz"
        running.ask(str(path), FOR_A_PASS)
        agreement = compare(conditions.expected, Answer.read(path))
        result.check(agreement)
        forget_peaks(running.process.pid)
        done = running.ask(str(conditions.seconds), conditions.seconds + FOR_A_PASS)
        result.peak_bytes = max(result.peak_bytes, peak_bytes(running.process.pid))
    times = np.array(done["times"])
    right = done["counts"].get(str(agreement.found), 0)
    p50, p99 = (float(np.percentile(times, part)) for part in (50, 99))
    result.add(1, Turn(right / float(times.sum()), p50, p99, right, len(times) - right))
