"""A container's share of the cores is what counts, not the machine's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from app.runtime.cpus import cgroup_quota, usable_cpus

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000\n", math.inf), ("200000 100000\n", 2), ("150000 100000\n", 1.5), ("nonsense\n", math.inf)],
)
def test_the_quota_of_a_control_group(tmp_path: Path, text: str, cores: float) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cgroup_quota(tmp_path) == cores


@pytest.mark.parametrize(("microseconds", "cores"), [("-1", math.inf), ("50000", 0.5)])
def test_the_quota_of_an_old_control_group(tmp_path: Path, microseconds: str, cores: float) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{microseconds}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_quota(tmp_path) == cores


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) == math.inf
    assert usable_cpus(tmp_path) >= 1


def test_a_small_quota_still_leaves_one_core(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("10000 100000\n")
    assert usable_cpus(tmp_path) == 1
