"""Error messages show one line of their cause, and the known name that a misspelt one resembles."""

from __future__ import annotations

import pytest

from model.messages import did_you_mean, first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError(""), "ValueError"),
        (EOFError(), "EOFError"),
    ],
)
def test_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_a_similar_name_is_suggested() -> None:
    assert did_you_mean("shape", ["auto", "shapes"]) == "did you mean shapes?"


def test_nothing_is_suggested_where_no_name_is_similar() -> None:
    assert did_you_mean("qqq", ["auto", "shapes"]) is None


def test_several_suggestions_are_alternatives() -> None:
    assert did_you_mean("catt", ["cat", "cats", "dog"], most=3) == "did you mean cat or cats?"


def test_suggestions_are_spelt_as_users_know_them() -> None:
    assert did_you_mean("prot", {"port": 0}, spell=str.upper) == "did you mean PORT?"
