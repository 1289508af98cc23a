"""What commands import: every module is part of the time until the service is ready, or help is printed."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("app.server", {"torchvision", "torch._dynamo", "sympy", "httpx", "filelock", "yaml", "tensorboard"}),
        ("app.cli.main", {"torch", "fastapi", "httpx", "PIL", "uvicorn"}),
    ],
)
def test_no_module_is_imported_that_is_not_needed(module: str, unwanted: set[str]) -> None:
    program = f"import sys, {module}; print(*sorted({unwanted!r} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
