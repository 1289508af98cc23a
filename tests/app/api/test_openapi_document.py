"""What /openapi.json documents, and that its examples are true."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from app.api import schemas
from app.api.query import MaskFormat
from app.problems import Problem
from model.masks.rle import Rle
from tests.app.fakes import ask, post, serving


def test_every_problem_is_documented_for_its_route() -> None:
    document = ask("GET", "/openapi.json").json()
    documented = {
        example
        for path in document["paths"].values()
        for operation in path.values()
        for answer in operation["responses"].values()
        for example in answer["content"].get("application/problem+json", {}).get("examples", {})
    }
    kinds = {kind.slug for kind in [Problem, *Problem.__subclasses__()]}
    anywhere = {"unknown-path", "method-not-allowed", "header-too-slow", "header-too-large"}
    assert documented == kinds - anywhere


def test_openapi_documents_every_parameter_and_body_form_with_examples_that_work() -> None:
    async def run() -> None:
        async with serving() as (client, _):
            document = (await client.get("/openapi.json")).json()
            operation = document["paths"]["/segment"]["post"]
            assert [p["name"] for p in operation["parameters"]] == [
                "score_threshold",
                "max_instances",
                "categories",
                "masks",
                "keypoints",
                "tile",
                "overlap",
                "whole",
                "X-Request-Timeout-Ms",
            ]
            forms = operation["requestBody"]["content"]
            assert set(forms) == {
                "multipart/form-data",
                "application/octet-stream",
                "image/*",
                "application/json",
            }
            answer = await client.post("/segment", json=forms["application/json"]["example"])
            assert answer.status_code == 200
            assert {"/segment", "/model", "/healthz", "/livez", "/readyz", "/metrics"} == set(
                document["paths"]
            )

    asyncio.run(run())


def test_openapi_example_is_consistent() -> None:
    (instance,) = schemas.EXAMPLE["instances"]
    assert Rle.from_coco(instance["segmentation"]).area == instance["area"]
    assert list(instance["segmentation"]["size"]) == [
        schemas.EXAMPLE["image"]["height"],
        schemas.EXAMPLE["image"]["width"],
    ]
    assert schemas.EXAMPLE["image"] == {"width": 9, "height": 6}
    assert list(schemas.EXAMPLE) == list(post().json())
    assert list(instance) == list(post().json()["instances"][0])


@pytest.mark.parametrize("masks", get_args(MaskFormat))
def test_answers_match_their_types(masks: str) -> None:
    answer = post(f"?masks={masks}").json()
    assert TypeAdapter(schemas.Answer).validate_python(answer, extra="forbid")
    assert len(answer["instances"]) == 2


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("GET", "/model", schemas.ModelDocument),
        ("GET", "/readyz", schemas.StatusDocument),
        ("POST", "/segment", schemas.ProblemDocument),
    ],
)
def test_documents_match_their_types(method: str, path: str, kind: Any) -> None:
    assert TypeAdapter(kind).validate_python(ask(method, path).json(), extra="forbid")
