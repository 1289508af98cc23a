"""The engine in a process of its own, which takes decoded images one after the other, and rests in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent


class EngineAlone:
    """An engine that is warm, by the pipes to its process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        # seconds an image, of all turns
        self.times: list[float] = []
        self._read()

    def turn(self, seconds: float) -> None:
        """Let it run for so long."""
        assert self.process.stdin is not None
        print(seconds, file=self.process.stdin, flush=True)
        self.times += json.loads(self._read())

    def _read(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise SystemExit("the engine's process ended")
        return line

    @property
    def rate(self) -> float:
        """Images a second."""
        return len(self.times) / sum(self.times)


@contextmanager
def engine_alone(images: list[bytes], settings: dict[str, str]) -> Iterator[EngineAlone]:
    """Start the process; leaving closes its input, which ends it. settings: in lower case, as in app/settings.py."""
    given = {f"MASKSERVE_{name.upper()}": value for name, value in settings.items()}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.jpg" for index in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            path.write_bytes(image)
        process = subprocess.Popen(
            [sys.executable, __file__, *map(str, paths)],
            cwd=ROOT, env={**os.environ, **given}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            yield EngineAlone(process)


def main() -> None:
    """The process: for each line with a number of seconds, print the seconds of each image, as JSON."""
    sys.path.insert(0, str(ROOT))
    from app.runtime.openmp import configure_openmp

    configure_openmp()
    from app import settings
    from app.runtime.loading import load_engine
    from model.images.decode import decode
    from model.instances import Options

    engine = load_engine(settings.load({}))
    engine.warm_up()
    images = [decode(Path(path).read_bytes()) for path in sys.argv[1:]]
    for image in images:
        engine.segment([image], [Options()])
    print("ready", flush=True)
    for line in sys.stdin:
        times = []
        end = time.perf_counter() + float(line)
        while time.perf_counter() < end:
            for image in images:
                started = time.perf_counter()
                engine.segment([image], [Options()])
                times.append(time.perf_counter() - started)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
