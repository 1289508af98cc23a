"""A good model file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model.zoo import model_file
from tests.model.zoo.models import DESCRIPTION, network

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file; tests that damage it take a copy."""
    path: Path = tmp_path_factory.mktemp("zoo") / "whole.safetensors"
    model_file.save(path, network(), DESCRIPTION, half=True)
    return path
