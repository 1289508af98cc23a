"""Thin networks and two scenes for every test of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model.data.shapes import Shapes
from tests.model.thin import thin_backbones

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module", autouse=True)
def _thin() -> Iterator[None]:
    with thin_backbones():
        yield


@pytest.fixture(scope="session")
def scenes() -> Shapes:
    return Shapes(seed=6, length=2, sides=(64, 80))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"
