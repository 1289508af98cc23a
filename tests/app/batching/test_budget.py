"""The batch budget: halved when memory runs out, and slowly back to what the settings allow."""

from __future__ import annotations

import pytest

from app.batching.budget import RECOVERY_BATCHES, BatchBudget


@pytest.fixture
def budget():
    return BatchBudget(max_images=8, max_pixels=1000)


def test_budget_starts_with_all_that_is_allowed(budget):
    assert (budget.images, budget.pixels) == (8, 1000)


def test_every_shortage_halves_it_down_to_one_image(budget):
    sizes = []
    for _ in range(5):
        budget.record_out_of_memory()
        sizes.append((budget.images, budget.pixels))
    assert sizes == [(4, 500), (2, 250), (1, 125), (1, 125), (1, 125)]


def test_it_doubles_again_only_after_many_batches(budget):
    budget.record_out_of_memory()
    budget.record_out_of_memory()
    for _ in range(RECOVERY_BATCHES - 1):
        budget.record_success()
    assert budget.images == 2
    budget.record_success()
    assert budget.images == 4
    for _ in range(3 * RECOVERY_BATCHES):
        budget.record_success()
    assert (budget.images, budget.pixels) == (8, 1000)


def test_a_shortage_restarts_the_wait(budget):
    budget.record_out_of_memory()
    for _ in range(RECOVERY_BATCHES - 1):
        budget.record_success()
    budget.record_out_of_memory()
    budget.record_success()
    assert budget.images == 2
