"""Fully connected layers by AMX, against torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.kernels import amx_linear
from model.kernels.openmp import use_threads

pytestmark = pytest.mark.skipif(amx_linear.kernel() is None, reason="for processors with AMX")


class Problem:
    def __init__(self, rows: int, depth: int, columns: int) -> None:
        random = torch.Generator().manual_seed(rows + depth + columns)
        self.x = torch.randn(rows, depth, generator=random).bfloat16()
        self.weight = (torch.randn(columns, depth, generator=random) / depth**0.5).bfloat16()
        self.bias = torch.randn(columns, generator=random).bfloat16()
        self.laid_out = amx_linear.lay_out(self.weight)

    def run(self, activation: str = "none") -> Tensor:
        return amx_linear.linear(self.x, self.laid_out, self.bias, activation)


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize(("depth", "columns"), [(32, 16), (96, 48), (544, 96), (4704, 64), (12544, 32)])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 32, 33, 60, 257, 600])
def test_results_are_the_exact_ones_rounded(rows: int, depth: int, columns: int, activation: str) -> None:
    problem = Problem(rows, depth, columns)
    exact = problem.x.double() @ problem.weight.double().T + problem.bias.double()
    if activation == "relu":
        exact = exact.relu()
    found = problem.run(activation)
    assert (found.dtype, found.shape) == (torch.bfloat16, exact.shape)
    # Half of the last of its 8 bits, and of a sum of many the last of float32.
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 40, 300, 1000])
def test_threads_change_no_bit(rows: int) -> None:
    problem = Problem(rows, 4128, 208)
    with use_threads(1):
        expected = problem.run()
    for threads in (2, 3, 16):
        with use_threads(threads):
            assert torch.equal(problem.run(), expected)


@pytest.mark.parametrize(("block", "depth"), [(32, 32), (64, 96), (1024, 8192)])
def test_blocks_change_no_bit(block: int, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(150, 4128, 80)
    expected = problem.run()
    monkeypatch.setattr(amx_linear, "BLOCK", block)
    monkeypatch.setattr(amx_linear, "SLICE", depth)
    assert torch.equal(problem.run(), expected)


def test_neighbours_change_no_bit() -> None:
    problem = Problem(100, 512, 64)
    whole = problem.run()
    for rows in (slice(0, 1), slice(30, 47), slice(96, 100)):
        part = amx_linear.linear(problem.x[rows], problem.laid_out, problem.bias)
        assert torch.equal(part, whole[rows])


def test_a_number_that_is_none_stays_in_its_row() -> None:
    problem = Problem(20, 64, 32)
    problem.x[3, 5] = torch.nan
    found = problem.run("relu")
    assert bool(found[3].isnan().all())
    assert not bool(found[[0, 2, 4, 19]].isnan().any())


@pytest.mark.parametrize(("columns", "depth"), [(24, 64), (32, 48), (91, 1024)])
def test_other_shapes_are_not_taken(columns: int, depth: int) -> None:
    assert not amx_linear.can_run(columns, depth)
    assert amx_linear.can_run(96, 4704)
