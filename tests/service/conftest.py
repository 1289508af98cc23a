"""Real server processes, on a model of random weights that these tests make for themselves."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from model.data import Category
from model.network.architecture import SMALL
from model.network.build import build
from model.zoo.model_file import describe, save

from .forks import ForkedProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds, for what takes a few; met only when something hangs
READY = re.compile(r"maskserve: (\S+) on (\S+) \((\S+)\) is ready at (http://\S+)")


def environment(**settings: object) -> dict[str, str]:
    """This process's environment, with nothing in it that changes maskserve but these settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MASKSERVE_")}
    given = {f"MASKSERVE_{name.upper()}": str(value) for name, value in settings.items()}
    # One thread, so that the tests leave the machine to others; a fixed width, so that no line is broken; the precision
    # that every processor has.
    usual = {"THREADS": "1", "PRECISION": "float32", "LOG_FORMAT": "text"}
    return {
        **kept,
        **{f"MASKSERVE_{name}": value for name, value in usual.items()},
        "COLUMNS": "200",
        **given,
    }


def maskserve(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    """`maskserve …` run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *map(str, arguments)],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


class Server:
    """A running `maskserve serve`, and what it says on stderr.

    It is forked from a process that has its imports, unless it has an interpreter or a folder of its own, or forked is
    False.
    """

    def __init__(
        self,
        model: Path,
        program: Sequence[str] = ("-m", "app.cli", "serve"),
        python: str | Path = sys.executable,
        cwd: Path = ROOT,
        forked: bool = True,
        **settings: object,
    ) -> None:
        given = {"PYTHONPATH": str(cwd), **environment(**{"port": 0, "model": model, **settings})}
        self.process: subprocess.Popen[str] | ForkedProcess
        if forked and python == sys.executable and cwd == ROOT:
            self.process = ForkedProcess(program, cwd, given)
        else:
            self.process = subprocess.Popen(
                [python, *program], cwd=cwd, env=given, stderr=subprocess.PIPE, text=True
            )
        self.log: list[str] = []
        self.url = ""
        self.ready_line = ""
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def wait_for(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """The first line of its log that the pattern is found in."""
        while (line := self._lines.get(timeout=PATIENCE)) is not None:
            self.log.append(line)
            if match := pattern.search(line):
                return match
        raise AssertionError("the server ended:\n" + "\n".join(self.log))

    def lines_so_far(self) -> list[str]:
        """All lines of its log until now."""
        with contextlib.suppress(queue.Empty):
            while (line := self._lines.get_nowait()) is not None:
                self.log.append(line)
        return self.log

    def wait_until_ready(self) -> Server:
        match = self.wait_for(READY)
        self.ready_line, self.url = match[0], match[4]
        return self

    @property
    def resident_bytes(self) -> int:
        """Memory that the process occupies."""
        with Path(f"/proc/{self.process.pid}/statm").open() as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def ended(self) -> int:
        """Its exit code."""
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Mask R-CNN of random weights, which sees many things that score about 0.1 everywhere."""
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    architecture = dataclasses.replace(SMALL, classes=4, proposals=100, min_size=96, max_size=160)
    categories = tuple(Category(number, name) for number, name in [(1, "circle"), (2, "square"), (3, "star")])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save(path, build(architecture), describe("random", architecture, categories))
    return path


@contextlib.contextmanager
def servers(model_file: Path) -> Iterator[Callable[..., Server]]:
    """A function that starts servers with settings; they end with the block at the latest."""
    with contextlib.ExitStack() as stack:

        def run(**settings: object) -> Server:
            server = Server(settings.pop("model", model_file), **settings)
            stack.callback(server.process.stderr.close)
            stack.callback(server.process.wait)
            stack.callback(server.process.kill)
            return server

        yield run


@pytest.fixture
def start(model_file: Path) -> Iterator[Callable[..., Server]]:
    """Start a server with settings; it ends with the test at the latest."""
    with servers(model_file) as run:
        yield run


@pytest.fixture(scope="session")
def start_for_session(model_file: Path) -> Iterator[Callable[..., Server]]:
    """Start a server with settings; it ends with the session."""
    with servers(model_file) as run:
        yield run


@pytest.fixture(scope="module")
def start_for_module(model_file: Path) -> Iterator[Callable[..., Server]]:
    """The same, but it ends with the tests of a file."""
    with servers(model_file) as run:
        yield run


@pytest.fixture(scope="session")
def server(model_file: Path) -> Iterator[Server]:
    """One server for all tests that need nothing of it but answers; small limits, so that they are soon met."""
    running = Server(model_file, max_upload_bytes=400_000, body_timeout=1, request_timeout=600)
    try:
        yield running.wait_until_ready()
    finally:
        running.process.kill()
        running.process.wait()
        running.process.stderr.close()


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`maskserve …` as a user types it."""
    return maskserve
