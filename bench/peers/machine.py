"""What the table was measured on and with."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bench.masks import processor
from bench.peers.environments import ROOT
from bench.peers.registry import REQUIREMENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.peers.registry import Peer

# Of the processor's flags, those that fast engines ask for.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")


def describe(peers: Sequence[Peer], threads: int) -> list[str]:
    """Lines on the machine, the moment and the versions."""
    flags = flags_in(Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = {"Python": platform.python_version(), "torch": version("torch")} | pinned(peers)
    cores = f"{os.cpu_count()} cores, {threads} threads, {memory / 1e9:.0f} GB"
    load = f"load {os.getloadavg()[0]:.1f} before the run"
    return [
        f"{processor()}, {' '.join(flags) or 'none of the known flags'}; {cores}",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {platform.system()} {platform.release()}; {load}",
        f"maskserve at {commit()}; " + ", ".join(f"{name} {number}" for name, number in versions.items()),
    ]


def flags_in(cpuinfo: str) -> list[str]:
    """Those of FLAGS that the first processor of /proc/cpuinfo has."""
    for line in cpuinfo.splitlines():
        if line.startswith("flags"):
            has = set(line.split())
            return [flag for flag in FLAGS if flag in has]
    return []


def pinned(peers: Sequence[Peer]) -> dict[str, str]:
    """Versions that the peers' requirements name."""
    found: dict[str, str] = {}
    for name in sorted({peer.requirements for peer in peers} - {""}):
        for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines():
            package, _, number = line.partition("==")
            found.setdefault(package, number)
    return found


def commit() -> str:
    """Of this checkout, and whether it was changed."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "an unknown commit"
