"""`make ray-test`: the service on a Ray cluster of a head and three nodes on this machine, behind the shipped gateway.

    python deploy/tests/cluster.py [--rows scaling,killed,lost,upgraded,offline] [--proxy haproxy|ray]

Serves deploy/ray/serve.yaml with a simulated device (deploy/tests/simulated.py), measures throughput with one, two and
three replicas, and prints what clients see of each fault. It needs nginx, and the extra `ray`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from deploy.tests.gateway import Gateway, passed
from deploy.tests.load import Outcomes, clients, saturate, steady
from deploy.tests.nodes import NODES, PATIENCE, REPLICA, RayCluster, processes
from deploy.tests.processes import ROOT, SIMULATED_SECONDS, answers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from deploy.tests.load import Client

# Clients for each replica, so that none is without a request.
CLIENTS = 6
# Requests for each replica, sent at once before one is killed.
BURST = 4
EXAMPLE = ROOT / "examples/shapes/images/000001.jpg"
SETTLE = 4.0  # seconds of load before and after a fault
MEASURE = 40.0  # seconds
# Images and shards of the recipe for Ray Data.
IMAGES, SHARDS = 24, 6


class Rows:
    """What is measured, in turn."""

    def __init__(self, cluster: RayCluster, gateway: Gateway) -> None:
        self.cluster, self.gateway = cluster, gateway
        self.made: list[Client] = []
        self.table: list[str] = []
        self.failures: list[str] = []

    async def run(self, rows: list[str]) -> None:
        """Run them and print the table."""
        async with clients(self.gateway.url, CLIENTS * NODES, EXAMPLE.read_bytes()) as self.made:
            for row in rows:
                try:
                    await ROWS[row](self)
                except AssertionError as error:
                    traceback.print_exc()
                    self.failures.append(f"{row}: {error}")
                    print(self.failures[-1], flush=True)
        print("| what happens | requests | failed | sent to a second proxy | slowest |")
        print("|---|---|---|---|---|", *self.table, sep="\n")

    def report(self, tag: str, title: str, outcomes: Outcomes) -> int:
        """A row of the table; how many requests were sent to a second proxy."""
        requests = {
            request.id: request
            for request in passed(self.gateway.log.read_text())
            if request.id.startswith(f"{tag}-")
        }
        seconds = max(outcome.seconds for outcome in outcomes.all)
        replayed = sum(request.replayed for request in requests.values())
        failed = outcomes.failed()
        line = f"| {title} | {len(outcomes.all)} | {len(failed)} | {replayed} | {seconds:.2f} s |"
        self.table.append(line)
        print(line, flush=True)
        self.failures += [f"{tag}: {outcome}; {requests.get(outcome.id)}" for outcome in failed]
        return replayed

    async def deploy(self, replicas: int, **settings: object) -> None:
        """Deploy, and wait until all that is in front of the replicas sends to each of them."""
        await asyncio.to_thread(self.cluster.deploy, replicas, **settings)
        await self.proxies(replicas)
        await self.spread(replicas)

    async def proxies(self, replicas: int) -> None:
        """Wait until the proxies know the service: that of the head, and that of each node with a replica."""
        urls = [f"{url}/readyz" for url in self.cluster.proxies()]
        await asyncio.to_thread(
            self.cluster.until,
            lambda: sum(answers(url, 5) for url in urls) > replicas,
            f"{replicas + 1} proxies answer",
        )

    async def spread(self, replicas: int) -> None:
        """Ask until so many replicas have answered: only then does throughput tell anything."""
        deadline = time.monotonic() + PATIENCE
        while True:
            outcomes, rate = await saturate(self.made[: CLIENTS * replicas], 6, "spread")
            ideal = replicas / SIMULATED_SECONDS
            if not outcomes.failed() and rate > 0.8 * ideal:
                return
            assert time.monotonic() < deadline, (
                f"{rate:.2f} requests a second of {ideal}, {outcomes.counts()}"
            )

    async def scaling(self) -> None:
        """Throughput with one, two and three replicas."""
        rates = {}
        for replicas in range(1, NODES + 1):
            await self.deploy(replicas)
            outcomes, _ = await saturate(self.made[: CLIENTS * replicas], MEASURE, f"scaling{replicas}")
            rates[replicas] = steady_rate(outcomes)
            assert not outcomes.failed(), outcomes.counts()
            ratio = rates[replicas] / (replicas * rates[1])
            print(
                f"{replicas} replicas: {rates[replicas]:.2f} requests a second, {ratio:.3f} of linear, "
                f"{rates[replicas] * SIMULATED_SECONDS / replicas:.3f} of what the devices can",
                flush=True,
            )
            if ratio < 0.95:
                self.failures.append(f"scaling: {replicas} replicas answer {ratio:.3f} of linear")

    async def killed(self) -> None:
        """The process of a replica gets SIGKILL."""
        await self.deploy(NODES)
        async with steady(self.made, self.rate, "killed") as outcomes:
            await asyncio.sleep(SETTLE)
            # So many at once that the one which is killed has some.
            burst = [asyncio.ensure_future(client.ask("killed")) for client in self.made[: BURST * NODES]]
            await asyncio.sleep(SIMULATED_SECONDS / 2)
            process = processes(REPLICA)[0]
            os.kill(process, signal.SIGKILL)
            await self.replaced({process}, "killed")
            await asyncio.sleep(SETTLE)
            outcomes.all += await asyncio.gather(*burst)
        replayed = self.report("killed", "a replica's process killed", outcomes)
        assert replayed, "the replica that was killed had no request"

    async def lost(self) -> None:
        """All processes of a node end at once, its proxy too; then another node comes."""
        await self.deploy(NODES)
        async with steady(self.made, self.rate, "lost") as outcomes:
            await asyncio.sleep(SETTLE)
            await asyncio.to_thread(self.cluster.lose_node)
            await asyncio.sleep(4 * SETTLE)
            await asyncio.to_thread(self.cluster.add_node, NODES)
            await asyncio.to_thread(
                self.cluster.until, lambda: self.cluster.running() == NODES, "all replicas run"
            )
            await self.proxies(NODES)
            await asyncio.sleep(SETTLE)
        self.report("lost", "a node lost, and another added", outcomes)

    async def upgraded(self) -> None:
        """Other settings, which replace one replica after the other."""
        await self.deploy(NODES)
        before = set(processes(REPLICA))
        async with steady(self.made, self.rate, "upgraded") as outcomes:
            await asyncio.sleep(SETTLE)
            await asyncio.to_thread(self.cluster.start, NODES, max_queue_requests=32)
            await self.replaced(before, "upgraded")
            await asyncio.sleep(SETTLE)
        self.report("upgraded", "each replica replaced by one with other settings", outcomes)

    @property
    def rate(self) -> float:
        """Requests a second that two replicas can answer."""
        return 0.6 * (NODES - 1) / SIMULATED_SECONDS

    async def replaced(self, ended: set[int], what: str) -> None:
        """Wait until those are gone and as many replicas as before run."""

        def done() -> bool:
            now = set(processes(REPLICA))
            return not (now & ended) and len(now) == NODES and self.cluster.running() == NODES

        await asyncio.to_thread(self.cluster.until, done, f"{what}: all replicas run")

    async def offline(self) -> None:
        """deploy/ray/segment_images.py with the bundled model, of which an actor is killed."""
        await asyncio.to_thread(self.cluster.clear)
        photos, out = self.cluster.folder / "photos", self.cluster.folder / "results.json"
        photos.mkdir()
        for number in range(IMAGES):
            shutil.copy(EXAMPLE, photos / f"{number}.jpg")
        arguments = [photos, "--out", out, "--shards", SHARDS, "--actors", 2, "--cpus", 1]
        recipe = await asyncio.create_subprocess_exec(
            sys.executable,
            *map(str, [ROOT / "deploy/ray/segment_images.py", *arguments]),
            env={**os.environ, "RAY_ADDRESS": self.cluster.cluster.address, "MASKSERVE_MODEL": "shapes"},
        )

        def killed() -> bool:
            # In the middle of a shard, some of whose answers are there.
            shard_started = any(
                file.read_bytes().count(b"\n") > 1 for file in photos.parent.glob("results.*.partial")
            )
            actors = processes(b"ray::MapWorker") if shard_started else []
            for actor in actors[:1]:
                os.kill(actor, signal.SIGKILL)
            return bool(actors)

        await asyncio.to_thread(self.cluster.until, killed, "an actor is in the middle of a shard")
        assert await recipe.wait() == 0, "images have no result"
        merged = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "app.cli", "merge", str(out), cwd=ROOT
        )
        assert await merged.wait() == 0
        lines = b"".join(file.read_bytes() for file in photos.parent.glob("results.*.jsonl"))
        assert lines.count(b'"answer":') == IMAGES, "an image was answered twice, or not"
        assert {record["file_name"] for record in json.loads(out.read_text())} == {
            path.name for path in photos.iterdir()
        }
        print(f"offline: {IMAGES} images in {SHARDS} shards, an actor killed: each answered once", flush=True)


def steady_rate(outcomes: Outcomes) -> float:
    """Answers a second between the first and the last: the queue was never empty in between."""
    ends = sorted(outcome.ended for outcome in outcomes.all)
    skipped = len(ends) // 10
    middle = ends[skipped:-skipped]
    return (len(middle) - 1) / (middle[-1] - middle[0])


ROWS: dict[str, Callable[[Rows], Awaitable[None]]] = {
    "scaling": Rows.scaling,
    "killed": Rows.killed,
    "lost": Rows.lost,
    "upgraded": Rows.upgraded,
    "offline": Rows.offline,
}


def main() -> int:
    """Start, measure, break; 0 if all was as it should be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="those that are run; all by default")
    parser.add_argument(
        "--proxy", choices=["haproxy", "ray"], default="haproxy", help="Ray's own is in Python"
    )
    given = parser.parse_args()
    rows = given.rows.split(",")
    if unknown := set(rows) - set(ROWS):
        parser.error(f"no rows are called {', '.join(sorted(unknown))}: there are {', '.join(ROWS)}")
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as folder,
        RayCluster(Path(folder), given.proxy) as cluster,
    ):
        (Path(folder) / "gateway").mkdir()
        Path(folder).chmod(0o755)
        proxies = [url.removeprefix("http://") for url in cluster.proxies()]
        with Gateway(Path(folder) / "gateway", proxies, for_ray=True) as gateway:
            tested = Rows(cluster, gateway)
            asyncio.run(tested.run(rows))
    for failure in tested.failures:
        print(failure)
    print("ray-test:", "failed" if tested.failures else "passed")
    return bool(tested.failures)


if __name__ == "__main__":
    raise SystemExit(main())
