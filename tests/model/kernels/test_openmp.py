"""torch asks OpenMP for no more threads than it gets, whatever the environment says."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from model.errors import EngineError
from model.kernels import openmp

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def openmp_with(*, dynamic: int = 0, limit: int) -> SimpleNamespace:
    return SimpleNamespace(omp_get_dynamic=lambda: dynamic, omp_get_thread_limit=lambda: limit)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("limit", "left"), [(1, 1), (3, 3), (4, 4), (2**31 - 1, 4)])
def test_torch_asks_for_what_it_gets(monkeypatch: pytest.MonkeyPatch, limit: int, left: int) -> None:
    monkeypatch.setattr(openmp, "library", lambda: openmp_with(limit=limit))
    openmp.match_threads()
    assert torch.get_num_threads() == left


def test_a_number_that_changes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openmp, "library", lambda: openmp_with(dynamic=1, limit=2))
    with pytest.raises(EngineError, match="OMP_DYNAMIC is set"):
        openmp.match_threads()


@pytest.mark.parametrize("library", [None, SimpleNamespace()])
def test_without_openmp_nothing_is_done(monkeypatch: pytest.MonkeyPatch, library: object) -> None:
    monkeypatch.setattr(openmp, "library", lambda: library)
    openmp.match_threads()


@pytest.mark.skipif(openmp.library() is None, reason="torch has no OpenMP here that could be asked")
def test_the_command_line_computes_right_whatever_openmp_is_told() -> None:
    code = (
        "import os, sys, app.cli.main as main; main.cli = lambda: None; main.main(); import torch;"
        "from model.kernels.openmp import match_threads; torch.set_num_threads(2); match_threads();"
        "a, b = torch.ones(64, 1024), torch.ones(1024, 64);"
        "print(torch.get_num_threads(), int((a.bfloat16() @ b.bfloat16() != 1024).sum()))"
    )
    environment = {
        **os.environ,
        "OMP_THREAD_LIMIT": "1",
        "OMP_DYNAMIC": "true",
        "OMP_DISPLAY_ENV": "verbose",
    }
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert answer.stdout.split() == ["1", "0"]
    # What OpenMP itself says that it was told.
    assert "GOMP_SPINCOUNT = '10000'" in answer.stderr
