"""What the tests of the service share."""

from __future__ import annotations

import pytest

from app.intake.decoders import Decoders


@pytest.fixture(autouse=True)
def _decoder_processes_start_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests send no image, and a process takes 0.1 s to start."""
    monkeypatch.setattr(Decoders, "start", lambda _: None)
