"""An engine that the tests of a module share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.model.inference.networks import engine_of

if TYPE_CHECKING:
    from model.inference.engine import Engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_of()
