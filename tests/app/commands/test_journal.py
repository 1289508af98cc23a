"""The journal gives back the answers that are still valid, whatever interrupted the command before."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from app.commands.journal import AnswerJournal
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


def test_answers_come_back_in_the_order_of_the_files(tmp_path: Path, images: list[Path]) -> None:
    journal = AnswerJournal(tmp_path / "out.json", OPTIONS)
    for path in reversed(images):
        journal.add(path, answer(path.name))
    answers = AnswerJournal(tmp_path / "out.json", OPTIONS).read(images)
    assert [(path, result.document["id"]) for path, result in answers.items()] == [
        (path, path.name) for path in images
    ]


def test_an_image_that_changed_has_no_answer_any_more(tmp_path: Path, images: list[Path]) -> None:
    journal = AnswerJournal(tmp_path / "out.json", OPTIONS)
    for path in images:
        journal.add(path, answer(path.name))
    os.utime(images[0], ns=(1, 1))
    assert list(journal.read(images)) == images[1:]


def test_a_line_that_was_cut_off_costs_one_answer(tmp_path: Path, images: list[Path]) -> None:
    journal = AnswerJournal(tmp_path / "out.json", OPTIONS)
    journal.add(images[0], answer("a.jpg"))
    journal.path.write_bytes(journal.path.read_bytes()[:-20])
    journal.add(images[1], answer("b.jpg"))
    assert list(journal.read(images)) == images[1:]


def test_a_journal_of_other_options_is_refused(tmp_path: Path) -> None:
    AnswerJournal(tmp_path / "out.json", OPTIONS)
    with pytest.raises(ValueError, match="belongs to a command with other options"):
        AnswerJournal(tmp_path / "out.json", {"score_threshold": "0.9"})
