"""What one replica answers a second over HTTP, and the memory that it takes: for docs/deployment.md, "Sizing".

    python bench/capacity.py [--model v1|v2|shapes] [--photo FILE] [--clients 4] [--seconds 30] [--threads 0]
                             [--device cpu]

COCO's weights are not needed: bench/synthetic_weights.py makes random ones that behave alike. Each client, of wrk,
sends the photo again when it is answered. On a GPU, take --clients 32 or more. Seconds of processor time for each
request say on a busy machine what requests a second say on an idle one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.runtime.cpus import usable_cpus
from bench.masks import processor
from bench.synthetic_weights import synthetic_weights
from bench.wrk import ClosedLoop
from deploy.tests.processes import ROOT, Replica
from model.images.decode import decode
from model.network.architecture import V1, V2
from model.zoo import model_file, zoo

ARCHITECTURES = {"v1": ("maskrcnn_resnet50_fpn", V1), "v2": ("maskrcnn_resnet50_fpn_v2", V2)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shapes", choices=["shapes", *ARCHITECTURES])
    parser.add_argument("--photo", type=Path, default=ROOT / "examples/shapes/images/000012.jpg")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    photo = given.photo.read_bytes()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = given.model
        if model in ARCHITECTURES:
            model = folder / "model.safetensors"
            write(model, given.model, photo)
        with Replica("replica", folder, model=model, threads=given.threads, device=given.device) as replica:
            replica.start()
            asyncio.run(measure(replica, photo, given))


def write(path: Path, model: str, photo: bytes) -> None:
    """A model file of that architecture, with random weights and COCO's categories."""
    name, architecture = ARCHITECTURES[model]
    image = torch.from_numpy(decode(photo)).permute(2, 0, 1).float().div(255)
    known = model_file.Model(
        name, architecture, zoo.COCO_CATEGORIES, tuple(c.id for c in zoo.COCO_CATEGORIES)
    )
    model_file.save(path, synthetic_weights(architecture, image), known)


async def measure(replica: Replica, photo: bytes, given: argparse.Namespace) -> None:
    """Ask, and print."""
    await replica.until_ready()
    ready = memory(replica)
    await ClosedLoop(given.clients).turn(replica.url, [photo], 5)
    loop = ClosedLoop(given.clients)
    before = processor_seconds(replica)
    await loop.turn(replica.url, [photo], given.seconds)
    spent = processor_seconds(replica) - before
    cores = given.threads or usable_cpus()
    print(
        f"{processor()}, torch {version('torch')}; {given.model}, {given.photo.name}, {given.clients} clients"
    )
    print(
        f"{loop.rate:.2f} requests a second, {loop.rate / cores:.2f} for each of {cores} cores; {loop.statuses}"
    )
    print(f"{spent / loop.statuses['200']:.3f} s of processor time for each")
    print(f"memory: {ready} when ready, {memory(replica)} after that")


def processor_seconds(replica: Replica) -> float:
    """Seconds that the process has computed so far, on all cores together."""
    fields = Path(f"/proc/{replica.running.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(replica: Replica) -> str:
    """What the process holds of its own, and at most so far with the pages of files."""
    text = Path(f"/proc/{replica.running.pid}/status").read_text()
    status = dict(line.split(":", 1) for line in text.splitlines())
    own, peak = (int(status[name].split()[0]) / 1e3 for name in ("RssAnon", "VmHWM"))
    return f"{own:.0f} MB (peak {peak:.0f} MB with mapped files)"


if __name__ == "__main__":
    main()
