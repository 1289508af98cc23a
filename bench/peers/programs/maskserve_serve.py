"""`maskserve serve`, as bench/peers calls it: FOLDER PRECISION PORT."""

from __future__ import annotations

import os
import sys
from pathlib import Path

folder, precision, port = sys.argv[1:]
settings = {
    "MODEL": f"{folder}/model.safetensors",
    "PRECISION": precision,
    "PORT": port,
    "THREADS": os.environ["OMP_NUM_THREADS"],
    "REQUEST_TIMEOUT": "600",
}
os.environ |= {f"MASKSERVE_{name}": value for name, value in settings.items()}
os.chdir(Path(__file__).resolve().parents[3])
os.execv(sys.executable, [sys.executable, "-m", "app.cli", "serve"])
