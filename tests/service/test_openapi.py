"""The service checked against its OpenAPI document, with requests that schemathesis makes from it."""

from __future__ import annotations

import io
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)


def never_internal(_: Any, response: schemathesis.Response, __: schemathesis.Case) -> None:
    """503 and 504 are answers of the contract; 500 is a fault of ours."""
    assert response.status_code != 500


CHECKS = [
    never_internal,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def image() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(file, "PNG")
    return file.getvalue()


# Bytes of any kind, and now and then an image, so that there are answers to be held against the document too.
for media_type in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, st.one_of(st.just(image()), st.binary(max_size=64)))


@pytest.mark.parametrize(
    "operation",
    ["POST /segment", "GET /healthz", "GET /livez", "GET /readyz", "GET /metrics", "GET /model"],
)
def test_every_answer_conforms_to_the_document(server: Any, operation: str) -> None:
    method, path = operation.split()
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    assert len(list(schema.get_all_operations())) == 6
    examples = 150 if path == "/segment" else 4

    @hypothesis.given(schema[path][method].as_strategy())
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def run(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    run()
