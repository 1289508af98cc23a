"""For every test: no settings from outside, one thread, little memory, and the files that take longest run first."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.runtime import cpus
from app.runtime.allocator import release_freed_memory

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# Settings of whoever runs the tests would change what they test.
for name in [name for name in os.environ if name.upper().startswith("MASKSERVE_")]:
    del os.environ[name]

# A shell that starts the tests in the background makes them, and all that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Commands use all cores, and the process of the tests keeps their number of threads. Threads of two such processes on
# two cores wait for each other, and waiting takes processor time: training took three times as much.
usable_cpus = cpus.usable_cpus
cpus.usable_cpus = lambda *cgroup: usable_cpus(*cgroup) if cgroup else 1

# They run first, so that no worker of pytest-xdist ends long after the other. The first ones wait at times, and mypy
# runs meanwhile.
LONGEST = (
    "test_faults.py",
    "test_attacks.py",
    "test_wheel.py",
    "test_page.py",
    "test_cycle.py",
    "test_torchvision.py",
    "test_training_runs.py",
    "test_engine.py",
    "test_tiles_on_the_page.py",
    "test_page_problems.py",
    "test_resources.py",
    "test_serving.py",
    "test_golden_detectron2.py",
    "test_examples.py",
    "test_nasty.py",
    "test_large_images.py",
    "test_painting.py",
    "test_dense_images.py",
)

# Bytes of the tests' process from which on it is worth looking for what a file of tests has left.
WORTH_RELEASING = 1 << 30


@pytest.fixture(scope="module", autouse=True)
def _release_memory() -> Iterator[None]:
    """Give back what the tests of a file took: engines keep what they free, and the process grew to 4 GB."""
    yield
    memory = Path("/proc/self/statm")
    if memory.exists() and int(memory.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > WORTH_RELEASING:
        gc.collect()
        release_freed_memory()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Do not look for garbage among what is imported now and stays: each look would take half a second, also later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, in this order; all others stay as they were found."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))
