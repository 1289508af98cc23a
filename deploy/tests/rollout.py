"""`make rollout-test`: what clients see while replicas are restarted, killed, unready, hung or full.

    python deploy/tests/rollout.py [--rate N] [--replicas 3]

A real nginx with the shipped configuration stands before real services with the bundled model, all on loopback, under a
steady load. Prints what became of every request, and what the machine answers a second when it is saturated.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from deploy.tests.gateway import Gateway
from deploy.tests.load import Client, Outcomes, clients, flood, saturate, steady
from deploy.tests.processes import ROOT, Replica, answers

EXAMPLE = ROOT / "examples/images/000001.jpg"
SETTLE = 2.5  # seconds; more than the two for which a failed replica is left alone
QUEUE = 4  # requests in flight that a replica takes in the overload


def main() -> int:
    """All phases; 0 if every one went as it should."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rate", type=float, help="requests a second of the steady load; by default a quarter of all it can"
    )
    parser.add_argument("--replicas", type=int, default=3)
    given = parser.parse_args()
    install_nginx()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rollout-")))
        folder.chmod(0o755)
        # As docker-compose.yml sets it. One thread each, because together they have only this machine.
        names = [f"replica-{number + 1}" for number in range(given.replicas)]
        replicas = [stack.enter_context(Replica(name, folder, threads=1, drain_timeout=60)) for name in names]
        gateway = stack.enter_context(Gateway(folder / "gateway", [replica.address for replica in replicas]))
        asyncio.run(Rollout(gateway, replicas, given.rate).run())
    print("rollout-test: passed")
    return 0


def install_nginx() -> None:
    """The gateway's program from Debian's packages; elsewhere say that it is missing."""
    if shutil.which("nginx") is not None:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit("rollout-test needs nginx: install it with this system's package manager")
    print("installing nginx-light …", flush=True)
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "nginx-light"]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)


