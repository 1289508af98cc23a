"""What commands import: every module is part of the time until the service is ready, or help is printed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Of Unix. The service's decoders need them; the commands and the client do without them elsewhere.
UNIX = {"fcntl", "resource", "pwd", "grp", "termios"}


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


def test_only_decoder_processes_are_for_unix_alone() -> None:
    found = set()
    for package in ("app", "maskserve", "model"):
        for file in (ROOT / package).rglob("*.py"):
            names = {
                name.name
                for statement in ast.parse(file.read_text()).body
                if isinstance(statement, ast.Import)
                for name in statement.names
            }
            if names & UNIX:
                found.add(file.relative_to(ROOT).as_posix())
    assert found == {"app/intake/decoder_process.py"}
