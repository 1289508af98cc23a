"""Tiles through a real server, the client and the command: one answer, whichever way it is asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from app.cli.main import cli
from maskserve import Client, ServiceError

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = {"tile": 96, "overlap": 0.25, "whole": True, "score_threshold": 0.06}
WORDS = ("--tile", "96", "--overlap", "0.25", "--whole", "--score-threshold", "0.06", "--json")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A noisy picture of 4 × 3 tiles."""
    path = tmp_path_factory.mktemp("tiles") / "photo.png"
    pixels = np.random.default_rng(1).integers(0, 255, (240, 310, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_the_service_and_the_command_have_the_same_instances(
    server: Any, model_file: Path, photo: Path
) -> None:
    with Client(server.url) as client:
        remote = client.segment(photo, **OPTIONS)
        again = client.segment(photo, **OPTIONS)
    environment = {"MASKSERVE_THREADS": "1", "MASKSERVE_PRECISION": "float32"}
    local = CliRunner().invoke(
        cli, ["segment", str(photo), *WORDS, "--model", str(model_file)], env=environment
    )
    assert local.exit_code == 0, local.stderr
    assert len(remote.instances) > 1
    printed = json.loads(local.stdout)["instances"]
    assert printed == remote.document["instances"] == again.document["instances"]
    areas = [int(instance.mask.sum()) for instance in remote.instances[:20]]
    assert areas == [instance.area for instance in remote.instances[:20]]


def test_a_model_that_sees_the_whole_image_anyway_cuts_none(server: Any) -> None:
    small = np.random.default_rng(2).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    with Client(server.url) as client:
        plain = client.segment(small, score_threshold=0.06)
        tiled = client.segment(small, score_threshold=0.06, tile="auto")
    assert tiled.document["instances"] == plain.document["instances"] != []


def test_what_the_service_refuses_is_said_by_both(server: Any, model_file: Path, photo: Path) -> None:
    with Client(server.url) as client, pytest.raises(ServiceError, match="tile must be auto, or a whole"):
        client.segment(photo, tile=10)
    result = CliRunner().invoke(cli, ["segment", str(photo), "--tile", "10", "--model", str(model_file)])
    assert result.exit_code == 2
    assert "tile must be auto, or a whole number of pixels" in result.stderr
