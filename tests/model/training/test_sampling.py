"""What an image is trained on depends on its own seed, never on the images beside it."""

from __future__ import annotations

import pytest
import torch

from model.training.sampling import Sampler


def matched(seed: int) -> torch.Tensor:
    """What 600 anchors belong to: a few objects, background, and some that are neither."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (600,), generator=generator).clamp(min=-1)


def test_neighbours_change_nothing() -> None:
    sampler = Sampler(64, 0.25)
    sampler.set_seeds([11, 12])
    together = sampler([matched(1), matched(2)])
    sampler.set_seeds([12])
    alone = sampler([matched(2)])
    assert torch.equal(together[0][1], alone[0][0])
    assert torch.equal(together[1][1], alone[1][0])


def test_other_seeds_draw_otherwise() -> None:
    sampler = Sampler(64, 0.25)
    draws = []
    for seed in (1, 2):
        sampler.set_seeds([seed])
        draws.append(sampler([matched(1)])[0][0])
    assert not torch.equal(*draws)


@pytest.mark.parametrize(("count", "fraction"), [(64, 0.25), (64, 0.0), (10_000, 0.5)])
def test_samples_are_of_the_right_kind_and_number(count: int, fraction: float) -> None:
    sampler, found = Sampler(count, fraction), matched(3)
    sampler.set_seeds([5])
    ((positive,), (negative,)) = sampler([found])
    there = int((found >= 1).sum()), int((found == 0).sum())
    assert int(positive.sum()) == min(int(count * fraction), there[0]) == sampler.positives
    assert int(negative.sum()) == min(count - int(positive.sum()), there[1])
    assert sampler.sampled == int(positive.sum() + negative.sum())
    assert (found[positive.bool()] >= 1).all()
    assert (found[negative.bool()] == 0).all()
