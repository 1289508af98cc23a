"""Starts of the service that import nothing: forked from one process, which has imported torch and the service once.

Three quarters of a start's processor time are imports. How the interpreter finalizes, and what is imported when, are
not to be seen here: tests of those start processes of their own.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping, Sequence
    from pathlib import Path

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["app.cli.main", "app.runtime.loading", "app.server", "safetensors.torch"])


def run_program(program: Sequence[str], cwd: str, environment: Mapping[str, str], stderr: Any) -> None:
    """In the new process: what `python *program` does."""
    os.dup2(stderr.detach(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    if program[0] == "-m":
        sys.argv = list(program[1:])
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(program)
        runpy.run_path(program[0], run_name="__main__")


class ForkedProcess:
    """What tests use of a `subprocess.Popen` of `python *program`. stderr: lines."""

    def __init__(self, program: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> None:
        reading, writing = os.pipe()
        self.stderr = os.fdopen(reading, encoding="utf-8")
        arguments = program, str(cwd), dict(environment), DupFd(writing)
        self.process = context.Process(target=run_program, args=arguments, daemon=True)
        self.process.start()
        os.close(writing)

    @property
    def pid(self) -> int:
        return int(self.process.pid or 0)

    def poll(self) -> int | None:
        """The exit code, or less than 0, the signal; None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("forked process", timeout or 0)
        return self.process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()
