"""A thousand instances over HTTP: the engine's own answer, drawn and counted, in every format."""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from app.cli.main import cli
from app.runtime.loading import load_engine
from app.settings import Settings
from maskserve.requests import parse_result
from model.images.decode import encode_png
from model.images.overlay import colour_of
from model.zoo import model_file
from tests.app.fakes import serving
from tests.model import crowd

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

QUERY = {"score_threshold": "0.05"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = tmp_path_factory.mktemp("crowd") / "crowded.safetensors"
    model_file.save(path, crowd.network(), crowd.MODEL)
    return Settings(model=str(path), precision="float32", threads=1)


@pytest.fixture(scope="module")
def answers(settings: Settings) -> dict[str, httpx.Response]:
    """By mask format or media type; and /model and /metrics after them."""

    async def run() -> dict[str, httpx.Response]:
        found = {}
        content = encode_png(crowd.picture())
        load: Any = lambda: load_engine(settings)  # noqa: E731
        async with serving(load=load) as (client, _):
            for masks in ("rle", "polygon", "png", "none"):
                found[masks] = await client.post("/segment", params=QUERY | {"masks": masks}, content=content)
            drawn = {"accept": "image/png"}
            found["drawn"] = await client.post("/segment", params=QUERY, content=content, headers=drawn)
            fewer = QUERY | {"max_instances": "300"}
            found["fewer"] = await client.post("/segment", params=fewer, content=content)
            for path in ("model", "metrics"):
                found[path] = await client.get(f"/{path}")
        return found

    return asyncio.run(run())


def test_the_answer_is_that_of_the_command(
    answers: dict[str, httpx.Response], settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encode_png(crowd.picture()))
    model = ["--model", settings.model, "--precision", "float32"]
    ran = CliRunner().invoke(cli, ["segment", str(path), *model, "--score-threshold", "0.05", "--json"])
    assert ran.exit_code == 0, ran.output
    expected = json.loads(ran.stdout)
    document = answers["rle"].json()
    assert len(document["instances"]) == 1000
    assert document | {"id": ""} == expected | {"id": ""}
    scores = [instance["score"] for instance in document["instances"]]
    assert scores == sorted(scores, reverse=True)


def test_every_format_of_masks_holds_a_thousand(answers: dict[str, httpx.Response]) -> None:
    exact = parse_result(answers["rle"].content, {}).instances
    for masks, least in (("png", 1.0), ("polygon", 0.8)):
        found = parse_result(answers[masks].content, {}).instances
        assert len(found) == 1000
        for one, other in zip(found, exact, strict=True):
            shared, either = (one.mask & other.mask).sum(), (one.mask | other.mask).sum()
            assert shared >= least * either
    boxes = answers["none"].json()["instances"]
    assert [b["bbox"] for b in boxes] == [i["bbox"] for i in answers["rle"].json()["instances"]]


def test_a_thousand_are_drawn(answers: dict[str, httpx.Response]) -> None:
    drawn = np.array(Image.open(io.BytesIO(answers["drawn"].content)))
    assert drawn.shape == crowd.picture().shape
    covered = np.zeros(drawn.shape[:2], bool)
    for instance in parse_result(answers["rle"].content, {}).instances:
        covered |= instance.mask
    changed = (drawn != crowd.picture()).any(2)
    assert changed[covered].mean() > 0.95
    outlines = {colour_of(category.id) for category in crowd.MODEL.categories}
    assert {tuple(pixel) for pixel in drawn[changed].tolist()} & outlines


def test_a_thousand_are_counted(answers: dict[str, httpx.Response]) -> None:
    assert answers["model"].json()["max_instances"] == 1000
    assert len(answers["fewer"].json()["instances"]) == 300
    lines = dict(line.rsplit(" ", 1) for line in answers["metrics"].text.splitlines() if line[0] != "#")
    assert float(lines["maskserve_instances_sum"]) == 5 * 1000 + 300
    assert float(lines['maskserve_instances_bucket{le="500.0"}']) == 1
    assert float(lines['maskserve_instances_bucket{le="1000.0"}']) == 6