class Rollout:
    """The gateway, its replicas, and the phases that they go through together."""

    def __init__(self, gateway: Gateway, replicas: list[Replica], rate: float | None) -> None:
        """rate: requests a second of the steady load; None for one that suits the machine."""
        self.gateway = gateway
        self.replicas = replicas
        self.rate = rate or 0.0  # until the machine has been measured

    async def run(self) -> None:
        """Every phase in turn, each from a state in which all replicas are well."""
        await self.start_all()
        image = EXAMPLE.read_bytes()
        async with clients(self.gateway.url, 64, image) as made:
            await self.contract(made[0])
            outcomes, rate = await saturate(made[:12], 10, "saturated")
            assert not outcomes.failed(), outcomes
            self.rate = self.rate or rate / 4
            print(f"saturated: {rate:.1f} requests a second on {os.cpu_count()} cores; {outcomes}")
            print(f"steady load from here on: {self.rate:.1f} requests a second", flush=True)
            await self.rolling_restart(made)
            await self.killed(made)
            await self.unready(made)
            await self.hung(made)
            await self.overload(made)

    async def start_all(self, **settings: object) -> None:
        """Every replica, until all are ready."""
        for replica in self.replicas:
            replica.start(**settings)
        await asyncio.gather(*(replica.until_ready() for replica in self.replicas))

    def replays(self, tag: str) -> int:
        """How many requests of a phase were sent to more than one replica."""
        return sum(passed.replayed for passed in self.gateway.passed() if passed.id.startswith(f"{tag}-"))

    def report(self, tag: str, outcomes: Outcomes) -> None:
        """Print the phase, and hold it to its promise."""
        print(f"{tag}: {outcomes}; {self.replays(tag)} replayed", flush=True)
        assert not outcomes.failed(), outcomes.failed()

    async def contract(self, client: Client) -> None:
        """What the gateway says by itself."""
        for path in ("/metrics", "/metrics/"):
            refused = await client.http.get(path)
            assert (refused.status_code, refused.json()["type"]) == (
                404,
                "urn:maskserve:problem:unknown-path",
            )
        too_large = await client.http.post("/segment", content=bytes(30 << 20))
        assert (too_large.status_code, too_large.json()["title"]) == (413, "Body too large"), too_large.text
        quoted = await client.http.get("/healthz", headers={"X-Request-ID": 'a"b'})
        assert (quoted.status_code, quoted.headers["X-Request-ID"].isalnum()) == (200, True)
        answered = await flood(self.gateway.url, "/model", connections=8, each=60)
        statuses = Counter(re.findall(r"HTTP/1.1 (\d+)", answered))
        assert set(statuses) == {"200", "429"}, statuses
        assert answered.count("urn:maskserve:problem:too-many-requests") == statuses["429"]
        assert answered.count("Retry-After: 1\r\n") == statuses["429"]
        assert (await client.http.get("/readyz")).status_code == 200, "probes are not limited"
        limited = f"one client's {statuses.total()} requests at once: {statuses['429']} limited"
        print(f"{limited}; probes not; /metrics hidden; 30 MB refused", flush=True)

    async def rolling_restart(self, made: list[Client]) -> None:
        """SIGTERM to each replica in turn; the next one only when it is back."""
        async with steady(made, self.rate, "restarted") as outcomes:
            await asyncio.sleep(SETTLE)
            for replica in self.replicas:
                replica.signal(signal.SIGTERM)
                assert await replica.ended() == 0, f"{replica.name} did not end in good order"
                replica.start()
                await replica.until_ready()
                await asyncio.sleep(SETTLE)
        self.report("restarted", outcomes)

    async def killed(self, made: list[Client]) -> None:
        """SIGKILL to a replica that has requests in flight."""
        victim = self.replicas[0]
        async with steady(made, self.rate, "killed") as outcomes:
            await asyncio.sleep(SETTLE)
            burst = [asyncio.ensure_future(client.ask("killed")) for client in made[:9]]
            await asyncio.wait(burst, return_when=asyncio.FIRST_COMPLETED)
            victim.signal(signal.SIGKILL)
            outcomes.all += await asyncio.gather(*burst)
            await victim.ended()
            await asyncio.sleep(SETTLE)
            victim.start()
            await victim.until_ready()
            await asyncio.sleep(SETTLE)
        self.report("killed", outcomes)
        broken = [
            p for p in self.gateway.passed() if p.id.startswith("killed-") and p.replicas[0] == victim.address
        ]
        replayed = [passed for passed in broken if passed.replayed]
        assert replayed, "the killed replica had nothing in flight: the phase showed nothing"
        assert all(passed.status == 200 for passed in replayed)

    async def unready(self, made: list[Client]) -> None:
        """A replica that answers 503: it waits for ever for the weights of its model."""
        victim = self.replicas[1]
        victim.signal(signal.SIGTERM)
        await victim.ended()
        with socket.create_server(("127.0.0.1", 0)) as proxy, tempfile.TemporaryDirectory() as empty:
            nowhere = f"http://127.0.0.1:{proxy.getsockname()[1]}"  # takes connections and says nothing
            async with steady(made, self.rate, "unready") as outcomes:
                model = "maskrcnn_resnet50_fpn_v2"
                victim.start({"HTTPS_PROXY": nowhere}, model=model, weights_dir=empty)
                started = time.monotonic()
                while not await asyncio.to_thread(answers, f"{victim.url}/healthz"):
                    assert time.monotonic() < started + 60, "it did not start"
                    await asyncio.sleep(0.1)
                assert not await asyncio.to_thread(answers, f"{victim.url}/readyz")
                await asyncio.sleep(10)
                assert not await asyncio.to_thread(answers, f"{victim.url}/readyz")
            victim.signal(signal.SIGTERM)
            assert await victim.ended() == 0
        self.report("unready", outcomes)
        refused = [p for p in self.gateway.passed() if p.id.startswith("unready-") and p.statuses[0] == "503"]
        assert refused, "the unready replica was never asked: the phase showed nothing"
        victim.start()
        await victim.until_ready()

    async def hung(self, made: list[Client]) -> None:
        """SIGSTOP: connections are accepted and nothing comes back. Its requests wait for the gateway's time-out."""
        victim = self.replicas[2]
        async with steady(made, self.rate / 2, "hung") as outcomes:
            await asyncio.sleep(SETTLE)
            victim.signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(70)  # past the gateway's 65
            finally:
                victim.signal(signal.SIGCONT)
            await asyncio.sleep(SETTLE)
        self.report("hung", outcomes)
        assert self.replays("hung"), "the hung replica had no request: the phase showed nothing"

    async def overload(self, made: list[Client]) -> None:
        """Far more requests than fit: 429 for some, 200 for the others, and every replica goes on."""
        for replica in self.replicas:
            replica.signal(signal.SIGTERM)
        await asyncio.gather(*(replica.ended() for replica in self.replicas))
        await self.start_all(max_queue_requests=QUEUE)
        await asyncio.sleep(SETTLE)
        known = len(self.gateway.errors.read_text())
        outcomes, rate = await saturate(made, 10, "overload")
        assert set(outcomes.counts()) == {"200", "429"}, outcomes.counts()
        refused = outcomes.failed()
        assert {outcome.problem for outcome in refused} == {"urn:maskserve:problem:queue-full"}
        assert all(int(outcome.retry_after) >= 1 for outcome in refused)
        assert self.replays("overload") == 0, "a 429 was sent to another replica"
        assert "disabled" not in self.gateway.errors.read_text()[known:], (
            "a replica was left alone for being busy"
        )
        served = {
            p.replicas[0] for p in self.gateway.passed() if p.id.startswith("overload-") and p.status == 200
        }
        assert served == {replica.address for replica in self.replicas}, served
        print(f"overload: {outcomes}; {rate:.1f} answered a second, 0 replayed, no replica left alone")


if __name__ == "__main__":
    raise SystemExit(main())
