"""For every test: no settings from outside, one thread, and the files that take longest run first."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from app.runtime import cpus

if TYPE_CHECKING:
    import pytest

# Settings of whoever runs the tests would change what they test.
for name in [name for name in os.environ if name.upper().startswith("MASKSERVE_")]:
    del os.environ[name]

# Commands use all cores, and the process of the tests keeps their number of threads. Threads of two such processes on
# two cores wait for each other, and waiting takes processor time: training took three times as much.
usable_cpus = cpus.usable_cpus
cpus.usable_cpus = lambda *cgroup: usable_cpus(*cgroup) if cgroup else 1

# They run first, so that no worker of pytest-xdist ends long after the other.
LONGEST = (
    "test_cycle.py",
    "test_training_runs.py",
    "test_examples.py",
    "test_faults.py",
    "test_torchvision.py",
    "test_wheel.py",
    "test_train.py",
    "test_attacks.py",
    "test_page.py",
    "test_serving.py",
    "test_nasty.py",
    "test_damaged_images.py",
    "test_datasets.py",
    "test_client.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, in this order; all others stay as they were found."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))
