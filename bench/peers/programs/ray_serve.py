"""Ray Serve with one replica that has all cores."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

folder, port = sys.argv[1], int(sys.argv[3])
threads = int(os.environ["OMP_NUM_THREADS"])
here = str(Path(__file__).resolve().parent)


@serve.deployment(num_replicas=1, max_ongoing_requests=16, ray_actor_options={"num_cpus": threads})
class Segment:
    """One photo at a time, as each request is computed where it is received."""

    def __init__(self) -> None:
        sys.path.insert(0, here)
        from network import Segmenter

        self.segmenter = Segmenter(Path(folder))

    async def __call__(self, request: Request) -> dict[str, Any]:
        return self.segmenter(await request.body())


# The service's own tasks take a core as well.
ray.init(
    num_cpus=threads + 1, include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=f"{folder}/ray"
)
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(Segment.bind(), route_prefix="/segment")
signal.sigwait({signal.SIGTERM, signal.SIGINT})
serve.shutdown()
ray.shutdown()
