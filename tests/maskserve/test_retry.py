"""When a call is tried again, after how long, and when it ends."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from maskserve import Client, DeadlineError, ServiceError, UnreachableError
from maskserve.client import TIME_LIMIT
from maskserve.retry import CONNECTION_TRIES, is_temporary, pause, retry_after

PROBLEM = {"type": "urn:x", "title": "Queue full", "detail": "Too many.", "request_id": "7"}
RESULT = {"id": "0f", "model": "fake", "image": {"width": 9, "height": 6}, "instances": []}


def shed(seconds: float | None = None, status: int = 429) -> ServiceError:
    return ServiceError(status, PROBLEM, seconds)


def client(
    *answers: httpx.Response | Exception, deadline: float | None = 60.0
) -> tuple[Client, list[httpx.Request]]:
    """A client that gets these answers, the last one for ever; and the requests that it makes."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        answer = answers[min(len(seen), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Client("http://maskserve", deadline=deadline, transport=httpx.MockTransport(handle)), seen


def busy(seconds: str, status: int = 429) -> httpx.Response:
    return httpx.Response(status, json=PROBLEM, headers={"retry-after": seconds})


# How long


def test_it_waits_for_as_long_as_the_service_says() -> None:
    assert pause(shed(7), 1, lambda: 0.0) == 7
    assert pause(shed(7), 9, lambda: 0.0) == 7


def test_a_pause_is_spread_so_that_clients_do_not_come_back_together() -> None:
    assert pause(shed(8), 1, lambda: 1.0) == 10


def test_where_the_service_names_no_time_pauses_double_up_to_a_limit() -> None:
    for error in (shed(), UnreachableError()):
        assert [pause(error, tries, lambda: 0.0) for tries in range(1, 7)] == [0.5, 1, 2, 4, 8, 8]


def test_a_service_that_says_zero_is_not_asked_in_a_busy_loop() -> None:
    assert [pause(shed(0), tries, lambda: 0.0) for tries in range(1, 6)] == [0.1, 0.2, 0.4, 0.8, 1]
    assert pause(shed(0), 10_000, lambda: 0.0) == 1


@pytest.mark.parametrize(
    ("value", "seconds"), [("3", 3.0), (" 3 ", 3.0), ("", None), ("soon", None), ("-1", None), ("³", None)]
)
def test_retry_after_is_a_number_or_nothing(value: str, seconds: float | None) -> None:
    assert retry_after(value) == seconds


def test_retry_after_may_be_a_date() -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after(when) == pytest.approx(29.5, abs=1.5)
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


# How often


@pytest.mark.parametrize("status", [400, 401, 413, 415, 422, 500, 502, 504])
def test_what_trying_again_does_not_mend_is_raised(status: int) -> None:
    assert not is_temporary(shed(status=status))
    asked, seen = client(httpx.Response(status, json=PROBLEM))
    with asked, pytest.raises(ServiceError, match=f"{status} Queue full: Too many.") as error:
        asked.model()
    assert (error.value.request_id, len(seen)) == ("7", 1)


@pytest.mark.parametrize("status", [429, 503])
def test_what_the_service_sheds_is_tried_again(status: int) -> None:
    asked, seen = client(busy("0", status), busy("0", status), httpx.Response(200, json=RESULT))
    with asked:
        assert asked.segment(b"an image").id == "0f"
    assert len(seen) == 3


def test_it_gives_up_at_once_where_the_next_try_would_come_too_late() -> None:
    asked, seen = client(busy("6"), deadline=5)
    started = time.monotonic()
    with asked, pytest.raises(ServiceError) as error:
        asked.segment(b"an image")
    assert time.monotonic() - started < 4
    assert (error.value.status, error.value.retry_after, len(seen)) == (429, 6, 1)


def test_a_service_that_cannot_be_reached_is_tried_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskserve.retry.FIRST_PAUSE", 0.001)
    asked, seen = client(httpx.ConnectError("refused"))
    with asked, pytest.raises(UnreachableError, match="no service answers at http://maskserve: refused"):
        asked.segment(b"an image")
    assert len(seen) == CONNECTION_TRIES


def test_the_service_is_told_how_much_time_is_left() -> None:
    asked, seen = client(busy("0"), httpx.Response(200, json=RESULT), deadline=60)
    with asked:
        asked.segment(b"an image")
    first, second = (int(request.headers[TIME_LIMIT]) for request in seen)
    assert 59_000 < first <= 60_000
    assert second <= first - 100


def test_without_a_deadline_nothing_is_said_of_time() -> None:
    asked, seen = client(httpx.Response(200, json=RESULT), deadline=None)
    with asked:
        asked.segment(b"an image")
    assert TIME_LIMIT not in seen[0].headers


def test_the_deadline_is_over_all_tries() -> None:
    asked, seen = client(busy("0"), deadline=0.5)
    with asked, pytest.raises((ServiceError, DeadlineError)):
        asked.segment(b"an image")
    assert len(seen) <= 4


# What is no problem document


def test_a_gateways_page_is_an_error_too() -> None:
    asked, _ = client(httpx.Response(502, text="<html>"))
    with asked, pytest.raises(ServiceError, match="502 Bad Gateway: <html>"):
        asked.segment(b"an image")
