"""The shipped gateway configuration in a real nginx on loopback, and what its log says of every request."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy.tests.processes import PATIENCE, ROOT, free_port

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SHIPPED = ROOT / "deploy" / "gateway"
# Files that take the place of those of the same names in front of Ray.
FOR_RAY = ROOT / "deploy" / "ray" / "gateway"
# Between the addresses that nginx tried, and behind those that it tried before it started again.
TRIED = re.compile(r", | : ")


@dataclass(frozen=True, slots=True)
class Passed:
    """One request as the gateway logged it."""

    id: str
    status: int
    replicas: list[str]  # every address that was tried, in order
    statuses: list[str]  # what each answered

    @property
    def replayed(self) -> bool:
        """Whether more than one replica was tried."""
        return len(self.replicas) > 1


def passed(log: str) -> list[Passed]:
    """Every request to a replica that the gateway has logged."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [
        Passed(
            line["id"], line["status"], TRIED.split(line["replicas"]), TRIED.split(line["replica_statuses"])
        )
        for line in lines
        if line["replicas"]
    ]


class Gateway:
    """nginx with deploy/gateway, of which only the addresses are changed."""

    def __init__(self, folder: Path, replicas: Sequence[str], *, for_ray: bool = False) -> None:
        """Start it.

        Args:
            folder: empty, for configuration, temporary files and log.
            replicas: their addresses.
            for_ray: with what the configuration has in front of Ray.
        """
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        configuration = folder / "configuration"
        shutil.copytree(SHIPPED, configuration)
        if for_ray:
            shutil.copytree(FOR_RAY, configuration, dirs_exist_ok=True)
        else:
            change(configuration / "replicas.conf", r"\n *resolver [^;]*;", "")
        change(configuration / "nginx.conf", r"listen 8080 ", f"listen 127.0.0.1:{self.port} ")
        # One server for each process takes the place of the name that Docker resolves to all of them, or of the nodes.
        servers = "".join(rf"    server {address}\2;\n" for address in replicas)
        change(configuration / "replicas.conf", r"(    server \S+?(?: resolve)?( [^;]*);\n)+", servers)
        folder.chmod(0o755)  # nginx's workers are another user if we are root
        command = ["nginx", "-p", str(folder), "-c", str(configuration / "nginx.conf")]
        subprocess.run([*command, "-t", "-q"], check=True)
        self.log = folder / "access.log"
        self.errors = folder / "error.log"
        with self.log.open("w") as log, self.errors.open("w") as errors:
            self.process = subprocess.Popen([*command, "-g", "daemon off;"], stdout=log, stderr=errors)

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)


def change(file: Path, pattern: str, replacement: str) -> None:
    """Replace the one place in the file that the pattern matches."""
    text, count = re.subn(pattern, replacement, file.read_text())
    assert count == 1, f"{file}: {pattern} is there {count} times"
    file.write_text(text)
