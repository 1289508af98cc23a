"""What starting the service imports: every module is part of the time until it is ready."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import app.server
print(*sorted({"torchvision", "torch._dynamo", "sympy", "httpx", "filelock", "yaml", "tensorboard"} & set(sys.modules)))
"""


def test_the_service_is_imported_without_what_it_does_not_need() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
