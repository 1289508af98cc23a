"""Segments the shards of a folder in processes that it kills at random moments, until each shard is complete.

    python shard_worker.py FOLDER OUT SHARDS SEED

What stands in for the engine answers fast, and from the file's content. Prints how many processes were killed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.results_file import ResultsFile
from app.commands.segment import Output, run
from app.commands.shard import Shard
from maskserve import AnswerError, Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CATEGORIES = [{"id": 1, "name": "thing"}]
# Seconds: a process has up to so many more at each attempt.
STEP = 0.02


class QuickSegmenter:
    """One instance for each digit of the file, with a score of it; a file of other characters is damaged."""

    def __init__(self, sha256: str = "1" * 64) -> None:
        self.sha256 = sha256

    def segment_many(self, images: Iterable[Path], **_: Any) -> Iterator[Result | AnswerError]:
        for path in images:
            text = path.read_text()
            if not text.isdigit():
                yield AnswerError("no image")
                continue
            records = [
                {
                    "category_id": 1,
                    "category": "thing",
                    "score": int(digit) / 10,
                    "bbox": [0, 0, 2, 2],
                    "area": 4,
                }
                for digit in text
            ]
            yield Result.from_document(
                {"id": path.name, "model": "quick", "image": {"width": 4, "height": 3}, "instances": records}
            )

    def model(self) -> dict[str, Any]:
        return {"name": "quick", "sha256": self.sha256, "categories": CATEGORIES}


def segment(folder: Path, out: Path, shard: Shard | None, sha256: str = "1" * 64) -> int:
    """`maskserve segment` without its engine; the exit code. sha256: of the model's file."""
    output = Output(ResultsFile(out, "coco"), None, as_json=False, shard=shard)
    return run([folder], {"masks": "none"}, lambda: nullcontext(QuickSegmenter(sha256)), output)


def until_complete(folder: Path, out: Path, shard: Shard, chance: random.Random) -> int:
    """Start again what was killed; the number of kills."""
    kills = 0
    while True:
        child = os.fork()
        if child == 0:
            # What it prints is not of interest, and its end must not run the parent's.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os._exit(segment(folder, out, shard))
        time.sleep(chance.uniform(0, STEP * (kills + 1)))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            return kills
        kills += 1


def main() -> None:
    """Segment every shard."""
    folder, out, count, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    chance = random.Random(seed)
    sys.stdout.write(
        str(sum(until_complete(folder, out, Shard(number + 1, count), chance) for number in range(count)))
    )


if __name__ == "__main__":
    main()
