"""Every problem that a client can get, by status, slug and detail."""

from __future__ import annotations

from typing import Any

import pytest

from tests.app.fakes import PHOTO, FakeEngine, ask, fail, picture, png_of

PROBLEMS = [
    pytest.param("POST", "/segment", {}, 400, "malformed-request", "no image", id="empty body"),
    pytest.param(
        "POST", "/segment", {"json": {"file": ""}}, 400, "malformed-request", "image", id="JSON key"
    ),
    pytest.param(
        "POST", "/segment", {"files": {"photo": PHOTO}}, 400, "malformed-request", "photo", id="part name"
    ),
    pytest.param(
        "POST", "/segment", {"data": {"image": "x"}}, 400, "malformed-request", "HTML form", id="form"
    ),
    pytest.param("GET", "/nothing", {}, 404, "unknown-path", "/nothing", id="unknown path"),
    pytest.param("POST", "/segmnt", {}, 404, "unknown-path", "/segment", id="misspelt path"),
    pytest.param("POST", "/segment/", {}, 404, "unknown-path", "/segment", id="slash at the end"),
    pytest.param("GET", "/page/nothing.js", {}, 404, "unknown-path", "/page/nothing.js", id="unknown file"),
    pytest.param("GET", "/segment", {}, 405, "method-not-allowed", "POST", id="GET of segment"),
    pytest.param("HEAD", "/segment", {}, 405, None, None, id="HEAD of segment"),
    pytest.param("DELETE", "/model", {}, 405, "method-not-allowed", "GET", id="DELETE of model"),
    pytest.param("POST", "/segment", {"content": b"x" * 5000}, 413, "body-too-large", "4096", id="body"),
    pytest.param(
        "POST", "/segment", {"content": png_of(500, 500)}, 413, "image-too-large", "250000", id="pixels"
    ),
    pytest.param(
        "POST", "/segment", {"content": png_of(2**31, 1)}, 413, "image-too-large", "", id="absurd size"
    ),
    pytest.param("POST", "/segment", {"content": b"hello"}, 415, "unsupported-format", "JPEG", id="text"),
    pytest.param("POST", "/segment", {"content": b"%PDF-1.7\n"}, 415, "unsupported-format", "JPEG", id="PDF"),
    pytest.param("POST", "/segment", {"content": PHOTO[:-45]}, 422, "undecodable-image", "", id="cut short"),
    pytest.param(
        "POST", "/segment", {"content": PHOTO[:20]}, 422, "undecodable-image", "", id="cut in the header"
    ),
    pytest.param(
        "POST",
        "/segment?masks=gif",
        {"content": PHOTO},
        422,
        "invalid-parameter",
        "rle, polygon, png, none",
        id="parameter",
    ),
    pytest.param(
        "POST",
        "/segment?thresold=1",
        {"content": PHOTO},
        422,
        "invalid-parameter",
        "score_threshold",
        id="unknown",
    ),
]


@pytest.mark.parametrize(("method", "url", "request_", "status", "slug", "says"), PROBLEMS)
def test_problem(
    *, method: str, url: str, request_: dict[str, Any], status: int, slug: str | None, says: str | None
) -> None:
    limits = {"max_upload_bytes": 4096, "max_image_pixels": 10_000}
    response = ask(method, url, settings=limits, **request_)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    if slug is None:
        assert response.content == b""
        return
    document = response.json()
    assert document["type"] == f"urn:maskserve:problem:{slug}"
    assert document["status"] == status
    assert document["title"]
    assert says in document["detail"]
    assert document["request_id"] == response.headers["x-request-id"]
    assert "total;dur=" in response.headers["server-timing"]
    if status == 405:
        assert says in response.headers["allow"]


def test_a_jpeg_of_more_pixels_a_side_than_it_may_have_is_refused_before_the_device_runs() -> None:
    engine, long = FakeEngine(), picture("PNG", 65_535, 20)
    response = ask("POST", "/segment", engine, content=long, headers={"accept": "image/jpeg"})
    assert (response.status_code, response.json()["type"]) == (413, "urn:maskserve:problem:image-too-large")
    assert "65535 × 20 pixels, and a JPEG has at most 65500 a side; ask for image/png" in response.text
    assert engine.images == 0
    response = ask("POST", "/segment", engine, content=long, headers={"accept": "image/png"})
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")


def test_an_internal_error_is_logged_under_its_id_and_leaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    response = ask("POST", "/segment", FakeEngine(fail), content=PHOTO, headers={"x-request-id": "the-id"})
    assert response.status_code == 500
    assert response.json()["type"] == "urn:maskserve:problem:internal"
    assert "secret" not in response.text
    records = [record for record in caplog.records if "the-id" in record.getMessage()]
    assert any("the secret inside" in record.getMessage() for record in records)


def test_an_unexpected_error_is_a_problem_too(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.segment.choose_media_type", lambda _: fail())
    response = ask("POST", "/segment", content=PHOTO, headers={"x-request-id": "the-id"})
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == "the-id"
    assert "secret" not in response.text
    (record,) = [record for record in caplog.records if record.exc_info and "the-id" in record.getMessage()]
    assert str(record.exc_info[1]) == "the secret inside"
