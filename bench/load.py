"""The service under load, against the engine alone in the same run: what HTTP, decoding, queue and encoding cost.

    python bench/load.py                          # the bundled model: closed loop, then open at 0.5 to 10× the peak
    python bench/load.py --seconds 60 --factors 10 --disconnects 0.1 --slow 4
    python bench/load.py --soak 20000             # does memory grow?
    python bench/load.py --model v1 --seconds 30  # COCO's networks, v1 and v2, with random weights that behave alike
    python bench/load.py --plot docs/images/load.png

Closed loop: so many clients, each sends when it has its answer; shows the peak. Open loop: requests arrive by a
Poisson process whatever becomes of those before, as the world's do; shows what overload does. What is compared is
measured by turns, because the speed of a machine that others share drifts: engine alone, one client and 16 clients in
every round, and the closed loop before and after every open one. Everything runs on this machine, the clients too:
on few cores they take some of what they measure.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import queue
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import torch
import uvloop
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
READY = re.compile(r"is ready at (http://\S+)")


@dataclass
class Tally:
    """What became of the requests of one scenario."""

    name: str
    offered: float  # requests a second; 0 in a closed loop, where there is no such number
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    latencies: dict[str, list[float]] = field(default_factory=dict)  # by status, seconds
    overheads: list[float] = field(
        default_factory=list
    )  # total minus forward, seconds, by the server's clock
    queued: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)  # bytes of the server, twice a second

    def add(self, status: str, seconds: float, timing: str = "") -> None:
        self.statuses[status] += 1
        self.latencies.setdefault(status, []).append(seconds)
        stages = dict(part.split(";dur=") for part in timing.split(", ")) if timing else {}
        if "forward" in stages:
            self.overheads.append(
                (float(stages["total"]) - float(stages["forward"]) - float(stages["queue"])) / 1000
            )
            self.queued.append(float(stages["queue"]) / 1000)

    def include(self, other: Tally) -> None:
        """Count another turn of the same scenario, too."""
        self.seconds += other.seconds
        self.statuses += other.statuses
        for status, latencies in other.latencies.items():
            self.latencies.setdefault(status, []).extend(latencies)
        self.overheads += other.overheads
        self.queued += other.queued
        self.resident += other.resident

    def rate(self, status: str = "200") -> float:
        return self.statuses[status] / self.seconds

    def percentile(self, part: float, status: str = "200") -> float:
        values = sorted(self.latencies.get(status, [float("nan")]))
        return values[min(len(values) - 1, int(part * len(values)))]

    def line(self) -> str:
        others = {
            status: count for status, count in sorted(self.statuses.items()) if status not in ("200", "429")
        }
        memory = f"{min(self.resident) >> 20}–{max(self.resident) >> 20} MiB" if self.resident else "–"
        return (
            f"{self.name:<28}{self.offered:>8.1f}{self.rate():>9.2f}{self.rate('429'):>9.1f}"
            f"{1000 * self.percentile(0.5):>10.0f}{1000 * self.percentile(0.99):>10.0f}"
            f"{1000 * self.percentile(0.99, '429'):>12.1f}  {memory:<18}{others or ''}"
        )


HEADINGS = (
    f"{'scenario':<28}{'offered':>8}{'200/s':>9}{'429/s':>9}{'p50 ms':>10}{'p99 ms':>10}{'429 p99 ms':>12}"
    f"  {'server memory':<18}other"
)


class Connection:
    """HTTP/1.1 in its plainest form: an HTTP library would take more of the processor than the service does."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> tuple[str, str, int]:
        """Status, Server-Timing and size of the answer."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        assert self.reader is not None
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection", "") == "close":
            self.close()
        return first.split()[1], headers.get("server-timing", ""), len(body)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


class Load:
    """Requests to one server."""

    def __init__(self, url: str, pid: int, images: list[bytes], seed: int) -> None:
        address = urlsplit(url)
        self.host, self.port, self.pid = address.hostname or "", address.port or 80, pid
        self.requests = [self.request(image) for image in images]
        self.random = random.Random(seed)
        self.idle: list[Connection] = []

    @staticmethod
    def request(image: bytes) -> bytes:
        head = (
            "POST /segment HTTP/1.1\r\nHost: maskserve\r\nContent-Type: image/jpeg\r\n"
            f"Content-Length: {len(image)}\r\n\r\n"
        )
        return head.encode() + image

    async def one(self, tally: Tally, request: bytes) -> None:
        """One request over a connection that is free, or a new one."""
        connection = self.idle.pop() if self.idle else Connection(self.host, self.port)
        begun = time.perf_counter()
        try:
            status, timing, _ = await connection.ask(request)
        except (OSError, asyncio.IncompleteReadError) as error:
            connection.close()
            tally.add(type(error).__name__, time.perf_counter() - begun)
            return
        tally.add(status, time.perf_counter() - begun, timing)
        self.idle.append(connection)

    async def leave(self, request: bytes) -> None:
        """Send everything and hang up without waiting for the answer."""
        with suppress(OSError):
            _, writer = await asyncio.open_connection(self.host, self.port)
            writer.write(request)
            await writer.drain()
            await asyncio.sleep(self.random.random() * 0.2)
            writer.transport.abort()

    async def slow(self, tally: Tally, until: float) -> None:
        """Send a body of a few bytes a second, again and again."""
        while time.perf_counter() < until:
            with suppress(OSError, asyncio.IncompleteReadError):
                _, writer = await asyncio.open_connection(self.host, self.port)
                request = self.requests[0]
                for start in range(0, len(request), 100):
                    if time.perf_counter() >= until:
                        break
                    writer.write(request[start : start + 100])
                    await asyncio.sleep(0.5)
                writer.transport.abort()
                tally.statuses["slow client"] += 1

    async def watch(self, tally: Tally) -> None:
        while True:
            tally.resident.append(resident_bytes(self.pid))
            await asyncio.sleep(0.5)

    async def closed(self, clients: int, seconds: float) -> Tally:
        """So many clients, each with one request at a time."""
        tally = Tally(f"closed loop, {clients} client{'s' * (clients > 1)}", 0.0)
        begun = time.perf_counter()

        async def client() -> None:
            while time.perf_counter() < begun + seconds:
                await self.one(tally, self.random.choice(self.requests))

        watch = asyncio.ensure_future(self.watch(tally))
        await asyncio.gather(*(client() for _ in range(clients)))
        watch.cancel()
        tally.seconds = time.perf_counter() - begun
        return tally

    async def open(
        self, rate: float, seconds: float, *, factor: float, disconnects: float, slow: int
    ) -> Tally:
        """Poisson arrivals."""
        tally = Tally(f"open loop, {factor:g} × the peak", rate)
        begun = time.perf_counter()
        watch = asyncio.ensure_future(self.watch(tally))
        tasks = {asyncio.ensure_future(self.slow(tally, begun + seconds)) for _ in range(slow)}
        due = begun
        while due < begun + seconds:
            due += self.random.expovariate(rate)
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            request = self.random.choice(self.requests)
            if self.random.random() < disconnects:
                tally.statuses["left"] += 1
                task = asyncio.ensure_future(self.leave(request))
            else:
                task = asyncio.ensure_future(self.one(tally, request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        arrived = time.perf_counter() - begun
        answered = tally.statuses["200"]
        await asyncio.gather(*tasks)
        # What was answered after the last arrival counts with the time that it took; a rate needs both.
        tally.seconds = time.perf_counter() - begun if answered < tally.statuses["200"] else arrived
        watch.cancel()
        return tally


def resident_bytes(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


@contextmanager
def server(model: str, settings: list[str]):
    """A maskserve of its own; yields its address and process id."""
    given = dict(setting.split("=", 1) for setting in settings)
    environment = {**os.environ, "MASKSERVE_LOG_LEVEL": "info", "MASKSERVE_LOG_FORMAT": "text", **given}
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--model", model],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    found: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if match := READY.search(line):
                found.put(match[1])
        found.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        url = found.get(timeout=120)
        if url is None:
            raise SystemExit("the server did not start")
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(60)


def photos(sizes: list[str], count: int) -> list[bytes]:
    """JPEG files of drawn scenes, in the sizes by turns."""
    from model.data.shapes import Shapes

    files = []
    scenes = Shapes(seed=7, length=count)
    for index in range(count):
        width, height = map(int, sizes[index % len(sizes)].split("x"))
        file = io.BytesIO()
        Image.fromarray(scenes[index].pixels).resize((width, height)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


ENGINE = """
import json, sys, time
from app import settings
from app.runtime.loading import load_engine
from model.images.decode import decode
from model.instances import Options
engine = load_engine(settings.load({"model": sys.argv[1]}))
engine.warm_up()
images = [decode(open(path, "rb").read()) for path in sys.argv[2:]]
for image in images:
    engine.segment([image], [Options()])
