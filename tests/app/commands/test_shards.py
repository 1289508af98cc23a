"""Shards: each image is in one, a shard goes on where it was killed, and merged they are what one command writes."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from app.commands.image_files import expand_folders
from app.commands.merge import merge
from app.commands.results_file import ResultsFile
from app.commands.shard import Shard, find_shards
from tests.app.commands.shard_worker import segment

ROOT = Path(__file__).parents[3]
COUNT = 3
DAMAGED = "more/damaged.jpg"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that the stand-in for an engine reads, and a damaged one."""
    for number in range(150):
        file = tmp_path / "photos" / ("more" if number % 3 else "") / f"photo.{number}.jpg"
        file.parent.mkdir(exist_ok=True, parents=True)
        # The last ones have no instances.
        file.write_text(str(number) * 40)
    (tmp_path / "photos" / DAMAGED).write_text("damaged")
    return tmp_path / "photos"


def lines(file: Path) -> list[dict[str, object]]:
    """Those of a shard that are whole."""
    found = []
    for line in file.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def test_a_shard_depends_on_the_name_alone_and_all_have_about_as_much() -> None:
    shards = [Shard(number, 16) for number in range(1, 17)]
    sizes: Counter[Shard] = Counter()
    for number in range(3200):
        [shard] = [shard for shard in shards if shard.has(f"photos/{number}.jpg")]
        sizes[shard] += 1
    assert min(sizes.values()) > 150
    assert max(sizes.values()) < 250
    # Of another release too, or a job that was begun before an upgrade would leave images out.
    assert [next(s.number for s in shards if s.has(name)) for name in ("a.jpg", "c/d.jpg")] == [11, 14]


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "-1/3", "a/b", "1/3/5", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="from 1/16 to 16/16"):
        Shard.parse(text)


