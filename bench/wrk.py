"""Closed loops by wrk (https://github.com/wg/wrk): clients that each send when they have their answer.

On few cores, clients in Python would take from the service much of the processor time that they measure.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SCRIPT = Path(__file__).with_suffix(".lua")


@dataclass
class ClosedLoop:
    """What became of the requests of one closed loop, in one or more turns."""

    clients: int
    # seconds of all turns together
    seconds: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    errors: int = 0
    # answers 200 by how often the word of `turn` occurs in them
    words: dict[str, int] = field(default_factory=dict)
    # seconds, one of each turn
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    # milliseconds of each answer, by the service's clock: in the queue, and neither there nor in the forward pass
    queued: list[float] = field(default_factory=list)
    overheads: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.statuses.get("200", 0) / self.seconds

    def line(self) -> str:
        """For the table of bench/load.py."""
        others = {status: count for status, count in self.statuses.items() if status != "200"}
        name = f"closed loop, {self.clients} client{'s' * (self.clients > 1)}"
        return (
            f"{name:<28}{'–':>8}{self.rate:>9.2f}{'–':>9}{1000 * median(self.p50):>10.0f}"
            f"{1000 * median(self.p99):>10.0f}{'–':>12}  {'–':<18}{others or ''}"
        )

    async def turn(
        self,
        url: str,
        images: list[bytes],
        seconds: float,
        *,
        path: str = "/segment",
        headers: Mapping[str, str] | None = None,
        count: str = "",
    ) -> None:
        """Let it run for so many seconds. Exits where wrk is missing or cannot reach the service.

        Args:
            url: of the service.
            images: to send by turns.
            seconds: rounded to whole ones.
            path: where they are sent.
            headers: of the requests, besides those of an image.
            count: a word; the answers are counted by how often it occurs in them. Empty: they are not read.
        """
        program = shutil.which("wrk")
        if program is None:
            sys.exit("wrk is not installed; Debian and Ubuntu have it: apt-get install wrk")
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{index}.jpg" for index in range(len(images))]
            for name, image in zip(paths, images, strict=True):
                name.write_bytes(image)
            options = ["--threads", "1", "--connections", self.clients, "--timeout", "120s"]
            options += ["--duration", f"{max(1, round(seconds))}s", "--script", SCRIPT]
            options += [url + path, "--", *paths]
            options += [f"header:{name}={value}" for name, value in (headers or {}).items()]
            options += [f"count:{count}"] if count else []
            process = await asyncio.create_subprocess_exec(
                program, *map(str, options), stdout=asyncio.subprocess.PIPE
            )
            printed = (await process.communicate())[0].decode()
        found = [line for line in printed.splitlines() if line.startswith("result ")]
        if not found:
            sys.exit(f"wrk failed:\n{printed}")
        self.include(json.loads(found[0].removeprefix("result ")))

    def include(self, turn: dict) -> None:
        """Count one turn."""
        self.seconds += turn["seconds"]
        self.errors += turn["errors"]
        for total, new in ((self.statuses, turn["statuses"]), (self.words, turn["words"])):
            for key, count in new.items():
                total[key] = total.get(key, 0) + count
        self.p50.append(turn["p50"])
        self.p99.append(turn["p99"])
        self.queued += turn["queued"]
        self.overheads += turn["overheads"]
