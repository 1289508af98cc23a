"""What the deployment's tests start: services on loopback, and the ports and probes that this takes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import signal
    from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
SIMULATED_SECONDS = (
    0.5  # that the device of `make ray-test` takes for an image, long beside what a busy machine adds
)
PATIENCE = 300.0  # seconds, met only when something hangs


# Ports that were handed out, and may not be open yet.
_handed_out: set[int] = set()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free, another one at each call.

    Not one of those that the system hands out by itself, or Ray: another process could be given it before it is used.
    """
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _handed_out:
                _handed_out.add(port)
                return port


def answers(url: str, seconds: float = 1.0) -> bool:
    """Whether the address answers 200 now. Cheap, because starting services share the machine with who asks."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as response:
            return int(response.status) == 200
    except OSError:  # refused, timed out, or another status
        return False


class Replica:
    """One `maskserve serve`, at the same address however often it is restarted."""

    def __init__(self, name: str, folder: Path, **settings: object) -> None:
        """folder: for its log. settings: in lower case, as in app/settings.py."""
        self.name = name
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        self.settings = {"port": self.port, "model": "shapes", "log_format": "json", **settings}
        self.log = (folder / f"{name}.log").open("w")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, environment: dict[str, str] | None = None, **settings: object) -> None:
        """Start it, and return. environment: variables besides the settings."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MASKSERVE_")}
        given = {
            f"MASKSERVE_{name.upper()}": str(value) for name, value in {**self.settings, **settings}.items()
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "serve"],
            cwd=ROOT,
            env={**inherited, **given, **(environment or {})},
            stdout=self.log,
            stderr=self.log,
        )

    async def until_ready(self) -> None:
        """Wait for a green /readyz."""
        async with asyncio.timeout(PATIENCE):
            while not await asyncio.to_thread(answers, f"{self.url}/readyz"):
                assert self.running.poll() is None, f"{self.name} ended: see {self.log.name}"
                await asyncio.sleep(0.1)

    @property
    def running(self) -> subprocess.Popen[bytes]:
        """The process. It must have been started."""
        assert self.process is not None, f"{self.name} was not started"
        return self.process

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.running.send_signal(number)

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        return await asyncio.to_thread(self.running.wait, PATIENCE)

    def __enter__(self) -> Replica:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        self.log.close()