def test_shards_that_are_killed_at_random_moments_hold_every_image_once_and_merge_into_the_whole(
    folder: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole.json", tmp_path / "out.json"
    assert segment(folder, whole, None) == 1
    seed = random.randrange(1 << 30)
    # In a process of its own, because it forks.
    worker = [sys.executable, "-m", "tests.app.commands.shard_worker", folder, out, COUNT, seed]
    made = subprocess.run(
        list(map(str, worker)), cwd=ROOT, capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert int(made.stdout) >= COUNT, f"nothing was killed in the middle, with the seed {seed}"
    found = find_shards(out)
    assert len(found) == COUNT
    answered = [entry["image"] for file in found.values() for entry in lines(file) if "answer" in entry]
    assert len(answered) == 150
    assert len(set(answered)) == 150
    assert not list(tmp_path.glob("*.partial.*"))
    assert merge(ResultsFile(out)) == 1  # one is damaged
    assert out.read_bytes() == whole.read_bytes()


def test_a_complete_shard_is_continued_when_there_are_more_images(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert segment(folder, out, Shard(1, 1)) == 1
    [file] = find_shards(out).values()
    before = file.read_bytes()
    (folder / DAMAGED).write_text("5")
    assert segment(folder, out, Shard(1, 1)) == 0
    assert file.read_bytes().startswith(before)
    assert merge(ResultsFile(out)) == 0
    assert sum(record["file_name"] == DAMAGED for record in json.loads(out.read_text())) == 1


def test_what_does_not_belong_together_is_not_merged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"

    def complaint() -> str:
        assert merge(ResultsFile(out)) == 2
        assert not out.exists()
        return capsys.readouterr().err

    assert "no shard of" in complaint()
    for number in (1, 3):
        segment(folder, out, Shard(number, 3))
    assert "1 of 3 shards" in complaint()
    copy = Shard(2, 3).file(out)
    shutil.copy(Shard(1, 3).file(out), copy)
    assert "has the answers of shard 1/3" in complaint()
    copy.write_text(copy.read_text().replace('"1/3"', '"2/3"'))
    assert "does not belong to this shard" in complaint()
    copy.unlink()
    segment(folder, out, Shard(2, 3))
    changed = copy.read_text()
    copy.write_text(changed.replace('"masks":"none"', '"masks":"rle"'))
    assert "with other options" in complaint()
    copy.write_text(changed.replace('{"categories":[{"id":1', '{"categories":[{"id":2'))
    assert "with another model" in complaint()
    copy.write_text(changed)
    segment(folder, out, Shard(1, 2))
    assert "in 2 and in 3 parts" in complaint()


def test_a_model_that_has_answered_nothing_is_not_noted(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    for file in folder.rglob("photo.*"):
        file.write_text("damaged")
    assert segment(folder, out, Shard(1, 1)) == 1
    (folder / DAMAGED).write_text("5")
    assert segment(folder, out, Shard(1, 1), "2" * 64) == 1
    noted = [entry["model"] for entry in lines(Shard(1, 1).file(out)) if "model" in entry]
    assert noted == [{"name": "quick", "sha256": "2" * 64}]


def test_answers_of_a_model_before_and_after_it_was_trained_again_are_not_mixed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, trained_again = tmp_path / "out.json", "2" * 64
    for shard in (Shard(1, 1), None):
        assert segment(folder, out, shard) == 1
        capsys.readouterr()
        # The damaged image is not answered yet.
        assert segment(folder, out, shard, trained_again) == 2
        assert f"another model, quick ({'1' * 16}…), than the one" in capsys.readouterr().err
        assert out.exists() if shard is None else shard.file(out).exists()
        assert segment(folder, out, shard) == 1
    (folder / DAMAGED).write_text("5")
    for shard in (Shard(1, 1), None):
        assert segment(folder, out, shard) == 0
        # Nothing is left to be answered.
    assert segment(folder, out, Shard(1, 1), trained_again) == 0
    Shard(1, 1).file(out).unlink()
    segment(folder, out, Shard(1, 2))
    segment(folder, out, Shard(2, 2), trained_again)
    capsys.readouterr()
    assert merge(ResultsFile(out)) == 2
    assert f"another model, quick ({'2' * 16}…), than the shards" in capsys.readouterr().err


@pytest.mark.parametrize("shard", [Shard(1, 2), None])
def test_images_of_the_same_name_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shard: Shard | None
) -> None:
    (tmp_path / "photos.json.d").mkdir()
    shutil.copytree(folder, tmp_path / "other")
    from contextlib import nullcontext

    from app.commands.segment import Output, run
    from tests.app.commands.shard_worker import QuickSegmenter

    output = Output(ResultsFile(tmp_path / "out.json"), None, as_json=False, shard=shard)
    assert run([folder, tmp_path / "other"], {}, lambda: nullcontext(QuickSegmenter()), output) == 2
    assert "would have the same name in the results" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are Unicode")
def test_a_name_that_is_not_utf_8_ends_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nameless = folder / os.fsdecode(b"caf\xe9.jpg")
    nameless.write_text("5")
    assert expand_folders([nameless]) == ({}, {nameless: "its name is not UTF-8; rename it"})
    segment(folder, tmp_path / "out.json", None)
    said = capsys.readouterr().err
    assert "its name is not UTF-8; rename it" in said
    assert json.loads((tmp_path / "out.json").read_text())


def test_overlays_below_the_images_are_not_segmented(folder: Path) -> None:
    whole, _ = expand_folders([folder])
    found, _ = expand_folders([folder], drawn=folder / "more")
    assert 0 < len(found) < len(whole)
    assert not any(path.is_relative_to(folder / "more") for path in found)
    # The folder that is asked for, and one that it lies in, are looked through in any case.
    assert len(expand_folders([folder], drawn=folder.parent)[0]) == len(whole)
    assert expand_folders([folder / "more"], drawn=folder / "more")[0]


@pytest.mark.parametrize("shard", [Shard(1, 1), None])
def test_an_image_that_is_written_while_it_is_segmented_is_tried_again(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shard: Shard | None,
) -> None:
    image = folder / "more" / "photo.1.jpg"
    read = Path.read_text

    def read_and_write(path: Path, *more: str) -> str:
        text = read(path, *more)
        if path == image and text == "1" * 40:
            path.write_text("77")
        return text

    (folder / DAMAGED).unlink()
    monkeypatch.setattr(Path, "read_text", read_and_write)
    out = tmp_path / "out.json"
    assert segment(folder, out, shard) == 1
    assert f"{image}: it was written while it was segmented" in capsys.readouterr().err
    assert segment(folder, out, shard) == 0
    if shard is not None:
        merge(ResultsFile(out))
    scores = [record["score"] for record in json.loads(out.read_bytes()) if record["score"] == 0.7]
    assert scores.count(0.7) >= 2
