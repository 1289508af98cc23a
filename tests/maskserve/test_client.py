"""The client's patience, limits and answers, against transports that do as they are told."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from maskserve import AsyncClient, Client, DeadlineError, Result, ServiceError, UnreachableError
from maskserve.retry import CONNECTION_TRIES, TIME_LIMIT, Call, retry_after

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ANSWER = {
    "id": "0f",
    "model": "fake",
    "image": {"width": 9, "height": 6},
    "instances": [
        {
            "category_id": 18,
            "category": "dog",
            "score": 0.99,
            "bbox": [2.0, 1.0, 4.0, 3.0],
            "area": 12,
            "segmentation": {"size": [6, 9], "counts": "=3300000a0"},
        }
    ],
}
IMAGE = b"an image"


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def call(clock: Clock, deadline: float | None = 60.0, chance: float = 0.0) -> Call:
    return Call({"method": "POST", "url": "/segment"}, deadline, clock, lambda: chance)


def answer(status: int, **headers: str) -> httpx.Response:
    problem = {
        "type": "urn:x",
        "title": "Queue full",
        "status": status,
        "detail": "Too many.",
        "request_id": "7",
    }
    return httpx.Response(
        status, json=problem, headers={name.replace("_", "-"): v for name, v in headers.items()}
    )


def client(handle: Callable[[httpx.Request], httpx.Response], **settings: Any) -> Client:
    return Client("http://maskserve", transport=httpx.MockTransport(handle), **settings)


# Patience


@pytest.mark.parametrize("status", [429, 503])
def test_it_waits_for_as_long_as_the_service_says(status: int) -> None:
    assert call(Clock()).pause(answer(status, retry_after="7")) == 7
    assert (
        call(Clock(), chance=1.0).pause(answer(status, retry_after="8")) == 10
    )  # spread, not to come all at once


def test_where_the_service_names_no_time_pauses_double_up_to_a_bound() -> None:
    made = call(Clock())
    pauses = []
    for _ in range(6):
        made.request()
        pauses.append(made.pause(answer(503)))
    assert pauses == [0.5, 1, 2, 4, 8, 8]


def test_it_gives_up_at_once_where_the_next_try_would_come_too_late() -> None:
    with pytest.raises(ServiceError) as error:
        call(Clock(), 5).pause(answer(429, retry_after="6"))
    assert (error.value.status, error.value.detail, error.value.request_id) == (429, "Too many.", "7")


def test_the_service_is_told_how_much_time_is_left() -> None:
    clock = Clock()
    made = call(clock, 60)
    assert made.request()["headers"][TIME_LIMIT] == "60000"
    clock.now += 15.5
    request = made.request()
    assert request["headers"][TIME_LIMIT] == "44500"
    assert request["timeout"].read == 44.5
    clock.now += 45
    with pytest.raises(DeadlineError, match="within 60 seconds, tried 2 times"):
        made.request()


def test_without_a_deadline_nothing_is_said_of_time() -> None:
    request = call(Clock(), None).request()
    assert TIME_LIMIT not in request.get("headers", {})
    assert request["timeout"].read is None


@pytest.mark.parametrize("status", [400, 401, 413, 415, 422, 500, 502, 504])
def test_what_trying_again_does_not_mend_is_raised(status: int) -> None:
    with pytest.raises(ServiceError, match=f"{status} Queue full: Too many."):
        call(Clock()).pause(answer(status))


def test_a_gateways_page_is_an_error_too() -> None:
    with pytest.raises(ServiceError, match="502 Bad Gateway: <html>"):
        call(Clock()).pause(httpx.Response(502, text="<html>"))


def test_a_service_that_cannot_be_reached_is_tried_a_few_times() -> None:
    made = call(Clock())
    for _ in range(CONNECTION_TRIES - 1):
        made.request()
        made.pause(httpx.ConnectError("refused"))
    made.request()
    with pytest.raises(UnreachableError, match="ConnectError: refused"):
        made.pause(httpx.ConnectError("refused"))


@pytest.mark.parametrize(("value", "seconds"), [("3", 3.0), ("", None), ("soon", None), ("-1", None)])
def test_retry_after_is_a_number_or_nothing(value: str, seconds: float | None) -> None:
    assert retry_after(value) == seconds


def test_retry_after_may_be_a_date() -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after(when) == pytest.approx(29.5, abs=1.5)
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


# Requests and answers


def test_what_is_asked_reaches_the_service() -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=ANSWER)

    with client(handle, api_key="secret") as asked:
        asked.segment(IMAGE, score_threshold=0.7, categories=["dog", 3], masks="polygon", max_instances=5)
    (request,) = seen
    assert dict(request.url.params) == {
        "score_threshold": "0.7",
        "categories": "dog,3",
        "masks": "polygon",
        "max_instances": "5",
    }
    assert request.content == IMAGE
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["accept"] == "application/json"


def test_images_come_as_paths_bytes_pixels_and_pil_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    seen: list[bytes] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.content)
        return httpx.Response(200, json=ANSWER)

    with client(handle) as asked:
        for image in (path, str(path), path.read_bytes(), pixels, Image.fromarray(pixels)):
            asked.segment(image)
        with pytest.raises(TypeError, match="float64"):
            asked.segment(pixels / 255.0)
    assert len(seen) == 5
    for content in seen:
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)


def test_the_result_is_typed() -> None:
    with client(
        lambda _: httpx.Response(200, json=ANSWER, headers={"server-timing": "queue;dur=3.5"})
    ) as asked:
        result = asked.segment(IMAGE)
    (dog,) = result.instances
    assert (result.id, result.model, result.width, result.height) == ("0f", "fake", 9, 6)
    assert (dog.category_id, dog.category, dog.score, dog.area) == (18, "dog", 0.99, 12)
    assert dog.bbox == (2, 1, 4, 3)
    assert dog.box == (2, 1, 6, 4)
    assert dog.mask.shape == (6, 9)
    assert dog.mask.sum() == 12
    assert result.timings == {"queue": 3.5}
    assert result.document == ANSWER


def test_it_retries_until_the_service_has_room() -> None:
    answers = [answer(429, retry_after="0"), answer(503, retry_after="0"), httpx.Response(200, json=ANSWER)]
    with client(lambda _: answers.pop(0)) as asked:
        assert len(asked.segment(IMAGE).instances) == 1
    assert not answers


def test_it_never_has_more_requests_open_than_it_may() -> None:
    lock, together = threading.Lock(), threading.Barrier(3)
    open_now, most = 0, 0

    def handle(_: httpx.Request) -> httpx.Response:
        nonlocal open_now, most
        with lock:
            open_now += 1
            most = max(most, open_now)
        together.wait(20)
        with lock:
            open_now -= 1
        return httpx.Response(200, json=ANSWER)

    with client(handle, concurrency=3) as asked:
        assert len(list(asked.segment_many([IMAGE] * 12))) == 12
    assert most == 3


def test_many_images_come_in_order_each_with_its_result_or_error() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        number = int(request.content)
        return httpx.Response(200, json={**ANSWER, "id": str(number)}) if number % 5 else answer(422)

    with client(handle) as asked:
        outcomes = list(asked.segment_many([b"%d" % number for number in range(40)] + ["/does/not/exist"]))
    assert isinstance(outcomes.pop(), FileNotFoundError)
    assert [outcome.id if isinstance(outcome, Result) else outcome.status for outcome in outcomes] == [
        str(number) if number % 5 else 422 for number in range(40)
    ]


def test_images_are_taken_only_a_little_ahead() -> None:
    taken = 0

    def images() -> Any:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield IMAGE

    with client(lambda _: httpx.Response(200, json=ANSWER), concurrency=2) as asked:
        outcomes = asked.segment_many(images())
        next(outcomes)
        assert taken <= 4
        outcomes.close()


def test_the_asynchronous_client_does_the_same() -> None:
    answers = [answer(429, retry_after="0")]

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/model":
            return httpx.Response(200, json={"name": "fake"})
        if request.content == b"bad":
            return answer(415)
        return answers.pop() if answers else httpx.Response(200, json=ANSWER)

    async def run() -> None:
        transport = httpx.MockTransport(handle)
        async with AsyncClient("http://maskserve", transport=transport, concurrency=2) as asked:
            assert len((await asked.segment(IMAGE)).instances) == 1
            assert (await asked.model())["name"] == "fake"
            assert await asked.draw(IMAGE)
            images = [IMAGE, b"bad", *[IMAGE] * 8]
            outcomes = [outcome async for outcome in asked.segment_many(images)]
        assert isinstance(outcomes[1], ServiceError)
        assert sum(isinstance(outcome, Result) for outcome in outcomes) == 9

    asyncio.run(run())


def test_the_client_does_without_torch_and_the_service() -> None:
    check = """
import sys, maskserve.client, maskserve.export, maskserve.results
sys.exit(" ".join({"torch", "fastapi", "app", "model"} & set(sys.modules)) or None)
"""
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_package_alone_imports_no_library() -> None:
    check = "import sys, maskserve; sys.exit(' '.join({'httpx', 'numpy', 'PIL'} & set(sys.modules)) or None)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
