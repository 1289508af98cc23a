"""Loopback ports and probes, for what the deployment's tests start."""

from __future__ import annotations

import socket
import urllib.request


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str, seconds: float = 1.0) -> bool:
    """Whether the address answers 200 now. Cheap, because starting services share the machine with who asks."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as response:
            return int(response.status) == 200
    except OSError:  # refused, timed out, or another status
        return False
