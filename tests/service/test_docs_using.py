"""The Python in docs/using.md runs as it stands there; what needs other tools is tested in tests/tools."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from maskserve import Client
from maskserve.export import coco_dataset, coco_results

from .conftest import ROOT

TEXT = (ROOT / "docs" / "using.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
OWN = [block for block in BLOCKS if not re.search(r"import (supervision|fiftyone)", block)]


@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # short examples leave files to the collector
def test_every_example_runs(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(OWN) == 5
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "examples" / "shapes" / "images" / "000001.jpg", "photo.jpg")
    Path("no-image.txt").write_text("no image")
    with Client(server.url) as client:
        result = client.segment("photo.jpg", score_threshold=0.06, max_instances=3)
        categories = client.model()["categories"]
    ids = {"photo.jpg": 1}
    Path("instances.json").write_text(json.dumps(coco_dataset([("photo.jpg", result)], ids, categories)))
    Path("results.json").write_text(json.dumps(coco_results([("photo.jpg", result)], ids)))
    for block in OWN:
        code = compile(block.replace("http://localhost:8000", server.url), "docs/using.md", "exec")
        exec(code, {"result": result})
    printed = capsys.readouterr().out
    assert "no-image.txt failed: 415" in printed
    assert "Average Precision" in printed
    assert (
        json.loads(Path("tasks.json").read_text())[0]["data"]["image"]
        == "https://images.example.com/photo.jpg"
    )
