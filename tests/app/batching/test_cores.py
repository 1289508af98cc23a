"""How passes share the cores of a CPU."""

from __future__ import annotations

from app.batching.cores import Cores


def test_image_that_is_alone_has_all_cores() -> None:
    cores = Cores(8)
    assert cores.take(waiting=1, most_passes=8) == 8
    assert cores.take(waiting=1, most_passes=8) == 0
    cores.give_back(8)
    assert cores.take(waiting=1, most_passes=8) == 8


def test_images_that_begin_together_have_equal_parts() -> None:
    cores = Cores(8)
    assert [cores.take(waiting, most_passes=8) for waiting in (2, 1)] == [4, 4]
    assert Cores(8).take(waiting=20, most_passes=8) == 1


def test_no_core_is_left_over() -> None:
    cores = Cores(5)
    assert [cores.take(waiting, most_passes=3) for waiting in (9, 8, 7, 6)] == [1, 2, 2, 0]


def test_what_begins_later_has_what_is_free() -> None:
    cores = Cores(4)
    assert [cores.take(waiting, most_passes=4) for waiting in (2, 1)] == [2, 2]
    cores.give_back(2)
    assert cores.take(waiting=1, most_passes=4) == 2


def test_limit_of_passes_holds() -> None:
    cores = Cores(4)
    assert [cores.take(waiting=9, most_passes=2) for _ in range(3)] == [2, 2, 0]
    # It may have fallen meanwhile.
    cores.give_back(2)
    assert cores.take(waiting=9, most_passes=1) == 0


def test_nothing_is_taken_for_nothing() -> None:
    cores = Cores(2)
    assert cores.take(waiting=0, most_passes=2) == 0
    assert (cores.free, cores.passes) == (2, 0)
