"""A Ray cluster of several nodes on this machine, each with its own proxy, and the shipped configuration on it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

# All of it on loopback: Ray looks for another address otherwise. It reads this when it is imported.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
# And so it reads this: the cluster asks for a token, which is not that of this machine's user.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

import ray
import yaml
from ray import NodeID, serve
from ray.cluster_utils import Cluster
from ray.serve.schema import ServeDeploySchema

from deploy.tests.processes import ROOT, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NODES = 3
PATIENCE = 600.0  # seconds, met only when something hangs
STORE = 100 << 20  # bytes of each node's object store
# Below the folder, for sockets and logs.
SESSION = "session"
# What listens for a raylet, and what its port is called.
AGENT_PORTS = (
    "metrics_agent_port",
    "metrics_export_port",
    "runtime_env_agent_port",
    "dashboard_agent_listen_port",
)
APPLICATION = "maskserve"
# How Ray calls the process of a replica.
REPLICA = b"ray::ServeReplica:maskserve:"


class RayCluster:
    """A head without replicas, and nodes with one each."""

    def __init__(self, folder: Path, proxy: str) -> None:
        """folder: for what Ray writes. proxy: "haproxy", or "ray" for its own in Python."""
        self.folder = folder
        self.proxy = proxy
        self.ports = [free_port() for _ in range(NODES + 1)]
        os.environ |= {
            "PYTHONPATH": str(ROOT),
            # Ray writes the cluster's address below it, else over that of a cluster of the user's, or nowhere at all.
            "RAY_TMPDIR": str(folder),
            "RAY_SERVE_ENABLE_HA_PROXY": str(int(proxy == "haproxy")),
            "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            # Below it each node has a folder.
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            # No gateway needs it to notice that a replica leaves: all replay.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
            "RAY_USAGE_STATS_ENABLED": "0",
            # What other programs take of the memory is not these nodes' fault.
            "RAY_memory_monitor_refresh_ms": "0",
            # All of it starts at once, and maybe on a busy machine.
            "RAY_worker_register_timeout_seconds": f"{PATIENCE:.0f}",
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
            "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "120",
            # A node that is lost is missed sooner than after half a minute.
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "5",
            "MASKSERVE_DECODE_PROCESSES": "1",
            "MASKSERVE_LOG_LEVEL": "warning",
        }
        # With Ray's own handlers of exit and signals, only the main thread could add nodes, and it sends requests.
        self.cluster = Cluster(shutdown_at_exit=False)
        self.nodes: list[Any] = []

    def __enter__(self) -> RayCluster:
        head = {"num_cpus": 0, "include_dashboard": False, "session_name": SESSION}
        (self.folder / "ray").mkdir()
        try:
            self.cluster.add_node(temp_dir=str(self.folder), **head, **self.node_arguments(0))
            for number in range(1, NODES + 1):
                self.add_node(number)
            ray.init(address=self.cluster.address, log_to_driver=False, logging_level="warning")
        except BaseException:
            kill(descendants(os.getpid()))
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            serve.shutdown()
            ray.shutdown()
        finally:
            kill(descendants(os.getpid()))

    def node_arguments(self, number: int) -> dict[str, Any]:
        """What each node must have for itself, because all are on one machine."""
        node = secrets.token_hex(NodeID.size())
        ports = {name: free_port() for name in AGENT_PORTS}
        # A raylet ends if its agents do not say within 15 seconds where they listen, which is too short on a busy
        # machine. It does not wait for a port that it was told, and the last one, which it is not told, is in a file.
        session = self.folder / SESSION
        session.mkdir(exist_ok=True)
        (session / f"{AGENT_PORTS[-1]}_{node}").write_text(str(ports[AGENT_PORTS[-1]]))
        environment = {
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node,
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        }
        if number:
            environment["RAY_SERVE_WORKER_PROXY_HTTP_PORT"] = str(self.ports[number])
        return {
            "node_ip_address": "127.0.0.1",
            "object_store_memory": STORE,
            "env_vars": environment,
            **ports,
        }

    def proxies(self) -> list[str]:
        """The address of each node's proxy, while no node is lost."""
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def add_node(self, number: int) -> None:
        """A node with room for one replica."""
        self.nodes.append(self.cluster.add_node(num_cpus=1, **self.node_arguments(number)))

    def lose_node(self) -> None:
        """End all processes of the last node at once, as if its machine were gone."""
        node = self.nodes.pop()
        [raylet] = node.all_processes["raylet"]
        kill([raylet.process.pid, *descendants(raylet.process.pid)])
        self.cluster.remove_node(node, allow_graceful=False)

    def deploy(self, replicas: int, **settings: object) -> None:
        """Serve so many replicas of the shipped configuration, and wait until every proxy knows them.

        Args:
            replicas: how many, in place of the autoscaling.
            settings: of the service; other ones than before replace the replicas.
        """
        self.start(replicas, **settings)
        self.until(lambda: self.running() == replicas, f"{replicas} replicas run")

    def start(self, replicas: int, **settings: object) -> None:
        """The same, without waiting."""
        shipped = ServeDeploySchema.model_validate(
            yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
        )
        config = shipped.model_dump(exclude_unset=True)
        config["http_options"] |= {"host": "127.0.0.1", "port": self.ports[0]}
        [application] = config["applications"]
        application["import_path"] = "deploy.tests.simulated:build"
        application["args"] = {"request_timeout": 60, **settings}
        [deployment] = application["deployments"]
        del deployment["autoscaling_config"]
        deployment |= {"num_replicas": replicas, "ray_actor_options": {"num_cpus": 1}}
        wanted = ServeDeploySchema.model_validate(config)
        serve.start(proxy_location=wanted.proxy_location, http_options=config["http_options"])
        from ray.serve.context import _get_global_client  # noqa: PLC0415 - as `serve deploy` does

        _get_global_client().deploy_apps(wanted, _blocking=False)

    def running(self) -> int:
        """Replicas that take requests, if nothing else is still to be done."""
        status = serve.status().applications.get(APPLICATION)
        if status is None or status.status != "RUNNING":
            return 0
        [deployment] = status.deployments.values()
        states = {str(getattr(state, "value", state)): n for state, n in deployment.replica_states.items()}
        return 0 if set(states) - {"RUNNING"} else states.get("RUNNING", 0)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for it."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}; {serve.status()}"
            time.sleep(0.5)

    def clear(self) -> None:
        """End the service, so that its cores are free."""
        serve.delete(APPLICATION)
        self.until(lambda: not processes(REPLICA), "the replicas have ended")


def processes(title: bytes) -> list[int]:
    """Those of the cluster whose command line begins so."""
    found = []
    for process in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(title):
                found.append(process)
    return found


def descendants(process: int) -> list[int]:
    """The processes that it started, those that they started, and so on."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit():
                # Behind the name, which may hold anything: the state, and the parent.
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(folder.name))
    found = [process]
    for ancestor in found:
        found += children.get(ancestor, [])
    return found[1:]


def kill(chosen: Iterable[int]) -> None:
    """SIGKILL for all that are left of them."""
    for process in chosen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
