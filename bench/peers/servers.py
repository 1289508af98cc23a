"""One server's turn: it is started, checked, asked by 1, 4 and 16 clients of wrk, and ended."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.peers.agreement import Answer, compare
from bench.peers.process import PeerError, forget_peaks, peak_bytes, reason_in, until_idle
from bench.peers.results import CLIENTS, Turn
from bench.wrk import ClosedLoop
from deploy.tests.processes import free_port

if TYPE_CHECKING:
    from bench.peers.conditions import Conditions
    from bench.peers.process import Running
    from bench.peers.registry import Peer
    from bench.peers.results import Result

# Seconds.
TO_BE_READY, FOR_AN_ANSWER = 300.0, 120.0
# In every answer, once for each mask.
MASK = "counts"
# Triton's header, of requests and answers that are not JSON from their beginning on.
HEAD = "Inference-Header-Content-Length"


def turn(result: Result, conditions: Conditions) -> None:
    """Add a turn to the result, for each number of clients. Raises PeerError."""
    path = result.peer.path.format(score=conditions.score_threshold)
    peer = replace(result.peer, path=path)
    photo, port = (conditions.folder / "photo.jpg").read_bytes(), free_port()
    url = f"http://127.0.0.1:{port}"
    with conditions.start(peer, str(port)) as running:
        document = first_answer(running, url, peer, photo)
        agreement = compare(conditions.expected, Answer.of_document(document))
        result.check(agreement)
        forget_peaks(running.process.pid)
        started = time.monotonic()
        ask(url, peer, photo)
        taken = time.monotonic() - started
        for clients in CLIENTS:
            loop = ClosedLoop(clients)
            # Long enough that each client can have two answers.
            long = max(conditions.seconds, 2 * clients * taken)
            try:
                asyncio.run(loop.turn(url, [photo], long, path=peer.path, headers=peer.headers, count=MASK))
            except SystemExit as error:
                raise PeerError(reason_in(str(error))) from None
            right = loop.words.get(str(agreement.found), 0)
            if not right:
                raise PeerError(
                    f"{clients} clients got no right answer: {loop.statuses}, {loop.errors} errors"
                )
            wrong = sum(loop.statuses.values()) + loop.errors - right
            result.add(clients, Turn(right / loop.seconds, loop.p50[0], loop.p99[0], right, wrong))
            result.peak_bytes = max(result.peak_bytes, peak_bytes(running.process.pid))
            until_idle(running.process.pid)


def first_answer(running: Running, url: str, peer: Peer, photo: bytes) -> dict[str, Any]:
    """Wait until it answers. Raises PeerError where it ends before that, or does not come so far."""
    end, last = time.monotonic() + TO_BE_READY, ""
    while time.monotonic() < end:
        if running.process.poll() is not None:
            running.raise_ended()
        try:
            return ask(url, peer, photo)
        except urllib.error.HTTPError as error:
            last = f"HTTP {error.code}"
        except OSError as error:
            last = str(getattr(error, "reason", error))
        time.sleep(0.5)
    printed = reason_in(running.log.read_text(errors="replace"))
    raise PeerError(f"not ready in {TO_BE_READY:.0f} s, {last}: {printed}")


def ask(url: str, peer: Peer, photo: bytes) -> dict[str, Any]:
    """One answer. Raises OSError where there is none."""
    headers = {"Content-Type": "image/jpeg", **peer.headers}
    request = urllib.request.Request(url + peer.path, photo, headers)
    with urllib.request.urlopen(request, timeout=FOR_AN_ANSWER) as response:
        return read_answer(response.read(), response.headers.get(HEAD))


def read_answer(body: bytes, head: str | None) -> dict[str, Any]:
    """The answer's document.

    Args:
        body: JSON; by Triton's protocol, which describes the tensors first, the text and before it its length.
        head: bytes of that description; None: it is not Triton's.
    """
    start = 0 if head is None else int(head) + 4
    document: dict[str, Any] = json.loads(body[start:])
    return document
