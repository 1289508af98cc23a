"""Networks of few channels, and runs without plots, for the tests of a file that ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from app.commands import report
from model.evaluation import plots
from tests.app.commands import training

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def tiny_networks() -> Iterator[None]:
    """`small` and all ResNets have few channels until the tests of the file are done."""
    with training.tiny_networks():
        yield


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no plots, which take half of their time."""
    monkeypatch.setattr(plots, "training_curve", lambda *_: None)
    monkeypatch.setattr(report, "draw_plots", lambda *_: None)
