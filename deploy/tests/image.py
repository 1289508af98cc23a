"""`make image-test`: the Dockerfile, built for real, and its image run as the deployment runs it. Needs root.

    python deploy/tests/image.py [--base IMAGE] [--torch cpu] [--model shapes] [--keep | --built]

No Docker and no image registry is needed: buildah builds, on a base image that debootstrap makes of this machine's
Debian (or on `--base`), and runc runs. The root file system is read-only, the user is the image's, and nothing is
mounted but a tmpfs. Prints the image's size by layer, the seconds from start to ready, and the memory taken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from deploy.tests.container import Container
from deploy.tests.images import Images, make_base
from deploy.tests.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"buildah": "buildah", "runc": "runc", "debootstrap": "debootstrap"}  # program → Debian package
FREE_BYTES = 25 << 30  # what building takes at its peak with CUDA in it, where every layer is a full copy
CERTIFICATES = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
READY_SECONDS = 6.0  # from the container's start, on two cores, with the bundled model
EXAMPLE, SEEN = ROOT / "examples/images/000012.jpg", {"heart", "pentagon"}


def main() -> int:
    """Build, look inside, run, stop; 0 if everything was as it should be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", help="base image that buildah can have; by default debootstrap makes one")
    parser.add_argument("--torch", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--pip-conf", type=Path, help="pip's configuration, if packages come from a mirror")
    parser.add_argument("--uv-toml", type=Path, help="uv's configuration, likewise")
    parser.add_argument("--keep", action="store_true", help="leave the images in build/image-test")
    parser.add_argument("--built", action="store_true", help="take the image that --keep has left")
    given = parser.parse_args()
    install_what_is_missing()
    store = ROOT / "build" / "image-test"
    store.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(store).free) < FREE_BYTES:
        sys.exit(f"{store} has {free / 1e9:.0f} GB free; building takes up to {FREE_BYTES / 1e9:.0f} GB")
    images = Images(store)
    try:
        if not given.built:
            base = given.base or make_base(images)
            started = time.monotonic()
            refuses_unknown_model(images, base, given)
            build(images, base, given.model, given)
            print(
                f"built with MODEL={given.model} TORCH={given.torch} in {time.monotonic() - started:.0f} s",
                flush=True,
            )
        inspect(images, given.model)
        with images.mounted("maskserve") as root:
            look_inside(root)
            run(images.config("maskserve"), root, given.model)
    finally:
        if not given.keep:
            images.remove()
    print("image-test: passed")
    return 0


def install_what_is_missing() -> None:
    """The programs that this needs, from Debian's packages; elsewhere say which are missing."""
    if os.geteuid() != 0:
        sys.exit("image-test must be root: it mounts file systems and starts a container")
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        sys.exit(f"image-test needs {', '.join(missing)}: install them with this system's package manager")
    print(f"installing {', '.join(missing)} …", flush=True)
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)


def build(images: Images, base: str, model: str, given: argparse.Namespace, *, check: bool = True) -> str:
    """`docker build` with buildah; what it said."""
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    arguments = {
        "BASE_IMAGE": base,
        "MODEL": model,
        "TORCH": given.torch,
        "REVISION": revision.stdout.strip(),
    }
    secrets = {"ca-certificates": CERTIFICATES, "pip.conf": given.pip_conf, "uv.toml": given.uv_toml}
    options = [option for pair in arguments.items() for option in ("--build-arg", "=".join(pair))]
    for name, file in secrets.items():
        if file is not None and file.exists():
            options += ["--secret", f"id={name},src={file}"]
    # The docker format, because OCI's own has no place for a HEALTHCHECK.
    how = ["--format", "docker", "--isolation", "chroot", "--network", "host", *images.layers]
    how += [] if given.base else ["--pull-never"]
    tag = "maskserve" if check else "refused"
    return images("build", *how, *options, "--tag", tag, ROOT, check=check)


def refuses_unknown_model(images: Images, base: str, given: argparse.Namespace) -> None:
    """A model whose weights cannot be had must end the build. Only where the layers that it made are of use after."""
    if not images.layers:
        return
    said = build(images, base, "maskrcnn_resnet50", given, check=False)
    assert "no weights are called 'maskrcnn_resnet50'" in said, said[-2000:]
    assert "localhost/refused" not in images("images"), "an image without its weights was made"
    print("a model without weights ends the build")


def inspect(images: Images, model: str) -> None:
    """What the image says about itself, and how large its layers are."""
    document = images.described("maskserve")
    config = document["Docker"]["config"]
    assert f"MASKSERVE_MODEL={model}" in config["Env"], config["Env"]
    assert config["User"] == "10001:10001", config["User"]
    assert config["StopSignal"] == "SIGTERM", config["StopSignal"]
    assert config["Entrypoint"] == ["maskserve"], config["Entrypoint"]
    assert config["Healthcheck"]["Test"] == ["CMD", "maskserve", "healthcheck"], config["Healthcheck"]
    sizes = [layer["size"] for layer in json.loads(document["Manifest"])["layers"]]
    final = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    names = ["the base image", *re.findall(r"^COPY --from=.* (\S+)$", final, re.MULTILINE)]
    if len(names) != len(sizes):  # vfs: everything of ours is one layer
        names = ["the base image", "everything of ours"]
    print(f"image: {sum(sizes) / 1e9:.2f} GB, of which")
    for size, name in zip(sizes, names, strict=True):
        print(f"  {size / 1e6:7.0f} MB  {name}")