print("ready", flush=True)
for line in sys.stdin:
    times = []
    end = time.perf_counter() + float(line)
    while time.perf_counter() < end:
        for image in images:
            begun = time.perf_counter()
            engine.segment([image], [Options()])
            times.append(time.perf_counter() - begun)
    print(json.dumps(times), flush=True)
"""


class Alone:
    """The engine in a process of its own, which takes decoded images one after the other, and rests in between."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.times: list[float] = []  # of all turns, seconds an image

    def turn(self, seconds: float) -> None:
        """Let it run for so long."""
        assert self.process.stdin is not None
        print(seconds, file=self.process.stdin, flush=True)
        self.times += json.loads(self.answer())

    def answer(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise SystemExit("the engine's process ended")
        return line

    @property
    def rate(self) -> float:
        """Images a second."""
        return len(self.times) / sum(self.times)


@contextmanager
def engine_alone(model: str, images: list[bytes], settings: list[str]):
    """An engine that is warm."""
    given = dict(setting.split("=", 1) for setting in settings)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for index, image in enumerate(images):
            path = Path(folder) / f"{index}.jpg"
            path.write_bytes(image)
            paths.append(str(path))
        process = subprocess.Popen(
            [sys.executable, "-c", ENGINE, model, *paths],
            cwd=ROOT,
            env={**os.environ, **given},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            alone = Alone(process)
            alone.answer()
            yield alone  # leaving closes its input, which ends it


@contextmanager
def model_file(name: str, image: bytes):
    """What to serve: a model's name as it is, or for v1 and v2 the path of a file with random weights."""
    import numpy as np

    from bench.lifelike import lifelike
    from model.data import Category
    from model.network.architecture import V1, V2
    from model.zoo import model_file

    architecture = {"v1": V1, "v2": V2}.get(name)
    if architecture is None:
        yield name
        return
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(image)))).permute(2, 0, 1) / 255
    categories = tuple(Category(number, f"kind {number}") for number in range(1, architecture.classes))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.safetensors"
        network = lifelike(architecture, pixels)
        model_file.save(path, network, model_file.describe(name, architecture, categories), half=True)
        yield str(path)


