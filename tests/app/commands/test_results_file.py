"""Files for CVAT and Label Studio are refused early where answers have nothing that they can hold, and only there."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from app.commands.merge import merge
from app.commands.results_file import ResultsFile
from app.commands.segment import Output, run
from app.commands.shard import Shard
from maskserve import AnswerError, Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

CATEGORIES = [{"id": 1, "name": "person", "keypoints": ["head"], "skeleton": []}]
BOX = {"category_id": 1, "category": "person", "score": 0.9, "bbox": [0, 0, 2, 2], "area": 4}
POINTED = {**BOX, "keypoints": [1, 1, 1], "keypoint_scores": [3.0]}


class Answering:
    """Stands in for an engine: each image has the instance, but those called empty; files with text are damaged."""

    def __init__(self, instance: dict[str, Any]) -> None:
        self._instance = instance
        self.asked = 0

    def segment_many(self, images: Iterable[Path], **_: Any) -> Iterator[Result | AnswerError]:
        for path in images:
            self.asked += 1
            if path.read_text():
                yield AnswerError("no image")
                continue
            found = [] if path.stem == "empty" else [self._instance]
            size = {"width": 4, "height": 3}
            yield Result.from_document({"id": path.name, "model": "m", "image": size, "instances": found})

    def model(self) -> dict[str, Any]:
        return {"categories": CATEGORIES}


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    files = [tmp_path / name for name in ("empty.png", "a.png", "b.png", "c.png")]
    for file in files:
        file.touch()
    return files


def segment(
    photos: list[Path],
    out: Path,
    form: str,
    instance: dict[str, Any],
    *,
    shard: Shard | None = None,
    **query: str,
) -> tuple[int, int]:
    """The exit code of `maskserve segment --format`, and how many images were segmented."""
    segmenter = Answering(instance)
    output = Output(ResultsFile(out, form), None, as_json=False, shard=shard)
    return run(photos, query, lambda: nullcontext(segmenter), output), segmenter.asked


@pytest.mark.parametrize("form", ["cvat", "label-studio"])
def test_answers_with_neither_end_the_command_at_the_first_instance(
    photos: list[Path], tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert segment(photos, out, form, BOX, keypoints="none") == (2, 2)
    assert f"--format {form} needs masks or keypoints, and the model's" in capsys.readouterr().err
    assert not out.exists()
    # What was answered is kept for a format that it fits.
    assert segment(photos, out, "coco", BOX, keypoints="none") == (0, 3)


def test_a_refused_command_without_answers_leaves_no_journal_behind(
    photos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "results"
    assert segment(photos[1:], out, "cvat", BOX, masks="none") == (2, 1)
    assert segment(photos[1:], out, "cvat", POINTED) == (0, 3)


def test_answers_of_an_earlier_command_are_refused_too(photos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "results"
    photos[-1].write_text("broken")
    assert segment(photos, out, "coco", BOX) == (1, 4)
    out.unlink()
    assert segment(photos, out, "cvat", BOX) == (2, 1)
    assert not out.exists()


@pytest.mark.parametrize("form", ["cvat", "label-studio"])
def test_keypoints_alone_are_written(photos: list[Path], tmp_path: Path, form: str) -> None:
    out = tmp_path / "results"
    assert segment(photos, out, form, POINTED, masks="none") == (0, 4)
    assert "head" in out.read_text()


@pytest.mark.parametrize("form", ["cvat", "label-studio"])
def test_merge_refuses_shards_with_neither(
    photos: list[Path], tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert segment(photos, out, "coco", BOX, shard=Shard(1, 1)) == (0, 4)
    assert merge(ResultsFile(out, form)) == 2
    assert "needs masks or keypoints, and the model's" in capsys.readouterr().err
    assert not out.exists()
    assert merge(ResultsFile(out)) == 0


def test_merge_writes_shards_of_keypoints(photos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "results"
    assert segment(photos, out, "coco", POINTED, shard=Shard(1, 1), masks="none") == (0, 4)
    assert merge(ResultsFile(out, "cvat")) == 0
    assert "head" in out.read_text()
