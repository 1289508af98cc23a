"""Parameters of POST /segment are read completely, or refused with what is accepted."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from app.api.query import (
    MAX_CACHED_QUERY_BYTES,
    MAX_TIMEOUT_MS,
    TIMEOUT_HEADER,
    SegmentParams,
    SegmentQuery,
    parse,
    read_parameters,
)
from app.problems import InvalidParameter
from model.data import Category
from model.network.conventions import Conventions
from model.zoo.model_file import describe
from tests.app.fakes import PHOTO, FakeEngine, serving

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx

CATEGORIES = (Category(1, "person"), Category(10, "traffic light"), Category(18, "dog"))


class RecordingEngine(FakeEngine):
    """A fake engine that remembers what it was asked for."""

    def __init__(self, detections: int = 100) -> None:
        super().__init__()
        architecture = dataclasses.replace(
            self.model.architecture, classes=4, conventions=Conventions(detections=detections)
        )
        self.model = describe("recording", architecture, CATEGORIES)
        self.asked: list[Any] = []

    def segment(self, images: Sequence[Any], options: Sequence[Any]) -> list[Any]:
        self.asked += options
        return super().segment(images, options)


def ask(query: str, detections: int = 100) -> tuple[httpx.Response, list[Any]]:
    """The answer to a query, and what the engine was asked for."""

    async def run() -> tuple[httpx.Response, list[Any]]:
        engine = RecordingEngine(detections)
        async with serving(engine) as (client, _):
            return await client.post(f"/segment?{query}", content=PHOTO), engine.asked

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", SegmentParams()),
        ("score_threshold=0", SegmentParams(score_threshold=0)),
        ("score_threshold=1", SegmentParams(score_threshold=1)),
        ("score_threshold=.25", SegmentParams(score_threshold=0.25)),
        ("score_threshold=2.5e-1", SegmentParams(score_threshold=0.25)),
        ("max_instances=1", SegmentParams(max_instances=1)),
        ("max_instances=100", SegmentParams(max_instances=100)),
        ("categories=dog", SegmentParams(categories=frozenset({18}))),
        ("categories=18", SegmentParams(categories=frozenset({18}))),
        ("categories=Dog,1,dog,%20traffic+light", SegmentParams(categories=frozenset({1, 10, 18}))),
        ("categories=dog&categories=1,traffic light", SegmentParams(categories=frozenset({1, 10, 18}))),
        ("masks=rle", SegmentParams(masks=True)),
        ("masks=polygon", SegmentParams(mask_format="polygon")),
        ("masks=png", SegmentParams(mask_format="png")),
        ("masks=none", SegmentParams(masks=False, mask_format="none")),
        ("masks=none&max_instances=3", SegmentParams(masks=False, max_instances=3, mask_format="none")),
    ],
)
def test_options_are_read(query: str, options: SegmentParams) -> None:
    response, asked = ask(query)
    assert response.status_code == 200
    assert asked == [options]


@pytest.mark.parametrize(("query", "side"), [({}, 160), ({"overlap": 0.1}, 80), ({"overlap": 0.4}, 320)])
def test_tiles_overlap_as_the_models_objects_need_unless_told_otherwise(
    query: dict[str, Any], side: int
) -> None:
    layout = parse({"tile": 800, **query}, FakeEngine().model).cut(800, 1601 - side, FakeEngine().model)
    assert layout is not None
    assert [left for left, *_ in layout.tiles.tolist()] == [0, (801 - side) // 2, 801 - side]


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
        (
            "max_instances=101",
            "max_instances must be a whole number from 1 to 100, the most that the model finds",
        ),
        ("max_instances=5.0", "max_instances must be"),
        ("max_instances=1_0", "max_instances must be"),
        ("max_instances=" + "9" * 5000, "max_instances must be"),
        ("categories=dgo", 'no category "dgo". Did you mean dog?'),
        ("categories=zebra", 'no category "zebra". There are: person, traffic light, dog.'),
        ("categories=2", 'no category "2"'),
        ("categories=dog,,person", "empty entry"),
        ("categories=", "categories is empty"),
        ("categories=dog&categories=", "categories is empty"),
        ("masks=polygons", 'masks must be one of rle, polygon, png, none, not "polygons"'),
        ("masks=RLE", "masks must be one of rle, polygon"),
        ("treshold=0.5", 'no parameter "treshold". Did you mean score_threshold?'),
        ("score_treshold=0.5", "Did you mean score_threshold?"),
        (
            "qqq=1",
            "There are: score_threshold, max_instances, categories, masks, keypoints, tile, overlap, whole.",
        ),
        ("qqq=", 'no parameter "qqq"'),
        ("qqq=1&qqq=2", 'no parameter "qqq"'),
        ("query=1", 'no parameter "query"'),
        ("header=1", 'no parameter "header"'),
    ],
)
def test_an_invalid_parameter_is_refused_with_what_is_accepted(query: str, says: str) -> None:
    response, asked = ask(query)
    assert (response.status_code, asked) == (422, [])
    assert response.json()["type"] == "urn:maskserve:problem:invalid-parameter"
    assert says in response.json()["detail"]


@pytest.mark.parametrize("detections", [20, 300])
def test_a_model_of_more_or_fewer_detections_takes_as_many_instances(detections: int) -> None:
    assert ask(f"max_instances={detections}", detections)[1] == [SegmentParams(max_instances=detections)]
    for refused in (detections + 1, 5000):
        response, asked = ask(f"max_instances={refused}", detections)
        assert (response.status_code, asked) == (422, [])
        assert response.json()["detail"] == (
            f"max_instances must be a whole number from 1 to {detections}, the most that the model finds, "
            f'not "{refused}".'
        )


def test_three_wrong_parameters_are_named_at_once() -> None:
    detail = ask("score_threshold=2&max_instances=0&maks=rle")[0].json()["detail"]
    assert detail.count("must be") == 2
    assert 'no parameter "maks". Did you mean masks?' in detail


@given(
    st.dictionaries(
        st.sampled_from(["score_threshold", "max_instances", "masks", "other"]) | st.text(max_size=5),
        st.text(max_size=10) | st.sampled_from(["0.5", "7", "png"]),
    ),
    st.lists(st.text(max_size=10)),
)
def test_no_parameters_cause_an_internal_error(given: dict[str, Any], names: list[str]) -> None:
    with contextlib.suppress(InvalidParameter):
        assert isinstance(parse({**given, "categories": names}, RecordingEngine().model), SegmentParams)


def test_parameters_that_come_again_are_read_as_at_the_first_time() -> None:
    def read(query: str, *timeouts: bytes) -> Any:
        headers = [(TIMEOUT_HEADER.lower().encode(), value) for value in timeouts]
        scope = {"type": "http", "query_string": query.encode(), "headers": headers}
        try:
            return read_parameters(Request(scope), 100)
        except InvalidParameter as problem:
            return problem.detail

    long = "categories=" + "dog," * MAX_CACHED_QUERY_BYTES
    for _ in range(2):
        assert read("") == (SegmentQuery(), MAX_TIMEOUT_MS)
        assert read("masks=none", b"20", b"x") == (SegmentQuery(masks="none"), 20)
        assert read("masks=png") == (SegmentQuery(masks="png"), MAX_TIMEOUT_MS)
        assert read(long) == (SegmentQuery(categories=[long.partition("=")[2]]), MAX_TIMEOUT_MS)
        assert read("masks=all").startswith("masks must be one of rle")
        assert read("masks=rle&masks=png").startswith('"masks" is given more than once')
        # As before, with what is wrong in a value named first.
        both = read("masks=all&masks=all&size=1", b"soon")
        assert [both.index(name) for name in ("masks must", '"size"', TIMEOUT_HEADER)] == sorted(
            both.index(name) for name in ("masks must", '"size"', TIMEOUT_HEADER)
        )
