"""Ours against what else segments on a CPU: engines and servers, each in an environment of its own.

    python bench/peers                                  # everything, V1 with synthetic weights: an hour or more
    python bench/peers --only engines --rounds 3 --seconds 30
    python bench/peers --peers fastapi,litserve,serve-bfloat16 --json peers.json --plot docs/images/peers.png
    python bench/peers --model shapes --seconds 2 --rounds 1    # does everything run?

All are given the same weights, the same photo, the same threshold of scores and the same number of threads, and what
they answer is compared with ours in float32: instances of the same category whose boxes' IoU is 0.5 or more, and their
masks' IoU. They take turns in rounds, because the speed of a shared machine drifts; each is started for its turn and
ended after it. Engines go from pixels to masks: ours to COCO RLE, the others to torchvision's stack of
masks. Servers go from a JPEG file to JSON with COCO RLE, asked by 1, 4 and 16 clients of wrk that each send
the photo again when they have their answer. Rates count right answers only; "wrong" are those with another number of
instances than the peer's checked answer, and errors. Memory is the peak of the process and all that it started, while
it answered. A peer that fails is a row that says how.

Environments lie in .venv-peers/ and take a few GB. int8 is calibrated on the photo itself, ours too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from app.runtime.cpus import usable_cpus
from bench.peers import engines, machine, servers
from bench.peers.conditions import Conditions
from bench.peers.environments import make_environment
from bench.peers.inputs import write_inputs
from bench.peers.picture import draw
from bench.peers.process import PeerError
from bench.peers.registry import choose
from bench.peers.results import Result
from bench.peers.table import tables

if TYPE_CHECKING:
    from collections.abc import Callable


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python bench/peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["engines", "servers"])
    parser.add_argument("--peers", help="names, with commas between them")
    parser.add_argument("--model", default="v1", help="v1, v2, shapes, or a backbone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a turn, at least")
    parser.add_argument(
        "--score", type=float, help="that instances must have; else one that is no instance's"
    )
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--json", type=Path, help="all that was measured, after each round")
    parser.add_argument("--plot", type=Path, help="a picture of the rates")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    peers = choose(given.only, given.peers)
    if any(peer.is_server for peer in peers) and shutil.which("wrk") is None:
        sys.exit(
            "servers are asked by wrk, which is not installed; Debian and Ubuntu have it: apt-get install wrk"
        )
    results = [Result(peer) for peer in peers]
    facts = machine.describe(peers, given.threads)
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        folder = Path(name)
        expected, score = write_inputs(folder, given.model, given.score)
        conditions = Conditions(folder, expected, score, given.threads, given.seconds)
        turns = f"{given.rounds} round{'s' * (given.rounds > 1)} of {given.seconds:g} s"
        facts.insert(
            0,
            f"{given.model}, 640 × 480 photo, {len(expected.labels)} instances of score {score:g} or more; {turns}",
        )
        for result in results:
            attempt(result, "prepared", lambda: make_ready(result, conditions))
        for n in range(given.rounds):
            for result in results:
                attempt(result, f"round {n + 1}", lambda: measure(result, conditions))
            if given.json:
                document = {"facts": facts, "model": given.model, "peers": [r.to_json() for r in results]}
                given.json.write_text(json.dumps(document, indent=1) + "\n")
    print("\n".join(facts), end="\n\n")
    print(tables(results))
    if given.plot:
        draw(given.plot, results, "\n".join(facts[:3]))


def attempt(result: Result, step: str, do: Callable[[], None]) -> None:
    """Do it, unless the peer has failed; a failure becomes its row's reason."""
    if result.failure:
        return
    try:
        do()
    except (PeerError, OSError, ValueError, KeyError) as error:
        result.failure = str(error) if isinstance(error, PeerError) else f"{type(error).__name__}: {error}"
    said = f"{step}: {result.failure}" if result.failure else step
    print(f"{result.peer.name}: {said}", file=sys.stderr, flush=True)


def make_ready(result: Result, conditions: Conditions) -> None:
    """Its environment, and what it has to export, convert or quantize. Raises PeerError."""
    peer = result.peer
    if peer.requirements:
        make_environment(peer.requirements, conditions.environments)
    if peer.prepares:
        engines.prepare(peer, conditions)


def measure(result: Result, conditions: Conditions) -> None:
    """One turn. Raises PeerError."""
    turn = servers.turn if result.peer.is_server else engines.turn
    turn(result, conditions)


if __name__ == "__main__":
    main()
