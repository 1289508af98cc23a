"""One container, run by runc as Docker runs it: the image's user, command and environment, a read-only root."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.tests.processes import answers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PATIENCE = 300.0  # seconds, met only when something hangs


class Container:
    """A running container; it is killed at the end of the `with` block if it has not ended."""

    def __init__(self, root: Path, config: dict[str, Any], settings: Mapping[str, str]) -> None:
        """root: the image's file system. config: Docker's `Config` of the image. settings: more environment."""
        self.bundle = Path(tempfile.mkdtemp(prefix="maskserve-"))
        self.name = self.bundle.name
        variables = [*config["Env"], *(f"{name}={value}" for name, value in settings.items())]
        command = [*config["Entrypoint"], *config["Cmd"]]
        self._write(root, config["User"], variables, command, config["WorkingDir"])
        self.log = (self.bundle / "log").open("w")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            ["runc", "run", "--bundle", self.bundle, self.name],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )

    def _write(self, root: Path, user: str, variables: list[str], command: list[str], folder: str) -> None:
        """The OCI bundle: runc's own defaults, narrowed as docker-compose.yml narrows Docker's."""
        subprocess.run(["runc", "spec", "--bundle", self.bundle], check=True)
        path = self.bundle / "config.json"
        spec = json.loads(path.read_text())
        uid, gid = map(int, user.split(":"))
        spec["root"] = {"path": str(root), "readonly": True}
        spec["process"] |= {
            "terminal": False,
            "user": {"uid": uid, "gid": gid},
            "env": variables,
            "args": command,
            "cwd": folder,
            "capabilities": {},
            "noNewPrivileges": True,
        }
        options = ["nosuid", "nodev", "noexec", "size=64m", "mode=1777"]
        spec["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": options})
        # The host's network, so that the port is reached without a bridge.
        spec["linux"]["namespaces"] = [ns for ns in spec["linux"]["namespaces"] if ns["type"] != "network"]
        path.write_text(json.dumps(spec))

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.signal("KILL")
            self.process.wait(PATIENCE)
        subprocess.run(["runc", "delete", "--force", self.name], capture_output=True, check=False)
        self.log.close()
        shutil.rmtree(self.bundle)

    def wait_until_ready(self, url: str) -> float:
        """Seconds from the container's start until /readyz was green."""
        while time.monotonic() < self.started + PATIENCE:
            if self.process.poll() is not None:
                break
            if answers(f"{url}/readyz"):
                return time.monotonic() - self.started
            time.sleep(0.05)
        raise AssertionError(f"the container did not become ready:\n{Path(self.log.name).read_text()}")

    def execute(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a program inside, as the container's user."""
        return subprocess.run(
            ["runc", "exec", self.name, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def pid(self) -> int:
        """Process 1 of the container, as the host numbers it."""
        state = subprocess.run(["runc", "state", self.name], stdout=subprocess.PIPE, text=True, check=True)
        return int(json.loads(state.stdout)["pid"])

    def state(self) -> str:
        """`running` or `stopped`."""
        return "running" if self.process.poll() is None else "stopped"

    def memory(self) -> str:
        """What process 1 holds: all that is resident, its peak, and what is its own rather than a file's pages."""
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{self.pid()}/status").read_text().splitlines()
        )
        now, peak, own = (int(status[name].split()[0]) / 1e3 for name in ("VmRSS", "VmHWM", "RssAnon"))
        return (
            f"{now:.0f} MB resident, at most {peak:.0f} MB so far; {own:.0f} MB of it not shared with files"
        )

    def signal(self, name: str) -> None:
        """Send process 1 a signal."""
        subprocess.run(["runc", "kill", self.name, name], check=True)

    def wait(self) -> int:
        """The exit code, once it has ended."""
        return self.process.wait(PATIENCE)
