"""Which files begin: those that take longest, so that no worker of pytest-xdist ends long after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

LONGEST = (
    "test_cycle.py",
    "test_training_runs.py",
    "test_faults.py",
    "test_examples.py",
    "test_client.py",
    "test_wheel.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, in this order; all others stay as they were found."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))
