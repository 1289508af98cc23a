"""The number of CPU cores that this process may use, which in a container can be fewer than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cpus(cgroup: Path = CGROUP) -> int:
    """Cores by the process's CPU affinity or its control group's quota, whichever is less; at least 1.

    torch counts the machine's cores. With `docker run --cpus=2` on a machine with 64 it would start 64 threads, which
    the kernel suspends for most of each period.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cgroup_quota(cgroup))))


def cgroup_quota(cgroup: Path) -> float:
    """Cores that the control group (version 2, else 1) grants; infinity if it sets no limit."""
    try:
        microseconds, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            microseconds = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return math.inf
    return math.inf if microseconds in ("max", "-1") else int(microseconds) / int(period)
