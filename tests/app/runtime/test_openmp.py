"""What OpenMP is told, and what is left to whoever starts the service."""

from __future__ import annotations

import os

import pytest

from app.runtime.openmp import configure_openmp


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {"OMP_DYNAMIC": "false", "GOMP_SPINCOUNT": "10000"}),
        ({"OMP_DYNAMIC": "true"}, {"OMP_DYNAMIC": "false", "GOMP_SPINCOUNT": "10000"}),
        ({"GOMP_SPINCOUNT": "0"}, {"OMP_DYNAMIC": "false", "GOMP_SPINCOUNT": "0"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_DYNAMIC": "false", "OMP_WAIT_POLICY": "active"}),
    ],
)
def test_openmp_is_told(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], told: dict[str, str]) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    configure_openmp()
    assert os.environ == told
