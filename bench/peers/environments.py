"""Peers' virtual environments: made by uv on first use, and again when their requirements have changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.peers.process import PeerError, reason_in
from bench.peers.registry import REQUIREMENTS

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-peers"
# Seconds, for gigabytes from a slow registry.
PATIENCE = 3600.0


def make_environment(name: str, folder: Path = ENVIRONMENTS) -> None:
    """Make the environment of requirements/NAME.txt, unless it is there. Raises PeerError where it cannot be had."""
    requirements = (REQUIREMENTS / f"{name}.txt").read_text()
    environment = folder / name
    # Written last, so that an interrupted installation is repeated.
    installed = environment / "requirements.txt"
    if installed.exists() and installed.read_text() == requirements:
        return
    uv = find_uv()
    _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)])
    listed = str(REQUIREMENTS / f"{name}.txt")
    _run([uv, "pip", "install", "--quiet", "--compile-bytecode", "-r", listed], VIRTUAL_ENV=str(environment))
    installed.write_text(requirements)


def find_uv() -> str:
    """The program: `make setup` installs it beside the interpreter. Raises PeerError."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise PeerError("uv is not installed; make setup installs it")
    return found


def _run(command: list[str], **variables: str) -> None:
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PeerError("the installation took too long") from None
    if done.returncode:
        raise PeerError(f"not installed: {reason_in(done.stderr)}")
