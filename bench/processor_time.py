"""The processor's time that a service takes, by what takes it: the profile of bench/load.py."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class ProcessorTime:
    """Seconds of processor time, from the kernel's counts of the threads: 10 ms is the least that they show."""

    # The main thread: HTTP, accounts, answers.
    loop: float = 0.0
    # All other threads of the process: the engine's, with OpenMP's, which includes their waiting for each other.
    engine: float = 0.0
    # The processes that it started.
    decoders: float = 0.0

    @classmethod
    def of(cls, process: int) -> ProcessorTime:
        """What a process and those that it started have taken so far."""
        found = cls()
        for thread in Path(f"/proc/{process}/task").iterdir():
            if int(thread.name) == process:
                found.loop += _taken(thread)
            else:
                found.engine += _taken(thread)
            for child in (thread / "children").read_text().split():
                whole = cls.of(int(child))
                found.decoders += whole.loop + whole.engine + whole.decoders
        return found

    def __add__(self, other: ProcessorTime) -> ProcessorTime:
        return ProcessorTime(
            self.loop + other.loop, self.engine + other.engine, self.decoders + other.decoders
        )

    def __sub__(self, other: ProcessorTime) -> ProcessorTime:
        return ProcessorTime(
            self.loop - other.loop, self.engine - other.engine, self.decoders - other.decoders
        )


def _taken(thread: Path) -> float:
    """Seconds in user space and in the kernel."""
    # Behind the name, which may hold anything; proc(5) counts from the state, which is the third field.
    fields = (thread / "stat").read_text().rpartition(")")[2].split()
    return TICK * (int(fields[14 - 3]) + int(fields[15 - 3]))
