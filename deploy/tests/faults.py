"""The rows of docs/deployment.md's table: what clients of the gateway see of each fault, under a steady load."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from deploy.tests.load import Outcomes, clients, flood, saturate, steady
from deploy.tests.processes import ROOT, answers
from deploy.tests.stack import HEARTBEAT_TIMEOUT, MEMORY, REPLICAS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from deploy.tests.load import Client
    from deploy.tests.stack import Stack

EXAMPLE = ROOT / "examples/shapes/images/000001.jpg"
PATIENCE = 120.0  # seconds, met only when something hangs
SETTLE = 3.0  # seconds of load before and after a fault
HANGS = 70.0  # seconds; past the gateway's 65
QUEUE = 3  # requests in flight that a replica takes in the overload
CLIENTS = 14  # of the overload; the gateway takes all of them for one, who may have 16 requests open
PROBLEM = "urn:maskserve:problem:"

KILL = "import os, sys; os.kill(int(sys.argv[1]), 9)"
# Stops every thread but the first, as a device that hangs stops the thread that waits for it. If one of them has the
# interpreter's lock, which such a thread has given up, the first one hangs too: then they go on, and it tries again.
HANG = """
import ctypes, os, sys, time, urllib.request
process, seconds = int(sys.argv[1]), float(sys.argv[2])
SEIZE, INTERRUPT, CONTINUE = 0x4206, 0x4207, 7
libc = ctypes.CDLL(None, use_errno=True)
def trace(request, threads):
    for thread in threads:
        assert libc.ptrace(request, thread, 0, 0) == 0, os.strerror(ctypes.get_errno())
def answers():
    try:
        return urllib.request.urlopen("http://127.0.0.1:8000/livez", timeout=2).status == 200
    except OSError:
        return False
threads = [thread for thread in map(int, os.listdir(f"/proc/{process}/task")) if thread != process]
trace(SEIZE, threads)
trace(INTERRUPT, threads)
while not answers():
    for thread in threads:
        os.waitpid(thread, 0x40000000)  # __WALL: until it has stopped
    trace(CONTINUE, threads)
    time.sleep(0.05)
    trace(INTERRUPT, threads)
print("hangs", flush=True)
while os.path.exists(f"/proc/{process}") and seconds > 0:
    time.sleep(0.5)
    seconds -= 0.5
