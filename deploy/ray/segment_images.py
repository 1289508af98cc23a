"""`maskserve segment --shard` on every node of a Ray cluster: a folder that all nodes see, into one file of results.

    python deploy/ray/segment_images.py /data/photos --out /data/results.json --shards 256 --actors 8 --cpus 4
    maskserve merge /data/results.json

Each actor loads the model once and segments one shard after the other. A shard whose actor is lost goes on where it
was, in another actor. The same command tries again what has no result.
"""

# ruff: noqa: PLC0415 - actors import by themselves what must be made importable first
from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray

from maskserve.server import make_importable


class ShardSegmenter:
    """An engine, and the shards that it is given."""

    def __init__(self, images: str, out: str, parameters: dict[str, str]) -> None:
        """Load the model that the MASKSERVE_ variables name.

        Args:
            images: the folder.
            out: the file that the shards will be merged into.
            parameters: of POST /segment.
        """
        make_importable()
        from app.commands.segment_files import load_segmenter
        from app.settings import load

        self.images, self.out, self.parameters = Path(images), Path(out), parameters
        cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
        self.settings = load({"threads": int(cores) or None})
        with load_segmenter(self.settings, parameters) as segmenter:
            self.segmenter = segmenter

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Segment one shard; its status is the exit code of `maskserve segment`."""
        from app.commands.results_file import ResultsFile
        from app.commands.segment import Output, run
        from app.commands.shard import Shard

        shard = Shard(int(row["number"]), int(row["count"]))
        identity = {"model": self.settings.model, "precision": self.settings.precision}
        output = Output(ResultsFile(self.out), None, as_json=False, shard=shard)
        status = run([self.images], self.parameters, lambda: nullcontext(self.segmenter), output, identity)
        return {"shard": str(shard), "status": status, "complete": shard.file(self.out).exists()}


def main() -> int:
    """Segment all shards; 0 if every image has a result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", help="a folder, at the same path on every node")
    parser.add_argument("--out", required=True, help="what the shards are called after, on the same disk")
    parser.add_argument(
        "--shards", type=int, default=64, help="some times the number of actors; never change it"
    )
    parser.add_argument("--actors", type=int, default=1, help="engines at the same time")
    parser.add_argument("--cpus", type=float, default=2, help="cores of each actor")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each actor")
    parser.add_argument("--score-threshold", help="only instances with at least this score")
    given = parser.parse_args()
    parameters = {} if given.score_threshold is None else {"score_threshold": given.score_threshold}
    # Settings are those of this command, and not those of the nodes.
    settings = {name: value for name, value in os.environ.items() if name.startswith("MASKSERVE_")}
    ray.init(runtime_env={"env_vars": settings})
    shards = [{"number": number + 1, "count": given.shards} for number in range(given.shards)]
    # One row in a block: a lost actor costs one shard, and no actor waits while another has several.
    done = (
        ray.data.from_items(shards, override_num_blocks=given.shards)
        .map(
            ShardSegmenter,
            fn_constructor_kwargs={"images": given.images, "out": given.out, "parameters": parameters},
            compute=ray.data.ActorPoolStrategy(size=given.actors, max_tasks_in_flight_per_actor=1),
            num_cpus=given.cpus,
            num_gpus=given.gpus,
        )
        .take_all()
    )
    for shard in done:
        if shard["status"]:
            state = "some images have no result" if shard["complete"] else "not complete"
            print(f"shard {shard['shard']}: {state}", file=sys.stderr)
    return int(any(shard["status"] for shard in done))


if __name__ == "__main__":
    raise SystemExit(main())