def look_inside(root: Path) -> None:
    """The largest parts, and that nothing is there which only building needs."""
    [packages] = (root / "opt/maskserve/lib").glob("python3.*/site-packages")
    usage = subprocess.run(
        ["du", "-sm", *map(str, packages.iterdir())], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    largest = sorted(((int(size), Path(path).name) for size, path in map(str.split, usage)), reverse=True)
    print("largest packages, MB: " + ", ".join(f"{name} {size}" for size, name in largest[:6]))
    cuda = sum(
        f.stat().st_size
        for f in [*packages.glob("nvidia/**/*"), *packages.glob("torch/lib/*cuda*")]
        if f.is_file()
    )
    print(f"of that only for GPUs: {cuda / 1e9:.2f} GB")
    for program in ("gcc", "cc", "g++", "make", "git", "curl", "uv"):
        found = [
            p for p in ("usr/bin", "usr/local/bin", "opt/maskserve/bin") if (root / p / program).exists()
        ]
        assert not found, f"{program} is in the image"
    for name in ("triton", "pip", "torch/include", "pytest", "ruff", "mypy", "matplotlib"):
        assert not (packages / name).exists(), f"{name} is in the image"
    for folder in ("build", "root/.cache", "tmp/.cache"):
        assert not any((root / folder).glob("**/*")), f"/{folder} has something in it"


def run(config: dict[str, Any], root: Path, model: str) -> None:
    """The service from the image: start, health, an answer, what it may not do, and a stop in good order."""
    others = busy()
    seconds = [start(config, root) for _ in range(3)]
    print(
        f"ready after {', '.join(f'{s:.1f}' for s in seconds)} s (first, second, third start, {os.cpu_count()} cores)"
    )
    if others > 0.25:
        print(f"others keep {others:.0%} of this machine busy: the time to ready is not judged")
    else:
        assert model != "shapes" or min(seconds) <= READY_SECONDS, f"ready only after {min(seconds):.1f} s"
    port = free_port()
    with Container(root, config, {"MASKSERVE_PORT": str(port)}) as container:
        url = f"http://127.0.0.1:{port}"
        container.wait_until_ready(url)
        print(f"memory when ready: {container.memory()}")
        check = container.execute(config["Healthcheck"]["Test"][1:])
        assert check.returncode == 0, check
        print(f"health check green: {check.stdout.strip()}")
        asyncio.run(segments(url, model))
        print(f"memory after that: {container.memory()}")
        confined(container)
        asyncio.run(drains(container, url))


def busy() -> float:
    """The share of the machine that others use just now, 0 to 1; this process sleeps meanwhile."""

    def ticks() -> tuple[int, int]:
        user, nice, system, idle, waiting, *others = map(int, Path("/proc/stat").read_text().split()[1:9])
        return idle + waiting, user + nice + system + idle + waiting + sum(others)

    idle, all_ticks = ticks()
    time.sleep(2)
    idle_after, all_after = ticks()
    return 1 - (idle_after - idle) / (all_after - all_ticks)


def start(config: dict[str, Any], root: Path) -> float:
    """Seconds from the start of a container until it is ready."""
    port = free_port()
    with Container(root, config, {"MASKSERVE_PORT": str(port)}) as container:
        return container.wait_until_ready(f"http://127.0.0.1:{port}")


async def segments(url: str, model: str) -> None:
    """An example's instances, several at a time so that batches run too."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        content = EXAMPLE.read_bytes()
        responses = await asyncio.gather(*(client.post("/segment", content=content) for _ in range(8)))
    assert [response.status_code for response in responses] == [200] * 8, responses[0].text
    found = {instance["category"] for instance in responses[0].json()["instances"]}
    assert model != "shapes" or found >= SEEN, found
    print(f"{EXAMPLE.name}: {', '.join(sorted(found))}")


def confined(container: Container) -> None:
    """Who it is and what it may write, as seen from inside."""
    script = "import os; print(os.getuid(), os.getgid(), open('/proc/1/cmdline').read().replace(chr(0), ' '))"
    print("user, group, process 1:", container.execute(["python3", "-c", script]).stdout.strip())
    assert container.execute(["python3", "-c", "import os; assert os.getuid() == 10001"]).returncode == 0
    for path in ("/x", "/opt/maskserve/x", "/opt/service/x", "/opt/weights/x"):
        assert container.execute(["touch", path]).returncode != 0, f"{path} could be written"
    assert container.execute(["touch", "/tmp/x"]).returncode == 0


async def drains(container: Container, url: str) -> None:
    """SIGTERM while requests run: each of them is answered, and the container ends with 0."""
    content = EXAMPLE.read_bytes()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        running = [asyncio.ensure_future(client.post("/segment", content=content)) for _ in range(12)]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        waiting = sum(not request.done() for request in running)
        started = time.monotonic()
        container.signal("TERM")
        statuses = [response.status_code for response in await asyncio.gather(*running)]
    code = await asyncio.to_thread(container.wait)
    assert statuses == [200] * 12, statuses
    assert code == 0, f"exit code {code}"
    print(
        f"SIGTERM with {waiting} requests running: all answered, ended with 0 after {time.monotonic() - started:.1f} s"
    )


if __name__ == "__main__":
    raise SystemExit(main())
