"""The shipped docker-compose.yml as a project of its own, with what a test must have otherwise."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deploy.tests.gateway import Passed, passed
from deploy.tests.processes import ROOT, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploy.tests.engine import Docker

CERTIFICATES = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
REPLICAS = ("cpu-1", "cpu-2")
# So that a fault of seconds fires what waits for minutes, and a device that hangs is found in a test's time.
SHORTER = {
    "[5m]": "[20s]",
    "[6m]": "[4s]",
    "[10m]": "[20s]",
    "for: 10m": "for: 4s",
    "for: 5m": "for: 2s",
    "for: 1m": "for: 2s",
}
HEARTBEAT_TIMEOUT = 12
MEMORY = 4 << 30  # bytes that a replica may take


class Stack:
    """Gateway, two replicas and Prometheus."""

    def __init__(self, engine: Docker, folder: Path, build_secrets: Mapping[str, Path | None]) -> None:
        """What is changed is only the test's.

        Args:
            engine: that it runs on.
            folder: empty, for the files of this test.
            build_secrets: of the build, besides the certificates: see docs/deployment.md.
        """
        self.engine = engine
        self.folder = folder
        self.image = "maskserve:compose-test"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # A key that the clients send from the beginning, and that is asked for once `keys` is used.
        self.key, self.keys = make_key(folder)
        self.environment = {
            "MODEL": "shapes",
            "TORCH": "cpu",
            "TAG": "compose-test",
            "REPLICA_CPUS": "1",
            "REPLICA_MEMORY": f"{MEMORY >> 30}g",
            "API_KEYS_FILE": "",
            "GATEWAY_PORT": str(self.port),
            "METRICS_KEY_FILE": str(folder / "metrics-key"),
        }
        self.override: dict[str, Any] = {"services": {}, "secrets": {}}
        for name, file in {"ca-certificates": CERTIFICATES, **build_secrets}.items():
            if file is not None and file.exists():
                self.override["secrets"][name] = {"file": str(file)}
        for replica in REPLICAS:
            settings = {"MASKSERVE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT)}
            self.override["services"][replica] = {"environment": settings}
        # The one that is built for all.
        self.override["services"]["cpu-1"]["build"] = {"secrets": list(self.override["secrets"])}
        mount = f"{shorter_alerts(folder)}:/etc/prometheus:ro"
        self.override["services"]["prometheus"] = {"volumes": [mount]}
        self.write()

    def write(self) -> None:
        """The changes, for the next command."""
        (self.folder / "override.yml").write_text(yaml.safe_dump(self.override))

    def compose(self, *arguments: object, check: bool = True, **variables: str) -> str:
        """`docker compose`; what it printed. variables: more of the environment."""
        files = ["-f", ROOT / "docker-compose.yml", "-f", self.folder / "override.yml"]
        options = ["--project-name", "maskserve-test", "--project-directory", ROOT, *files]
        return self.engine.run(
            "compose", "--ansi", "never", *options, *arguments, check=check, **self.environment | variables
        )

    def container(self, service: str) -> str:
        """The id of a service's container."""
        return self.compose("ps", "--all", "--quiet", service)

    def state(self, service: str) -> dict[str, Any]:
        """What Docker says of it."""
        [described] = json.loads(self.engine.run("inspect", self.container(service)))
        found: dict[str, Any] = described
        return found

    def healthy(self, service: str) -> bool:
        """Whether its health check is green."""
        state = self.state(service)["State"]
        return bool(state["Running"] and state["Health"]["Status"] == "healthy")

    def as_root(self, program: str, *arguments: object, inside: str = "") -> str:
        """Run Python as the host's root, who sees the containers' processes. inside: the network of a service."""
        options = ["--rm", "--pid", "host", "--privileged", "--user", "0", "--entrypoint", "python3"]
        options += ["--network", f"container:{self.container(inside)}"] if inside else []
        return self.engine.run("run", *options, self.image, "-c", program, *arguments)

    def log(self) -> str:
        """The gateway's, access and errors."""
        return self.engine.run("logs", self.container("gateway"))

    def passed(self, tag: str) -> list[Passed]:
        """What the gateway logged of the requests whose id begins with that."""
        return [request for request in passed(self.log()) if request.id.startswith(f"{tag}-")]

    def alerts(self) -> dict[str, str]:
        """Of each alert that Prometheus has: `pending` or `firing`."""
        url = "http://127.0.0.1:9090/api/v1/alerts"
        answer = self.compose("exec", "-T", "prometheus", "wget", "-q", "-O", "-", url)
        return {
            alert["labels"]["alertname"]: alert["state"] for alert in json.loads(answer)["data"]["alerts"]
        }

    def scraped(self) -> list[float]:
        """`up` of every replica, as Prometheus has it."""
        url = "http://127.0.0.1:9090/api/v1/query?query=up"
        answer = self.compose("exec", "-T", "prometheus", "wget", "-q", "-O", "-", url)
        return [float(result["value"][1]) for result in json.loads(answer)["data"]["result"]]


def make_key(folder: Path) -> tuple[str, Path]:
    """A key, and the file that lets the service know it; `metrics-key` has the key itself."""
    key = secrets.token_urlsafe(32)
    keys = folder / "keys"
    keys.write_text(f"{hashlib.sha256(key.encode()).hexdigest()} compose-test\n")
    (folder / "metrics-key").write_text(key)
    return key, keys


def shorter_alerts(folder: Path) -> Path:
    """deploy/prometheus with shorter times."""
    made = folder / "prometheus"
    shutil.copytree(ROOT / "deploy" / "prometheus", made)
    for file in made.iterdir():
        text = file.read_text()
        for shipped, shorter in SHORTER.items():
            text = text.replace(shipped, shorter)
        file.write_text(
            text.replace("_interval: 15s", "_interval: 2s").replace("_interval: 5s", "_interval: 2s")
        )
        file.chmod(0o644)
    made.chmod(0o755)
    return made
