"""The kernels in C: what was installed has all that are made for this kind of machine."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

import pytest

import model

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc",
    reason="kernels are made for Linux with glibc",
)
def test_every_variant_lies_beside_its_source() -> None:
    build = (ROOT / "hatch_build.py").read_text()
    machine = re.search(rf'"{platform.machine()}": \{{(.*?)\}}', build, re.DOTALL)
    if machine is None:
        pytest.skip("no kernels are made for this kind of machine")
    names = re.findall(r'"(\w+_\w+)": \[', machine[1])
    assert len(names) > 1
    folder = Path(model.__file__).parent / "kernels"
    assert {f"{name}.so" for name in names} <= {path.name for path in folder.glob("*.so")}
