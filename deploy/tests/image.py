"""What must be in the image for CPUs, what must not, how large it is, and what a container of it may do."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from deploy.tests.processes import ROOT
from deploy.tests.stack import MEMORY

if TYPE_CHECKING:
    from deploy.tests.engine import Docker
    from deploy.tests.stack import Stack

LARGEST_BYTES = 1.2e9
PROGRAMS = ("gcc", "cc", "g++", "make", "git", "curl", "uv")
PACKAGES = ("triton", "pip", "nvidia", "torch/include", "pytest", "ruff", "mypy", "matplotlib")
LOOK = """
import json, pathlib, shutil, sys
packages = pathlib.Path(next(p for p in sys.path if p.startswith("/opt/maskserve") and p.endswith("site-packages")))
size = lambda p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file() and not f.is_symlink())
sizes = {p.name: size(p) for p in packages.iterdir() if p.is_dir()}
programs, names = (argument.split() for argument in sys.argv[1:])
print(json.dumps({
    "programs": [p for p in programs if shutil.which(p)],
    "packages": [p for p in names if (packages / p).exists()],
    "left behind": [p for p in ("/build", "/root/.cache", "/tmp/.cache") if any(pathlib.Path(p).glob("**/*"))],
    "largest": dict(sorted(sizes.items(), key=lambda item: -item[1])[:6]),
}))
"""
# As the service does: a device that is not there is told from one that fails.
WITHOUT_CUDA = """
import torch, torchvision
assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
kept = torchvision.ops.nms(torch.tensor([[0, 0, 9, 9], [0, 0, 9, 8.0]]), torch.tensor([0.9, 0.8]), 0.5)
assert kept.tolist() == [0], kept
try:
    torch.zeros(1, device="cuda")
except RuntimeError as error:
    print(str(error).split(". ")[0])
"""


def inspect(engine: Docker, image: str) -> None:
    """What the image says about itself, what is in it, and how large it and its layers are."""
    [described] = json.loads(engine.run("image", "inspect", image))
    config = described["Config"]
    assert "MASKSERVE_MODEL=shapes" in config["Env"], config["Env"]
    assert config["User"] == "10001:10001", config["User"]
    assert config["StopSignal"] == "SIGTERM", config["StopSignal"]
    assert config["Entrypoint"] == ["maskserve"], config["Entrypoint"]
    assert config["Healthcheck"]["Test"] == ["CMD", "maskserve", "healthcheck"], config["Healthcheck"]
    size = described["Size"]
    print(f"the image: {size / 1e9:.2f} GB")
    for line in engine.run("history", "--format", "{{.Size}}\t{{.CreatedBy}}", image).splitlines():
        if found := re.match(r"(\S+)\tCOPY (/opt/\S+)", line):
            print(f"  {found[2]}: {found[1]}")
    assert size <= LARGEST_BYTES, f"more than {LARGEST_BYTES / 1e9} GB"
    look = ["run", "--rm", "--user", "0", "--entrypoint", "python3", image, "-c"]
    found = json.loads(engine.run(*look, LOOK, " ".join(PROGRAMS), " ".join(PACKAGES)))
    print("  largest packages, MB:", {name: round(size / 1e6) for name, size in found.pop("largest").items()})
    assert not any(found.values()), f"in the image: {found}"
    print(f"  a tensor on a GPU: {engine.run(*look, WITHOUT_CUDA)}")
    refused = engine.run("run", "--rm", "--env", "MASKSERVE_DEVICE=cuda", image, check=False)
    assert "cuda" in refused, refused
    assert "Traceback" not in refused, refused
    dockerfile = ["build", "--quiet", "--build-arg", "TORCH=rocm", "--target", "dependencies", ROOT]
    assert "it must be cuda or cpu" in engine.run(*dockerfile, check=False)


def confined(stack: Stack) -> None:
    """Who a replica is and what it may write, as seen from inside."""

    def inside(*command: str) -> str:
        return stack.compose("exec", "-T", "cpu-1", *command, check=False)

    assert inside("python3", "-c", "import os; print(os.getuid(), os.getgid())") == "10001 10001"
    for path in ("/x", "/opt/maskserve/x", "/opt/service/x", "/opt/weights/x"):
        assert "Read-only file system" in inside("touch", path), f"{path} could be written"
    assert inside("touch", "/tmp/x") == ""
    limits = stack.state("cpu-1")["HostConfig"]
    assert (limits["Memory"], limits["PidsLimit"], limits["ReadonlyRootfs"]) == (MEMORY, 256, True), limits
    assert limits["NanoCpus"] == 10**9, limits
    print("a replica: user 10001, writes to /tmp only, one core, 4 GB and 256 processes at most")
