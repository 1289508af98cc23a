"""TorchServe with one worker; needs Java. It packs programs/torch_serve_handler.py and runs in the foreground."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

here, programs = Path(sys.executable).parent, Path(__file__).resolve().parent
folder, port = Path(sys.argv[1]), int(sys.argv[3])
store = folder / "torchserve"
store.mkdir(exist_ok=True)
subprocess.run(
    [
        here / "torch-model-archiver", "--model-name", "segment", "--version", "1", "--force",
        "--handler", programs / "torch_serve_handler.py", "--extra-files", programs / "network.py",
        "--export-path", store,
    ],
    check=True, stdout=sys.stderr,
)  # fmt: skip
settings = {
    "inference_address": f"http://127.0.0.1:{port}",
    "management_address": f"http://127.0.0.1:{port + 1}",
    "metrics_address": f"http://127.0.0.1:{port + 2}",
    "grpc_inference_port": port + 3,
    "grpc_management_port": port + 4,
    "default_workers_per_model": 1,
    "default_response_timeout": 600,
    "disable_token_authorization": "true",
}
(store / "config.properties").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
# Its configuration, logs and the file with its process's number.
os.chdir(store)
os.environ |= {"PEERS_FOLDER": str(folder), "TMPDIR": str(store), "PATH": f"{here}:{os.environ['PATH']}"}
options = ["--start", "--foreground", "--ncs", "--disable-token-auth", "--ts-config", "config.properties"]
options += ["--model-store", str(store), "--models", "segment=segment.mar"]
os.execv(here / "torchserve", [str(here / "torchserve"), *options])
