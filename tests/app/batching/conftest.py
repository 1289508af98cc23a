"""Fixtures for all tests of the queue worker."""

from __future__ import annotations

import pytest

import app.batching.lane
from tests.app.batching.fakes import PATIENCE


@pytest.fixture(autouse=True)
def _no_heartbeat_wakes_the_thread(monkeypatch):
    """Whatever should wake the worker must do so itself."""
    monkeypatch.setattr(app.batching.lane, "HEARTBEAT_SECONDS", 2 * PATIENCE)
