"""The journal gives back the answers that are still valid, whatever interrupted the command before."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from app.commands.journal import AnswerJournal, file_state
from maskserve import Result

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = {"score_threshold": "0.5"}


def answer(name: str) -> Result:
    """An answer without instances."""
    return Result.from_document(
        {"id": name, "model": "shapes", "image": {"width": 4, "height": 3}, "instances": []}
    )


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Two files; the journal does not look into them."""
    paths = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for path in paths:
        path.write_bytes(b"image")
    return paths


def write(out: Path, images: list[Path], added: list[Path]) -> Path:
    """A journal with answers for the added ones; its path."""
    with AnswerJournal(out, OPTIONS, names(images)) as journal:
        for path in added:
            journal.add(path, answer(path.name), file_state(path))
    return journal.path


def read(out: Path, images: list[Path]) -> list[tuple[Path, str]]:
    """Of each image that has an answer: the answer's id."""
    with AnswerJournal(out, OPTIONS, names(images)) as journal:
        return [(path, result.document["id"]) for path, result in journal.answers().items()]


def names(images: list[Path]) -> dict[Path, str]:
    return {path: str(path) for path in images}


def test_answers_come_back_in_the_order_of_the_files(tmp_path: Path, images: list[Path]) -> None:
    write(tmp_path / "out.json", images, images[::-1])
    assert read(tmp_path / "out.json", images) == [(path, path.name) for path in images]


def test_an_image_that_changed_after_it_was_read_has_no_answer(tmp_path: Path, images: list[Path]) -> None:
    first, second = images
    with AnswerJournal(tmp_path / "out.json", OPTIONS, names(images)) as journal:
        state = file_state(first)
        first.write_bytes(b"another image")
        journal.add(first, answer(first.name), state)
        journal.add(second, answer(second.name), file_state(second))
    assert read(tmp_path / "out.json", images) == [(second, second.name)]


def test_an_image_that_changed_has_no_answer_any_more(tmp_path: Path, images: list[Path]) -> None:
    write(tmp_path / "out.json", images, images)
    os.utime(images[0], ns=(1, 1))
    assert [path for path, _ in read(tmp_path / "out.json", images)] == images[1:]


def test_a_line_that_was_cut_off_costs_one_answer(tmp_path: Path, images: list[Path]) -> None:
    out = tmp_path / "out.json"
    journal = write(out, images, images[:1])
    journal.write_bytes(journal.read_bytes()[:-20])
    write(out, images, images[1:])
    assert [path for path, _ in read(out, images)] == images[1:]


def test_a_first_line_that_was_cut_off_is_written_again(tmp_path: Path, images: list[Path]) -> None:
    journal = write(tmp_path / "out.json", images, [])
    journal.write_bytes(journal.read_bytes()[:-5])
    write(tmp_path / "out.json", images, images)
    assert [path for path, _ in read(tmp_path / "out.json", images)] == images


def test_a_journal_of_other_options_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "out.json", [], [])
    with pytest.raises(ValueError, match="belongs to a command with other options"):
        AnswerJournal(tmp_path / "out.json", {"score_threshold": "0.9"}, {})


def test_a_journal_that_another_process_has_is_refused(tmp_path: Path) -> None:
    with (
        AnswerJournal(tmp_path / "out.json", OPTIONS, {}),
        pytest.raises(ValueError, match="is in use: another process"),
    ):
        AnswerJournal(tmp_path / "out.json", OPTIONS, {})


def test_results_of_other_options_are_not_touched(tmp_path: Path) -> None:
    with AnswerJournal(tmp_path / "out.jsonl", OPTIONS, {}, is_result=True) as journal:
        journal.finish()
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"out\.jsonl belongs to a command with other options"):
        AnswerJournal(tmp_path / "out.jsonl", {"masks": "none"}, {}, is_result=True)
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert not journal.path.exists()


def test_where_there_are_no_such_locks_it_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with AnswerJournal(tmp_path / "out.json", {}, {}) as journal:
        journal.add_categories([])
    assert (tmp_path / "out.json.partial").read_text().count("\n") == 2
