"""Which number formats the processor computes fast in, by what it says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from model.kernels import processor
from model.training.step import uses_bfloat16

if TYPE_CHECKING:
    from pathlib import Path


def test_a_processor_is_intels_where_it_says_so(tmp_path: Path) -> None:
    for vendor in ("GenuineIntel", "AuthenticAMD"):
        (tmp_path / vendor).write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
        assert processor.is_intel(tmp_path / vendor) == (vendor == "GenuineIntel")
    assert not processor.is_intel(tmp_path / "none")


@pytest.mark.parametrize("may_use", [True, False])
def test_a_processor_has_amx_where_the_system_lets_it_be_used(
    may_use: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: may_use, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert processor.has_amx() is may_use
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert not processor.has_amx()


@pytest.mark.parametrize("intel", [True, False])
def test_training_takes_bfloat16_by_itself_only_where_it_is_faster(
    intel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": False})
    monkeypatch.setattr(processor, "is_intel", lambda: intel)
    assert uses_bfloat16("auto", "cpu") is not intel
    assert uses_bfloat16("bfloat16", "cpu")
    assert not uses_bfloat16("float32", "cpu")
