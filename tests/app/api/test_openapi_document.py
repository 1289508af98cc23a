"""What /openapi.json documents, and that its examples are true."""

from __future__ import annotations

import asyncio

from app.problems import Problem
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


def test_openapi_example_answer_is_a_true_one() -> None:
    from app.api.schemas import EXAMPLE
    from model.masks.rle import Rle

    (instance,) = EXAMPLE["instances"]
    assert Rle.from_coco(instance["segmentation"]).area == instance["area"]
    assert instance["segmentation"]["size"] == [EXAMPLE["image"]["height"], EXAMPLE["image"]["width"]]
    assert list(EXAMPLE) == list(post().json())
    assert list(instance) == list(post().json()["instances"][0])