"""


class Faults:
    """The rows, in turn; each begins with all replicas healthy."""

    def __init__(self, stack: Stack, rate: float) -> None:
        """rate: requests a second of the steady load."""
        self.stack = stack
        self.rate = rate
        self.made: list[Client] = []
        self.table: list[str] = []
        self.failures: list[str] = []
        self.fired: dict[str, str] = {}  # alert → the row in which it fired first

    async def run(self, rows: Sequence[str]) -> list[str]:
        """Run them, print the table, and return what was not as it should be."""
        headers = {"Authorization": f"Bearer {self.stack.key}"}
        async with clients(self.stack.url, CLIENTS, EXAMPLE.read_bytes(), headers) as self.made:
            await self.contract(self.made[0])
            for row in rows:
                watch = asyncio.ensure_future(self.watch(row))
                try:
                    await ROWS[row](self)
                except (AssertionError, LookupError, ValueError) as error:
                    self.failures.append(f"{row}: {error!r}")
                finally:
                    watch.cancel()
                    await asyncio.gather(watch, return_exceptions=True)
        print("| what happens | requests | failed | sent to a second replica | p50 | slowest |")
        print("|---|---|---|---|---|---|", *self.table, sep="\n")
        print("alerts that fired:", ", ".join(f"{alert} ({row})" for alert, row in self.fired.items()))
        for alert in {alert for row in rows for alert in ALERTS.get(row, ())} - self.fired.keys():
            self.failures.append(f"the alert {alert} did not fire")
        return self.failures

    async def watch(self, row: str) -> None:
        """Note what Prometheus fires."""
        while True:
            # On a busy machine a question may fail; the next one comes a second later.
            with contextlib.suppress(AssertionError, LookupError, ValueError):
                for alert, state in (await asyncio.to_thread(self.stack.alerts)).items():
                    if state == "firing":
                        self.fired.setdefault(alert, row)
            await asyncio.sleep(1)

    def report(
        self, tag: str, title: str, outcomes: Outcomes, accepted: frozenset[str] = frozenset({"200"})
    ) -> None:
        """Add a row to the table, and hold it to its promise.

        Args:
            tag: that the ids of its requests begin with.
            title: of the row.
            outcomes: of all its requests.
            accepted: results that are not failures.
        """
        failed = [outcome for outcome in outcomes.all if outcome.result not in accepted]
        passed = self.stack.passed(tag)
        seconds = sorted(outcome.seconds for outcome in outcomes.all if outcome.result == "200")
        assert seconds, f"{tag}: nothing was answered, {outcomes.counts()}"
        self.table.append(
            f"| {title} | {len(outcomes.all)} | {len(failed)} | {sum(p.replayed for p in passed)} | "
            f"{median(seconds):.2f} s | {seconds[-1]:.2f} s |"
        )
        print(self.table[-1], flush=True)
        if failed:
            self.failures.append(f"{tag}: {failed}")
            ids = {outcome.id for outcome in failed}
            lines = self.stack.log().splitlines()
            self.failures += [line for line in lines if any(f'"{name}"' in line for name in ids)]
            self.failures += [line for line in lines if "[error]" in line or "[warn]" in line][-60:]

    async def until(self, condition: Callable[[], bool], what: str | Callable[[], str]) -> None:
        """Wait for it. what: it in words."""
        deadline = time.monotonic() + PATIENCE
        while not await asyncio.to_thread(condition):
            if time.monotonic() > deadline:
                what = what if isinstance(what, str) else what()
                raise AssertionError(f"{what}: not after {PATIENCE:.0f} s")
            await asyncio.sleep(0.5)

    async def healthy(self) -> None:
        """Wait until every replica takes requests."""
        for replica in REPLICAS:
            await self.until(lambda replica=replica: self.stack.healthy(replica), f"{replica} is healthy")  # type: ignore[misc]
        await asyncio.sleep(SETTLE)

    async def compose(self, *arguments: object, **variables: str) -> None:
        """`docker compose`, while requests go on."""
        await asyncio.to_thread(lambda: self.stack.compose(*arguments, **variables))

    async def recreate_in_turn(self, **variables: str) -> None:
        """As docs/deployment.md says. variables: of the environment."""
        for replica in REPLICAS:
            await self.compose(
                "up", "--detach", "--force-recreate", "--no-deps", "--wait", replica, **variables
            )

    async def scraped(self) -> None:
        """Wait until Prometheus reaches both replicas."""
        up: list[float] = []

        def both() -> bool:
            up[:] = self.stack.scraped()
            return up.count(1.0) == len(REPLICAS)

        await self.until(both, lambda: f"Prometheus reaches both replicas; up is {up}")

    async def contract(self, client: Client) -> None:
        """What the gateway says by itself, and that Prometheus reaches every replica."""
        hidden = await client.http.get("/metrics")
        assert (hidden.status_code, hidden.json()["type"]) == (404, f"{PROBLEM}unknown-path")
        too_large = await client.http.post("/segment", content=bytes(30 << 20))
        assert (too_large.status_code, too_large.json()["title"]) == (413, "Body too large"), too_large.text
        answered = await flood(self.stack.url, "/model", connections=8, each=60)
        limited = answered.count("HTTP/1.1 429")
        assert limited > 0, answered[-500:]
        assert answered.count(f"{PROBLEM}too-many-requests") == limited, answered[-500:]
        assert await asyncio.to_thread(answers, f"{self.stack.url}/readyz"), "probes are not limited"
        print(
            f"the gateway: /metrics hidden, 30 MB refused, {limited} of 480 requests at once limited",
            flush=True,
        )
        await self.scraped()

    async def nothing(self) -> None:
        """No fault: what the others are compared with."""
        async with steady(self.made, self.rate, "nothing") as outcomes:
            await asyncio.sleep(15)
        self.report("nothing", "nothing", outcomes)

    async def recreated(self) -> None:
        """An upgrade, as docs/deployment.md describes it."""
        async with steady(self.made, self.rate, "recreated") as outcomes:
            await asyncio.sleep(SETTLE)
            await self.recreate_in_turn()
            await asyncio.sleep(SETTLE)
        self.report("recreated", "each replica recreated in turn", outcomes)

    async def killed(self) -> None:
        """SIGKILL to its process; Docker restarts it."""
        await self.healthy()
        async with steady(self.made, self.rate, "killed") as outcomes:
            await asyncio.sleep(SETTLE)
            process = self.stack.state("cpu-1")["State"]["Pid"]
            burst = [asyncio.ensure_future(client.ask("killed")) for client in self.made[:8]]
            await asyncio.to_thread(self.stack.as_root, KILL, process)
            outcomes.all += await asyncio.gather(*burst)
            await self.healthy()
        self.report("killed", "a replica's process killed, with requests in flight", outcomes)

    async def paused(self) -> None:
        """Connections are accepted and nothing comes back: its requests wait for the gateway's time-out."""
        await self.healthy()
        async with steady(self.made, self.rate, "paused") as outcomes:
            await asyncio.sleep(SETTLE)
            await self.compose("pause", "cpu-1")
            await asyncio.sleep(HANGS)
            await self.compose("unpause", "cpu-1")
            await asyncio.sleep(SETTLE)
        self.report("paused", f"a replica paused for {HANGS:.0f} s", outcomes)

    async def hung(self) -> None:
        """The device: its requests get 503 after the heartbeat's time-out, and the process ends after twice that."""
        await self.healthy()
        restarts = self.restarts("cpu-1")
        async with steady(self.made, self.rate, "hung") as outcomes:
            await asyncio.sleep(SETTLE)
            process = self.stack.state("cpu-1")["State"]["Pid"]
            hang = partial(self.stack.as_root, HANG, process, 3 * HEARTBEAT_TIMEOUT, inside="cpu-1")
            await asyncio.to_thread(hang)
            await self.until(lambda: self.restarts("cpu-1") > restarts, "the process that hangs ends")
            await self.healthy()
        self.report("hung", f"a device hangs, found after {HEARTBEAT_TIMEOUT} s", outcomes)

    async def out_of_memory(self) -> None:
        """The limit is lowered to little more than what the replica has, and then photos come."""
        await self.healthy()
        restarts = self.restarts("cpu-1")
        container = self.stack.container("cpu-1")
        pixels = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
        Image.fromarray(pixels).save(file := io.BytesIO(), "JPEG", quality=50)
        # Half of the usual load: with the photos, which take seconds, the gateway would refuse more from one address.
        async with steady(self.made, self.rate / 2, "memory") as outcomes:
            await asyncio.sleep(SETTLE)
            used = self.stack.compose("exec", "-T", "cpu-1", "cat", "/proc/1/status")
            resident = next(int(line.split()[1]) for line in used.splitlines() if line.startswith("RssAnon"))
            limit = (resident << 10) + (64 << 20)
            deadline = time.monotonic() + PATIENCE
            try:
                # The kernel ends decoders first, and their memory may be enough: less, until it is the replica.
                while await asyncio.to_thread(self.restarts, "cpu-1") == restarts:
                    assert time.monotonic() < deadline, "the replica has not run out of memory"
                    await self.limit(container, limit)
                    photos = [client.ask("memory", file.getvalue()) for client in self.made[:4]]
                    outcomes.all += await asyncio.gather(*photos)
                    limit -= 24 << 20
            finally:
                await self.limit(container, MEMORY)
            await self.healthy()
        self.report("memory", "a replica out of memory, its limit lowered", outcomes)

    def restarts(self, replica: str) -> int:
        """How often Docker has started it again."""
        return int(self.stack.state(replica)["RestartCount"])

    async def limit(self, container: str, memory: int) -> None:
        """Set what it may take, in bytes."""
        update = ["update", "--memory", memory, "--memory-swap", memory, container]
        await asyncio.to_thread(self.stack.engine.run, *update)

    async def reloaded(self) -> None:
        """A changed configuration is read while requests run."""
        await self.healthy()
        async with steady(self.made, self.rate, "reloaded") as outcomes:
            for _ in range(3):
                await asyncio.sleep(SETTLE)
                reload = ["nginx", "-p", "/tmp", "-c", "/etc/maskserve/nginx.conf", "-s", "reload"]
                await self.compose("exec", "-T", "gateway", *reload)
            await asyncio.sleep(SETTLE)
        self.report("reloaded", "the gateway reloaded three times", outcomes)

    async def keys(self) -> None:
        """Clients send their key before it is asked for."""
        self.stack.environment["API_KEYS_FILE"] = str(self.stack.keys)
        async with steady(self.made, self.rate, "keys") as outcomes:
            await asyncio.sleep(SETTLE)
            await self.recreate_in_turn()
            await asyncio.sleep(SETTLE)
        self.report("keys", "API keys switched on, each replica recreated in turn", outcomes)
        refused = await self.made[0].http.get("/model", headers={"Authorization": "Bearer another"})
        assert refused.status_code == 401, refused.text
        await self.scraped()

    async def overload(self) -> None:
        """Far more requests than fit: 429 for some, 200 for the others, and every replica goes on."""
        for replica in REPLICAS:
            service = self.stack.override["services"][replica]
            service["environment"]["MASKSERVE_MAX_QUEUE_REQUESTS"] = str(QUEUE)
        self.stack.write()
        await self.recreate_in_turn()
        await self.healthy()
        known = len(self.stack.log())
        outcomes, rate = await saturate(self.made, 30, "overload", pause=0.5)
        self.report(
            "overload",
            f"overload: {CLIENTS} clients, room for {len(REPLICAS) * QUEUE} requests",
            outcomes,
            frozenset({"200", "429"}),
        )
        refused = [outcome for outcome in outcomes.all if outcome.result == "429"]
        print(f"overload: {rate:.1f} answered a second, {len(refused)} of {len(outcomes.all)} got 429")
        # A fast machine sends so much that the gateway refuses some too: it takes all of these clients for one.
        problems = {outcome.problem for outcome in refused}
        assert f"{PROBLEM}queue-full" in problems, refused
        assert problems <= {f"{PROBLEM}queue-full", f"{PROBLEM}too-many-requests"}, refused
        assert all(int(outcome.retry_after) >= 1 for outcome in refused)
        passed = self.stack.passed("overload")
        assert not any(request.replayed for request in passed), "a 429 was sent to another replica"
        assert "disabled" not in self.stack.log()[known:], "a replica was left alone for being busy"
        assert len({request.replicas[0] for request in passed if request.status == 200}) == len(REPLICAS)

    async def down(self) -> None:
        """Every replica is stopped, which is not promised to be without failures: Prometheus must tell somebody."""
        await self.healthy()
        await self.compose("stop", *REPLICAS)
        answer = await self.made[0].http.get("/readyz")
        assert answer.status_code == 503, answer.text
        await self.until(lambda: "MaskserveDown" in self.fired, "MaskserveDown fires")
        await self.compose("start", *REPLICAS)
        await self.healthy()


ROWS: dict[str, Callable[[Faults], Awaitable[None]]] = {
    "nothing": Faults.nothing,
    "recreated": Faults.recreated,
    "killed": Faults.killed,
    "paused": Faults.paused,
    "hung": Faults.hung,
    "out-of-memory": Faults.out_of_memory,
    "reloaded": Faults.reloaded,
    "keys": Faults.keys,
    "overload": Faults.overload,
    "down": Faults.down,
}
# The alerts that the fault of a row must fire.
ALERTS = {
    "hung": ["MaskserveUnhealthy", "MaskserveNotReady", "MaskserveErrors", "MaskserveSlow"],
    "overload": ["MaskserveSheds"],
    "down": ["MaskserveDown"],
}
