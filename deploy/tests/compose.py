"""`make compose-test`: the shipped docker-compose.yml on a real Docker Engine, and what clients see of its faults.

    python deploy/tests/compose.py [--rate 2] [--rows recreated,killed] [--folder FOLDER] [--keep]

Builds the image for CPUs with `shapes`, starts gateway, replicas and Prometheus, and looks into the image.
Then each row under a steady load. Prints the table of docs/deployment.md. Where no Docker Engine runs, it sets one up
in the folder (deploy/tests/engine.py).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from deploy.tests import image
from deploy.tests.engine import docker
from deploy.tests.faults import ROWS, Faults
from deploy.tests.stack import Stack

FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "maskserve" / "compose-test"


def main() -> int:
    """Build, start, look, break; 0 if everything was as it should be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second of the steady load")
    parser.add_argument("--rows", default=",".join(ROWS), help="those of the table; all by default")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for an engine of ours")
    parser.add_argument("--pip-conf", type=Path, help="pip's configuration, if packages come from a mirror")
    parser.add_argument("--uv-toml", type=Path, help="uv's configuration, likewise")
    given = parser.parse_args()
    rows = given.rows.split(",")
    if unknown := set(rows) - set(ROWS):
        parser.error(f"no rows are called {', '.join(sorted(unknown))}: there are {', '.join(ROWS)}")
    with docker(given.folder.resolve()) as engine, tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        stack = Stack(engine, Path(folder), {"pip.conf": given.pip_conf, "uv.toml": given.uv_toml})
        started = time.monotonic()
        stack.compose("build")
        print(f"built in {time.monotonic() - started:.0f} s", flush=True)
        image.inspect(engine, stack.image)
        try:
            started = time.monotonic()
            stack.compose("up", "--wait", "gateway", "cpu-1", "cpu-2", "prometheus")
            print(f"up --wait: {time.monotonic() - started:.0f} s", flush=True)
            image.confined(stack)
            failures = asyncio.run(Faults(stack, given.rate).run(rows))
        finally:
            stack.compose("down", "--volumes", "--timeout", "1", check=False)
    for failure in failures:
        print(failure)
    print("compose-test:", "failed" if failures else "passed")
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
