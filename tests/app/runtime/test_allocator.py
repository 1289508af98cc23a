"""The allocator setting, seen from a process of its own by what the kernel counts."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from app.runtime.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()

def fill():
    for _ in range(4):
        bytearray(b"\1") * 40_000_000

fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(setting: str) -> int:
    command = [sys.executable, "-c", FAULTS, setting]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")
def test_freed_memory_is_used_again_without_asking_the_kernel() -> None:
    pages = 40_000_000 // 4096
    assert faults("kept") < pages / 10
    assert faults("returned") > pages


RELEASED = """
from pathlib import Path
from app.runtime.allocator import keep_freed_memory, release_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

keep_freed_memory()
before = resident()
blocks = [bytearray(b"\1") * 1_000_000 for _ in range(100)]
last = bytearray(1000)  # above them on the heap
del blocks
kept = resident() - before
release_freed_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")
def test_kept_memory_goes_back_to_the_kernel_when_told_to() -> None:
    output = subprocess.run(
        [sys.executable, "-c", RELEASED], check=True, capture_output=True, text=True
    ).stdout
    kept, left = map(int, output.split())
    assert kept > 90_000_000
    assert left < 10_000_000
