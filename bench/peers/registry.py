"""Who is compared: each peer's program, environment and precision."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).resolve().parent
PROGRAMS = HERE / "programs"
REQUIREMENTS = HERE / "requirements"
# What `maskserve serve` tells glibc (app/runtime/allocator.py), in its own variables.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_ARENA_MAX": "1",
}


OUR_PATH = "/segment?score_threshold={score}"


@dataclass(frozen=True)
class Peer:
    """An engine or a server with a program that runs it."""

    name: str
    title: str
    # For the comparison with ours of the same.
    precision: str
    # In programs/, without suffix.
    program: str
    # In requirements/, without suffix; "": it runs in the environment of bench/peers itself, which is ours.
    requirements: str
    # Handed to the program, where it is not the precision.
    variant: str = ""
    # Whether the program has something to export, convert or quantize first.
    prepares: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    # Servers: where and how a JPEG file is sent. "{score}" stands for the threshold, if it is not the program's.
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_server(self) -> bool:
        return bool(self.path)

    @property
    def is_ours(self) -> bool:
        return not self.requirements

    @property
    def script(self) -> Path:
        return PROGRAMS / f"{self.program}.py"

    def python(self, environments: Path) -> Path:
        """The interpreter of its environment."""
        return (
            environments / self.requirements / "bin" / "python" if self.requirements else Path(sys.executable)
        )


ENGINES = (
    Peer("eager", "torchvision, eager", "float32", "eager", "torchvision"),
    Peer(
        "eager-kept", "torchvision, eager, freed memory kept", "float32", "eager", "torchvision",
        environment=KEEP_FREED_MEMORY,
    ),
    Peer("compile", "torchvision, torch.compile", "float32", "eager", "torchvision", "compiled"),
    Peer("onnxruntime", "ONNX Runtime", "float32", "onnx_runtime", "onnxruntime", prepares=True),
    Peer("onnxruntime-int8", "ONNX Runtime", "int8", "onnx_runtime", "onnxruntime", prepares=True),
    Peer("openvino", "OpenVINO", "float32", "open_vino", "openvino", prepares=True),
    Peer("openvino-bfloat16", "OpenVINO", "bfloat16", "open_vino", "openvino", prepares=True),
    Peer("openvino-int8", "OpenVINO, NNCF", "int8", "open_vino", "openvino", prepares=True),
    *(
        Peer(f"maskserve-{precision}", "maskserve", precision, "maskserve_engine", "")
        for precision in ("float32", "bfloat16", "int8")
    ),
)  # fmt: skip
SERVERS = (
    Peer("fastapi", "FastAPI around torchvision", "float32", "plain_fastapi", "fastapi", path="/segment"),
    Peer("litserve", "LitServe", "float32", "lit_serve", "litserve", path="/segment"),
    Peer("ray", "Ray Serve", "float32", "ray_serve", "ray", path="/segment"),
    Peer(
        "pytriton", "PyTriton (Triton's Python backend)", "float32", "py_triton", "pytriton",
        path="/v2/models/segment/infer", headers={"Inference-Header-Content-Length": "0"},
    ),
    Peer("torchserve", "TorchServe", "float32", "torch_serve", "torchserve", path="/predictions/segment"),
    *(
        Peer(f"serve-{precision}", "maskserve serve", precision, "maskserve_serve", "", path=OUR_PATH)
        for precision in ("float32", "bfloat16", "int8")
    ),
)  # fmt: skip


def choose(only: str | None, names: str | None) -> list[Peer]:
    """The peers of `--only` and `--peers`, in the table's order. Exits where a name is not one."""
    peers = [*(ENGINES if only != "servers" else ()), *(SERVERS if only != "engines" else ())]
    if names is None:
        return peers
    asked = names.split(",")
    unknown = [name for name in asked if name not in [peer.name for peer in peers]]
    if unknown:
        sys.exit(f"no such peer: {unknown[0]}; there are {', '.join(peer.name for peer in peers)}")
    return [peer for peer in peers if peer.name in asked]
