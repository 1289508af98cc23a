"""Admission alone: no threads, no model, and a clock that the test sets."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from app.batching.admission import Admission
from app.problems import DeadlineExceeded, Draining, ImageTooLarge, NotReady, Problem, QueueFull


@pytest.fixture
def admission():
    admission = Admission(max_requests=3, max_pixels=1000, max_bytes=500, clock=lambda: 100.0)
    admission.open()
    return admission


def refuse(admission, pixels, seconds=1e9):
    """The problem that this admission meets."""
    with pytest.raises(Problem) as caught, admission.admit(pixels, seconds):
        pass
    return caught.value


def test_place_is_held_for_the_block_and_released_after_it(admission):
    with admission.admit(600) as permit:
        assert permit.pixels == 600
        assert (admission.requests, admission.pixels) == (1, 600)
    assert (admission.requests, admission.pixels) == (0, 0)


@pytest.mark.parametrize("error", [DeadlineExceeded, asyncio.CancelledError, KeyboardInterrupt])
def test_place_is_released_however_the_block_ends(admission, error):
    with pytest.raises(error), admission.admit(600):
        raise error
    assert (admission.requests, admission.pixels) == (0, 0)


def test_request_beyond_the_count_is_refused_at_once(admission):
    with admission.admit(1), admission.admit(1), admission.admit(1):
        assert isinstance(refuse(admission, 1), QueueFull)
    assert admission.refused == {"requests": 1}
    with admission.admit(1):
        pass


def test_request_beyond_the_pixels_is_refused_while_a_smaller_one_still_fits(admission):
    with admission.admit(800):
        assert isinstance(refuse(admission, 201), QueueFull)
        with admission.admit(200):
            assert admission.pixels == 1000
    assert admission.refused == {"pixels": 1}


@pytest.mark.parametrize("occupied", [0, 900])
def test_image_larger_than_the_whole_bound_is_refused_for_its_size_whatever_the_traffic(admission, occupied):
    with admission.admit(occupied):
        problem = refuse(admission, 1001)
    assert isinstance(problem, ImageTooLarge)
    assert "1000" in problem.detail


def test_image_of_exactly_the_whole_bound_is_admitted(admission):
    with admission.admit(1000):
        pass


def test_admission_is_closed_until_opened():
    admission = Admission(max_requests=1, max_pixels=10)
    problem = refuse(admission, 1)
    assert isinstance(problem, NotReady)
    assert problem.retry_after
    admission.open()
    with admission.admit(1):
        pass


def test_closing_does_not_affect_requests_in_flight(admission):
    with admission.admit(600):
        admission.close(Draining)
        assert isinstance(refuse(admission, 1), Draining)
        assert admission.requests == 1
    assert admission.refused == {"draining": 1}


def test_wait_until_empty_returns_when_the_last_request_has_ended(admission):
    async def scene():
        # Nothing is in flight: at once.
        await admission.wait_until_empty()
        with admission.admit(1):
            with admission.admit(1):
                waiting = asyncio.ensure_future(admission.wait_until_empty())
            await asyncio.wait([waiting], timeout=0)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 5)

    asyncio.run(scene())


# Retry-After


def retry_after(admission, pixels):
    return refuse(admission, pixels).headers()["Retry-After"]


def test_retry_after_is_what_is_ahead_over_the_measured_rate(admission):
    admission.record_served(pixels=500, seconds=5)
    with admission.admit(900):
        assert retry_after(admission, 200) == "9"
        assert admission.expected_wait() == pytest.approx(9)


def test_retry_after_is_at_least_one_second_before_anything_was_measured(admission):
    with admission.admit(900):
        assert admission.expected_wait() == 0
        assert retry_after(admission, 200) == "1"


def test_retry_after_is_at_least_one_second_however_fast_the_device(admission):
    admission.record_served(pixels=10**9, seconds=0.001)
    with admission.admit(900):
        assert retry_after(admission, 200) == "1"


def test_retry_after_is_bounded_however_slow_the_device(admission):
    admission.record_served(pixels=1, seconds=1000)
    with admission.admit(900):
        assert retry_after(admission, 200) == "60"


def test_steady_service_is_measured_exactly(admission):
    for _ in range(50):
        admission.record_served(pixels=30, seconds=0.1)
    assert admission.pixels_per_second == pytest.approx(300)


def test_rate_follows_a_lasting_change(admission):
    admission.record_served(pixels=1000, seconds=1)
    for _ in range(600):
        admission.record_served(pixels=10, seconds=0.1)
    assert admission.pixels_per_second == pytest.approx(100, rel=0.01)


def test_one_short_batch_hardly_moves_the_rate(admission):
    for _ in range(100):
        admission.record_served(pixels=100, seconds=1)
    # A hundred times as fast as usual.
    admission.record_served(pixels=100, seconds=0.01)
    assert admission.pixels_per_second == pytest.approx(110, rel=0.02)


def test_failed_attempts_lower_the_rate(admission):
    admission.record_served(pixels=100, seconds=1)
    admission.record_served(pixels=0, seconds=1)
    assert admission.pixels_per_second < 60


# Before the body is read


def test_full_queue_refuses_before_any_body_is_read(admission):
    with ExitStack() as inside:
        for _ in range(3):
            admission.raise_if_overloaded()
            inside.enter_context(admission.admit(1))
        with pytest.raises(QueueFull):
            admission.raise_if_overloaded()
        assert admission.refused["requests"] == 1
    admission.raise_if_overloaded()


def test_closed_admission_refuses_before_any_body_is_read(admission):
    admission.close(Draining)
    with pytest.raises(Draining):
        admission.raise_if_overloaded()


def test_bytes_of_bodies_are_bounded_together_and_released(admission):
    with admission.count_body() as first:
        first.add(300)
        with admission.count_body() as second:
            second.add(100)
            with pytest.raises(QueueFull, match="400 bytes of other uploads"):
                second.add(101)
            second.add(100)
            assert admission.bytes == 500
        assert admission.bytes == 300
        first.release()
        assert admission.bytes == 0
    assert admission.bytes == 0
    assert admission.refused["bytes"] == 1


@pytest.mark.parametrize("error", [QueueFull, asyncio.CancelledError])
def test_bytes_are_released_however_the_request_ends(admission, error):
    def ends():
        with admission.count_body() as body:
            body.add(500)
            raise error

    with pytest.raises(error):
        ends()
    assert admission.bytes == 0


# Deadlines


def test_request_that_cannot_be_answered_in_time_at_the_present_rate_is_refused(admission):
    admission.record_served(pixels=100, seconds=1)
    with admission.admit(400):
        problem = refuse(admission, 100, seconds=6.2)
        assert isinstance(problem, QueueFull)
        assert problem.detail == (
            "At the present rate the answer would take 5.0 seconds; this request has 6.2, "
            "of which a fifth is kept in reserve."
        )
        assert problem.retry_after == pytest.approx(4)
        assert admission.refused["deadline"] == 1
        with admission.admit(100, seconds=6.3):
            pass


def test_no_request_is_refused_for_a_forecast_before_anything_was_measured(admission):
    with admission.admit(900), admission.admit(100, seconds=0.001):
        pass


def test_slow_past_keeps_no_request_out_while_nothing_is_in_flight(admission):
    admission.record_served(pixels=1, seconds=1000)
    with admission.admit(1000, seconds=0.5):
        pass


def test_there_is_room_where_admission_is_certain(admission):
    assert admission.has_room(1000, seconds=10)
    assert not admission.has_room(1001, seconds=10)
    # Ten pixels of network input a second.
    admission.record_served(pixels=100, seconds=10.0)
    with admission.admit(500, input_pixels=15):
        # It is answered in 1.5 seconds and another one like it in 3, of which 40 % of the time may be taken.
        assert admission.has_room(500, seconds=7.6)
        assert not admission.has_room(500, seconds=7.4)
        assert not admission.has_room(501, seconds=10)
        with admission.admit(1, input_pixels=1), admission.admit(1, input_pixels=1):
            assert not admission.has_room(1, seconds=1000)
    admission.close(Draining)
    assert not admission.has_room(1, seconds=10)


def test_what_was_read_before_the_drain_is_admitted_and_waited_for(admission):
    body, late = admission.count_body(), admission.count_body()
    body.accept()
    admission.close(Draining, accepted_pass=True)
    emptied = admission.wait_until_empty()
    with pytest.raises(Draining), admission.admit(1, accepted=late.accepted):
        pass
    with admission.admit(1, accepted=body.accepted):
        body.release()
        assert (admission.requests, admission.accepted) == (1, 0)
    asyncio.run(emptied)


def test_a_decoder_that_is_free_too_late_refuses_and_one_that_is_free_now_never_does(admission):
    with pytest.raises(QueueFull, match=r"free in 9\.0 seconds"):
        admission.raise_unless_decoded_within(seconds=10, wait=9.0)
    admission.raise_unless_decoded_within(seconds=10, wait=7.9)
    admission.raise_unless_decoded_within(seconds=-1, wait=0.0)
    assert admission.refused == {"deadline": 1}
