"""What was measured of a peer."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.peers.agreement import Agreement
    from bench.peers.registry import Peer

# Of the closed loops that ask a server.
CLIENTS = (1, 4, 16)


@dataclass(frozen=True)
class Turn:
    """One turn with so many clients; an engine has one."""

    # Right answers a second.
    rate: float
    # Seconds an answer.
    p50: float
    p99: float
    # Answers that were as many instances as the checked one …
    right: int
    # … and those that were not, or errors.
    wrong: int


@dataclass
class Result:
    """A row of the table."""

    peer: Peer
    # In a few words, where it could not be measured.
    failure: str = ""
    # The worst of all turns.
    agreement: Agreement | None = None
    # By number of clients; one of each round.
    turns: dict[int, list[Turn]] = field(default_factory=dict)
    # Of the process and all that it started, while it answered.
    peak_bytes: int = 0

    def check(self, agreement: Agreement) -> None:
        """Keep how an answer agreed, if it is the worst so far."""
        if self.agreement is None or agreement.badness > self.agreement.badness:
            self.agreement = agreement

    def add(self, clients: int, turn: Turn) -> None:
        self.turns.setdefault(clients, []).append(turn)

    def rates(self, clients: int = 1) -> list[float]:
        """Answers a second, of each round."""
        return [turn.rate for turn in self.turns.get(clients, [])]

    def median(self, name: str, clients: int = 1) -> float:
        """Of the rounds' "rate", "p50" or "p99"."""
        return median(getattr(turn, name) for turn in self.turns[clients])

    def total(self, name: str) -> int:
        """All turns' "right" or "wrong" answers."""
        return sum(getattr(turn, name) for turns in self.turns.values() for turn in turns)

    def to_json(self) -> dict[str, Any]:
        """All of it, for `--json`."""
        return {
            "name": self.peer.name,
            "title": self.peer.title,
            "kind": "server" if self.peer.is_server else "engine",
            "precision": self.peer.precision,
            "failure": self.failure,
            "agreement": None if self.agreement is None else vars(self.agreement),
            "peak_bytes": self.peak_bytes,
            "turns": {str(clients): [vars(turn) for turn in turns] for clients, turns in self.turns.items()},
        }
