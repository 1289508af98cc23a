"""The service under load, against the engine alone in the same run: what HTTP, decoding, queue and encoding cost.

    python bench/load.py                          # `shapes`: closed loop, then open at 0.5 to 10 × the peak
    python bench/load.py --seconds 60 --factors 10 --disconnects 0.1 --slow 4
    python bench/load.py --soak 20000             # does memory grow?
    python bench/load.py --model v1 --seconds 30  # COCO's networks, v1 and v2, with synthetic weights
    python bench/load.py --plot docs/images/load.png

Closed loop, by wrk: each client sends when it has its answer; this shows the peak. Open loop, by this program, because
wrk has none: requests arrive by a Poisson process whatever becomes of those before; this shows what overload does. What
is compared takes turns, because the speed of a shared machine drifts: engine alone, one client and 16 clients in
every round, and the closed loop before and after every open one. Everything runs on this machine, the clients too.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch
import uvloop
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.runtime.cpus import usable_cpus
from bench.engine_alone import EngineAlone, engine_alone
from bench.open_loop import Load, OpenLoop, resident_bytes
from bench.processor_time import ProcessorTime
from bench.wrk import ClosedLoop
from deploy.tests.processes import Replica

HEADINGS = (
    f"{'scenario':<28}{'offered':>8}{'200/s':>9}{'429/s':>9}{'p50 ms':>10}{'p99 ms':>10}{'429 p99 ms':>12}"
    f"  {'server memory':<18}other"
)


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


def model_of(name: str, image: bytes, folder: Path) -> str:
    """What to serve: a model's name as it is, or for v1 and v2 the path of a file with synthetic weights."""
    import numpy as np

    from bench.synthetic_weights import synthetic_weights
    from model.data import Category
    from model.network.architecture import V1, V2
    from model.zoo import model_file

    architecture = {"v1": V1, "v2": V2}.get(name)
    if architecture is None:
        return name
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(image)))).permute(2, 0, 1) / 255
    categories = tuple(Category(number, f"kind {number}") for number in range(1, architecture.classes))
    path = folder / f"{name}.safetensors"
    described = model_file.describe(name, architecture, categories)
    model_file.save(path, synthetic_weights(architecture, pixels), described, half=True)
    return str(path)


def draw(path: Path, tallies: list[OpenLoop], capacity: float, title: str) -> None:
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


async def measure(options: argparse.Namespace, load: Load, alone: EngineAlone) -> None:
    """Print a line for each scenario, and what they come to."""
    one, many = ClosedLoop(1), ClosedLoop(16)
    engine, service = ProcessorTime(), ProcessorTime()
    for _ in range(options.rounds):
        before = ProcessorTime.of(alone.process.pid)
        alone.turn(options.seconds / options.rounds)
        engine += ProcessorTime.of(alone.process.pid) - before
        before = ProcessorTime.of(load.replica.running.pid)
        await closed(load, many, options.seconds / options.rounds)
        service += ProcessorTime.of(load.replica.running.pid) - before
        await closed(load, one, options.seconds / options.rounds)
    print(f"engine alone: {alone.rate:.2f} images/s, p50 {1000 * statistics.median(alone.times):.1f} ms\n")
    print(f"{HEADINGS}\n{one.line()}\n{many.line()}", flush=True)
    tallies, parts, shares, peak = [], [], [], many.rate
    for factor in options.factors:
        started, taken_before = time.perf_counter(), time.process_time()
        tally = await load.open(
            factor * many.rate,
            options.seconds,
            factor=factor,
            disconnects=options.disconnects,
            slow=options.slow,
        )
        print(tally.line(), flush=True)
        elapsed = time.perf_counter() - started
        shares.append((time.process_time() - taken_before) / elapsed / usable_cpus())
        after = await closed(load, ClosedLoop(16), options.seconds / 2)
        tallies.append(tally)
        parts.append(2 * tally.rate() / (peak + after))
        peak = after
    queued, overhead = statistics.median(one.queued), statistics.median(one.overheads)
    print(
        f"\none client: p50 of total − forward = {overhead + queued:.1f} ms ({queued:.1f} ms of it in the queue)"
    )
    print(
        f"16 clients: {many.rate:.2f}/s = {many.rate / alone.rate:.1%} of the engine alone ({alone.rate:.2f}/s)"
    )
    # Each turn ends with one more request than the loop has counted.
    answers = many.statuses.get("200", 0) + options.rounds
    taken = {
        "engine": service.engine / answers,
        "engine alone": (engine.loop + engine.engine) / len(alone.times),
        "event loop": service.loop / answers,
        "decoders": service.decoders / answers,
    }
    print(
        "processor time for an image, ms: "
        + ", ".join(f"{who} {1000 * part:.1f}" for who, part in taken.items())
    )
    for tally, part, share in zip(tallies, parts, shares, strict=True):
        if tally.factor >= 1:
            print(
                f"open loop, {tally.factor:g} × the peak: {part:.1%} of the closed loop before and after it; "
                f"this program, which sends it, took {share:.1%} of the cores"
            )
    if options.plot:
        title = f"{options.model} on {os.cpu_count()} cores, {options.seconds:g} s a point"
        draw(options.plot, tallies, many.rate, title)


