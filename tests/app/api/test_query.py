"""The query string is understood completely or refused with what would have been right."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.query import SegmentParams, parse
from app.problems import InvalidParameter
from model.data import Category

CATEGORIES = (Category(1, "person"), Category(10, "traffic light"), Category(18, "dog"))


def test_no_query_gives_the_defaults() -> None:
    assert parse("", CATEGORIES) == SegmentParams()


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("score_threshold=0", SegmentParams(score_threshold=0)),
        ("score_threshold=1", SegmentParams(score_threshold=1)),
        ("score_threshold=.25", SegmentParams(score_threshold=0.25)),
        ("score_threshold=2.5e-1", SegmentParams(score_threshold=0.25)),
        ("max_instances=1", SegmentParams(max_instances=1)),
        ("max_instances=100", SegmentParams(max_instances=100)),
        ("categories=dog", SegmentParams(categories=frozenset({18}))),
        ("categories=18", SegmentParams(categories=frozenset({18}))),
        ("categories=Dog,1,dog,%20traffic+light", SegmentParams(categories=frozenset({1, 10, 18}))),
        ("masks=rle", SegmentParams(masks=True)),
        ("masks=polygon", SegmentParams(mask_format="polygon")),
        ("masks=png", SegmentParams(mask_format="png")),
        ("masks=none", SegmentParams(masks=False, mask_format="none")),
        ("masks=none&max_instances=3", SegmentParams(masks=False, max_instances=3, mask_format="none")),
    ],
)
def test_options_are_read(query: str, options: SegmentParams) -> None:
    assert parse(query, CATEGORIES) == options


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("score_threshold=1.01", "score_threshold must be a number from 0 to 1"),
        ("score_threshold=-0.1", "score_threshold must be"),
        ("score_threshold=nan", "score_threshold must be"),
        ("score_threshold=inf", "score_threshold must be"),
        ("score_threshold=1e999", "score_threshold must be"),
        ("score_threshold=0,5", "score_threshold must be"),
        ("score_threshold=%D9%A1", "score_threshold must be"),
        ("score_threshold=", "score_threshold is empty"),
        ("score_threshold", "score_threshold is empty"),
        ("score_threshold=0.1&score_threshold=0.1", '"score_threshold" is given more than once'),
        ("max_instances=0", "max_instances must be a whole number from 1 to 100"),
        ("max_instances=101", "max_instances must be"),
        ("max_instances=5.0", "max_instances must be"),
        ("max_instances=1_0", "max_instances must be"),
        ("max_instances=" + "9" * 5000, "max_instances must be"),
        ("categories=dgo", 'no category "dgo". Did you mean dog?'),
        ("categories=zebra", 'no category "zebra". There are: person, traffic light, dog.'),
        ("categories=2", 'no category "2"'),
        ("categories=dog,,person", "empty entry"),
        ("categories=", "categories is empty"),
        ("categories=dog&categories=person", "separate several values by commas"),
        ("masks=polygons", 'masks must be one of rle, polygon, png, none, not "polygons"'),
        ("masks=RLE", "masks must be one of rle, polygon"),
        ("treshold=0.5", 'no parameter "treshold". Did you mean score_threshold?'),
        ("score_treshold=0.5", "Did you mean score_threshold?"),
        ("qqq=1", "There are: score_threshold, max_instances, categories, masks."),
        ("qqq=", 'no parameter "qqq"'),
    ],
)
def test_what_is_not_understood_is_refused_with_what_would_be_right(query: str, says: str) -> None:
    with pytest.raises(InvalidParameter) as error:
        parse(query, CATEGORIES)
    assert says in error.value.detail


@given(st.text(max_size=60))
def test_no_query_whatsoever_is_an_error_of_the_service(query: str) -> None:
    with contextlib.suppress(InvalidParameter):
        assert isinstance(parse(query, CATEGORIES), SegmentParams)