def draw(path: Path, tallies: list[Tally], capacity: float, title: str) -> None:
    """Latency and goodput against the offered load."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    loads = [tally.offered / capacity for tally in tallies]
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
    for part, label in ((0.5, "median"), (0.99, "99th percentile")):
        upper.plot(loads, [tally.percentile(part) for tally in tallies], "o-", label=f"answered, {label}")
    upper.plot(
        loads, [tally.percentile(0.99, "429") for tally in tallies], "s--", label="refused, 99th percentile"
    )
    upper.set(xscale="log", yscale="log", ylabel="seconds")
    upper.legend()
    lower.plot(loads, [tally.rate() for tally in tallies], "o-", label="answered")
    lower.axhline(capacity, linestyle=":", color="grey", label="closed-loop peak")
    lower.set(
        ylabel="answers a second", ylim=(0, None), xlabel="offered load, multiples of the closed-loop peak"
    )
    lower.legend()
    figure.suptitle(title)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


async def measure(
    options: argparse.Namespace, url: str, pid: int, images: list[bytes], alone: Alone | None
) -> None:
    load = Load(url, pid, images, options.seed)
    await load.closed(2, 3)  # warm: every shape has been seen
    if alone is None:
        await soak(load, options.soak)
        return
    one, many = await in_turns(load, alone, options.seconds, options.rounds)
    print(f"engine alone: {alone.rate:.2f} images/s, p50 {1000 * statistics.median(alone.times):.1f} ms\n")
    print(HEADINGS)
    print(one.line())
    print(many.line(), flush=True)
    tallies, parts = [], []
    before = many
    for factor in options.factors:
        tally = await load.open(
            factor * many.rate(),
            options.seconds,
            factor=factor,
            disconnects=options.disconnects,
            slow=options.slow,
        )
        print(tally.line(), flush=True)
        after = await load.closed(16, options.seconds / 2)
        tallies.append(tally)
        parts.append(2 * tally.rate() / (before.rate() + after.rate()))
        before = after
    overhead = statistics.median(one.overheads) * 1000
    queued = statistics.median(one.queued) * 1000
    print(
        f"\none client: p50 of total − forward = {overhead + queued:.1f} ms ({queued:.1f} ms of it in the queue)"
    )
    print(
        f"16 clients: {many.rate():.2f}/s = {many.rate() / alone.rate:.1%} of the engine alone ({alone.rate:.2f}/s)"
    )
    for tally, part in zip(tallies, parts, strict=True):
        if tally.offered >= many.rate():
            print(f"{tally.name}: {part:.1%} of the closed loop before and after it")
    if options.plot:
        draw(
            options.plot,
            tallies,
            many.rate(),
            f"{options.model} on {os.cpu_count()} cores, {options.seconds:g} s a point",
        )


async def in_turns(load: Load, alone: Alone, seconds: float, rounds: int) -> tuple[Tally, Tally]:
    """One client and 16 clients, for so many seconds each, by turns with the engine alone."""
    one, many = Tally("closed loop, 1 client", 0.0), Tally("closed loop, 16 clients", 0.0)
    for _ in range(rounds):
        alone.turn(seconds / rounds)
        many.include(await load.closed(16, seconds / rounds))
        one.include(await load.closed(1, seconds / rounds))
    return one, many


async def soak(load: Load, count: int) -> None:
    """So many requests from 8 clients; memory after the first thousand, and at the end."""
    tally = Tally("soak", 0.0)
    left = iter(range(count))
    marks: dict[int, int] = {}

    async def client() -> None:
        for number in left:
            await load.one(tally, load.random.choice(load.requests))
            if number in (1000, count - 1) or number % max(1, count // 10) == 0:
                marks[number] = resident_bytes(load.pid)
                print(f"after {number:>6}: {marks[number] / 1e6:.0f} MB", flush=True)

    await asyncio.gather(*(client() for _ in range(8)))
    growth = (resident_bytes(load.pid) - marks[1000]) / 1e6
    print(f"growth after the first 1,000: {growth:+.0f} MB; {dict(tally.statuses)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--sizes", nargs="+", default=["640x480"], help="of the images, WIDTHxHEIGHT …")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each scenario")
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns that engine alone and closed loops take in that time"
    )
    parser.add_argument(
        "--factors", type=float, nargs="*", default=[0.5, 0.8, 1.0, 2.0, 10.0], help="of the peak"
    )
    parser.add_argument("--disconnects", type=float, default=0.0, help="part of the clients that hang up")
    parser.add_argument("--slow", type=int, default=0, help="clients that send a few bytes a second, besides")
    parser.add_argument("--soak", type=int, default=0, help="only send so many requests and watch the memory")
    parser.add_argument("--set", nargs="*", default=[], dest="settings", help="MASKSERVE_NAME=value …")
    parser.add_argument("--plot", type=Path, help="picture of latency against load")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}")
    images = photos(options.sizes, 8)
    with ExitStack() as stack:
        model = stack.enter_context(model_file(options.model, images[0]))
        alone = None if options.soak else stack.enter_context(engine_alone(model, images, options.settings))
        url, pid = stack.enter_context(server(model, options.settings))
        uvloop.run(measure(options, url, pid, images, alone))


if __name__ == "__main__":
    main()