async def closed(load: Load, loop: ClosedLoop, seconds: float) -> float:
    """One turn of a closed loop; its answers a second. Ends when the service has nothing left to do."""
    rate_before = loop.statuses.get("200", 0), loop.seconds
    await loop.turn(load.replica.url, load.images, seconds)
    # wrk hangs up in the middle of its last requests, one of which is on the device: this one waits behind it.
    await load.one(OpenLoop(0, 0), load.requests[0])
    return (loop.statuses.get("200", 0) - rate_before[0]) / (loop.seconds - rate_before[1])


async def soak(load: Load, count: int) -> None:
    """`count` requests from 8 clients; prints the memory after the first thousand, after each tenth, and at the end."""
    loop, seconds = ClosedLoop(8), 5.0
    first = resident_bytes(load.replica)
    while (done := sum(loop.statuses.values())) < count:
        await loop.turn(load.replica.url, load.images, seconds)
        # So many seconds that the next turn ends at the next mark.
        answered = sum(loop.statuses.values())
        if done < 1000 <= answered:
            first = resident_bytes(load.replica)
        seconds = min(60.0, max(1.0, count / 10 / max(loop.rate, 1e-9)))
        print(f"after {answered:>6}: {resident_bytes(load.replica) / 1e6:.0f} MB", flush=True)
    growth = (resident_bytes(load.replica) - first) / 1e6
    print(f"growth after the first 1,000: {growth:+.0f} MB; {loop.statuses}")


async def run(
    options: argparse.Namespace, replica: Replica, images: list[bytes], alone: EngineAlone | None
) -> None:
    """Start the service, let it see every shape, and measure."""
    replica.start()
    await replica.until_ready()
    load = Load(replica, images, options.seed)
    await closed(load, ClosedLoop(2), 3)
    if alone is None:
        await soak(load, options.soak)
    else:
        await measure(options, load, alone)


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
    parser.add_argument("--slow", type=int, default=0, help="more clients, which send a few bytes a second")
    parser.add_argument("--soak", type=int, default=0, help="only send so many requests and watch the memory")
    parser.add_argument("--set", nargs="*", default=[], dest="settings", help="MASKSERVE_NAME=value …")
    parser.add_argument("--plot", type=Path, help="picture of latency against load")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}")
    images = photos(options.sizes, 8)
    settings = {
        name.removeprefix("MASKSERVE_").lower(): value
        for name, value in (s.split("=", 1) for s in options.settings)
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings["model"] = model_of(options.model, images[0], folder)
        alone = None if options.soak else stack.enter_context(engine_alone(images, settings))
        replica = stack.enter_context(Replica("service", folder, **settings))
        uvloop.run(run(options, replica, images, alone))


if __name__ == "__main__":
    main()
