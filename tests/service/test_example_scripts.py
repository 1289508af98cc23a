"""The scripts in examples/ run as their first lines say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
IMAGE = EXAMPLES / "shapes" / "images" / "000012.jpg"


@pytest.fixture(scope="module")
def bundled(start_for_module: Callable[..., Any]) -> str:
    """The address of a service with the model of the drawn scenes."""
    return str(start_for_module(model="shapes").wait_until_ready().url)


def run(name: str, *arguments: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_client(bundled: str, tmp_path: Path) -> None:
    printed = run("client.py", IMAGE, bundled, cwd=tmp_path)
    assert re.search(r"^heart +1\.000 706 pixels$", printed, re.MULTILINE)
    with Image.open(tmp_path / "drawn.png") as drawn, Image.open(IMAGE) as image:
        assert drawn.size == image.size


def test_without_server_finds_what_the_service_finds(bundled: str, tmp_path: Path) -> None:
    def found(printed: str) -> list[str]:
        return [line.split()[0] for line in printed.splitlines()]

    alone = run("without_server.py", IMAGE, "shapes", cwd=tmp_path)
    assert found(alone) == found(run("client.py", IMAGE, bundled, cwd=tmp_path))


def test_folder_to_coco(bundled: str, tmp_path: Path) -> None:
    printed = run("folder_to_coco.py", IMAGE.parent, "results.json", bundled, cwd=tmp_path)
    assert printed == "6 of 6 images are in results.json\n"
    records = json.loads((tmp_path / "results.json").read_text())
    assert {record["image_id"] for record in records} == {1, 4, 12, 31, 49, 59}


def test_each_is_named_in_the_readme() -> None:
    text = (EXAMPLES / "README.md").read_text()
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(re.findall(r"\]\((\w+\.py)\)", text))
