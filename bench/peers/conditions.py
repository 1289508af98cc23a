"""What is the same for all peers of a run, and how their programs are started with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.peers.environments import ENVIRONMENTS
from bench.peers.process import Running

if TYPE_CHECKING:
    from pathlib import Path

    from bench.peers.agreement import Answer
    from bench.peers.registry import Peer


@dataclass(frozen=True)
class Conditions:
    """Of a run."""

    # With what bench/peers/inputs.py wrote; programs write there too.
    folder: Path
    # Ours in float32.
    expected: Answer
    score_threshold: float
    threads: int
    # Of a turn, at least.
    seconds: float
    environments: Path = ENVIRONMENTS

    def start(self, peer: Peer, *arguments: str, talks: bool = False) -> Running:
        """Start its program. arguments: behind the folder and the precision, which all are told.

        talks: what it prints is for `Running.read`.
        """
        command = [str(peer.python(self.environments)), str(peer.script)]
        command += [str(self.folder), peer.variant or peer.precision, *arguments]
        variables = {
            "OMP_NUM_THREADS": str(self.threads),
            # What torch.compile made in one turn is there for the next.
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            **peer.environment,
        }
        return Running(command, variables, self.folder / f"{peer.name}.log", talks=talks)
