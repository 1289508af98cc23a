"""A peer's process with all that it starts: what it is asked, what it holds, how it ends, and why it failed (Linux)."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

PROC = Path("/proc")
# Longer reasons are cut in the table.
MOST_CHARACTERS = 110
# What names an error in a line: Python's and Java's without their packages, and uv's.
ERROR = re.compile(r"\b[A-Z]\w*(?:Error|Exception): .*|^(?:error|cause): .*")
# For the end of a process that was asked to end.
GRACE = 15.0


class PeerError(Exception):
    """A peer cannot take part; the message says how it failed, in a few words."""


class Running:
    """One program. Leaving ends it, and all that it started."""

    def __init__(
        self, command: list[str], variables: Mapping[str, str], log: Path, *, talks: bool = False
    ) -> None:
        """Start it.

        Args:
            command: the program and its arguments.
            variables: of its environment, besides those of this process.
            log: gets what it prints.
            talks: what it prints is for `read`, except for errors.
        """
        # Neither our packages nor our settings are a peer's.
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("MASKSERVE_")}
        self.log = log
        with log.open("w") as printed:
            self.process = subprocess.Popen(
                command, env={**kept, **variables}, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if talks else printed, stderr=printed, text=True, start_new_session=True,
            )  # fmt: skip

    def read(self, seconds: float) -> dict[str, Any]:
        """Its next line. Raises PeerError where it ends, or takes longer than so many seconds."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise PeerError(f"no answer in {seconds:.0f} s")
        if not (line := self.process.stdout.readline()):
            self.raise_ended()
        document: dict[str, Any] = json.loads(line)
        return document

    def ask(self, line: str, seconds: float) -> dict[str, Any]:
        """What it answers to a line. Raises PeerError as `read` does."""
        assert self.process.stdin is not None
        try:
            print(line, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            self.raise_ended()
        return self.read(seconds)

    def wait(self, seconds: float) -> None:
        """Wait for its end. Raises PeerError where that is a failure or does not come."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise PeerError(f"not done in {seconds:.0f} s") from None
        if code:
            self.raise_ended()

    def raise_ended(self) -> None:
        """Raise PeerError with the reason."""
        code = self.process.wait(GRACE)
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        raise PeerError(reason_in(self.log.read_text(errors="replace")) or f"it ended with {how}")

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        started = family(self.process.pid)
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        for pid, since in started.items():
            if is_running(pid, since):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait(GRACE)
        # The next peer wants their memory.
        end = time.monotonic() + GRACE
        while any(is_running(*one) for one in started.items()) and time.monotonic() < end:
            time.sleep(0.01)
        if self.process.stdout is not None:
            self.process.stdout.close()


def reason_in(log: str) -> str:
    """The last line that names an error, else the last one, cut to a few words."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [found[0] for line in lines if (found := ERROR.search(line))]
    line = (named or lines or [""])[-1]
    return line if len(line) <= MOST_CHARACTERS else line[: MOST_CHARACTERS - 1].rstrip() + "…"


def family(pid: int) -> dict[int, str]:
    """The process and all that it and those started, with the times at which they were."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, left = {}, [pid]
    while left:
        one = left.pop()
        if since := start_time(one):
            found[one] = since
        left += children.get(one, [])
    return found


def is_running(pid: int, since: str) -> bool:
    """Whether the process that was started then has not ended. Another can have got its number."""
    fields = _stat(pid)
    return bool(fields) and fields[0] != "Z" and fields[19] == since


def start_time(pid: int) -> str:
    """Clock ticks since the start of the system; empty if there is no such process."""
    fields = _stat(pid)
    return fields[19] if fields else ""


def _stat(pid: int) -> list[str]:
    """The fields behind the name: state, parent …"""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def processor_seconds(pid: int) -> float:
    """That the family has computed so far."""
    fields = [_stat(one) for one in family(pid)]
    return sum(int(f[11]) + int(f[12]) for f in fields if f) / os.sysconf("SC_CLK_TCK")


def until_idle(pid: int, seconds: float = 600.0) -> None:
    """Wait until the family computes less than a third of a core: it may still work for clients that hung up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = processor_seconds(pid)
        time.sleep(1)
        if processor_seconds(pid) - before < 1 / 3:
            return


def forget_peaks(pid: int) -> None:
    """Count the highest resident sets of the family from now on."""
    for one in family(pid):
        with suppress(OSError):
            (PROC / str(one) / "clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """What the family holds at most: pages that several share are counted once, as those of now are shared."""
    total = 0
    for one in family(pid):
        with suppress(OSError):
            shared = _kibibytes((PROC / str(one) / "smaps_rollup").read_text(), "Pss")
            status = (PROC / str(one) / "status").read_text()
            total += shared + _kibibytes(status, "VmHWM") - _kibibytes(status, "VmRSS")
    return total * 1024


def _kibibytes(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0
