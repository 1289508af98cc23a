"""What Ray is told fits the service and its gateway, and a replica is Ray's to use only when its model is ready.

Ray itself is not installed here: `make ray-test` runs all of it.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from app.settings import Settings, variable
from tests.app.fakes import FakeEngine

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
CORES = 3


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "deploy/ray/rayservice.yaml").read_text())
    return loaded


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """maskserve.ray, where what it takes from Ray only tells what it was given."""
    ray: Any = types.ModuleType("ray")
    ray.get_runtime_context = lambda: types.SimpleNamespace(get_assigned_resources=lambda: {"CPU": CORES})
    ray.serve = types.ModuleType("ray.serve")

    def deployment(replica: object, **options: object) -> Any:
        return types.SimpleNamespace(
            bind=lambda arguments: types.SimpleNamespace(arguments=arguments, replica=replica, **options)
        )

    ray.serve.deployment = deployment
    ray.serve.ingress = lambda: lambda replica: replica
    ray.serve.config = types.ModuleType("ray.serve.config")
    ray.serve.config.BackpressureConfig = types.SimpleNamespace
    for name, made in {"ray": ray, "ray.serve": ray.serve, "ray.serve.config": ray.serve.config}.items():
        monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.delitem(sys.modules, "maskserve.ray", raising=False)
    monkeypatch.setenv("OMP_DYNAMIC", "false")
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    monkeypatch.setattr("app.observability.logs.configure_logging", lambda _: None)
    yield importlib.import_module("maskserve.ray")
    sys.modules.pop("maskserve.ray", None)


def test_kuberay_serves_what_serve_run_does(config: dict[str, Any], manifest: dict[str, Any]) -> None:
    assert yaml.safe_load(manifest["spec"]["serveConfigV2"]) == config


def test_the_configuration_names_what_there_is(config: dict[str, Any], module: Any) -> None:
    [application] = config["applications"]
    [deployment] = application["deployments"]
    for path in (application["import_path"], deployment["autoscaling_config"]["policy"]["policy_function"]):
        name, _, attribute = path.partition(":")
        assert name == module.__name__
        assert callable(getattr(module, attribute))
    built = module.build(application["args"])
    assert built.name == deployment["name"]
    assert built.arguments == application["args"]


def test_the_service_refuses_before_ray_does_and_has_the_time_that_a_request_may_take(module: Any) -> None:
    built = module.build({"max_queue_requests": 300, "request_timeout": 20})
    assert built.max_ongoing_requests > 300
    assert built.backpressure_config.status_code == 429
    assert built.graceful_shutdown_timeout_s > 20


def test_weights_are_kept_on_the_node(manifest: dict[str, Any]) -> None:
    [group] = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    spec = group["template"]["spec"]
    [worker], [owner] = spec["containers"], spec["initContainers"]
    settings = {entry["name"]: entry["value"] for entry in worker["env"]}
    assert {name for name in settings if name.startswith("MASKSERVE_")} <= {
        variable(field) for field in Settings.model_fields
    }
    [mount] = worker["volumeMounts"]
    assert settings["MASKSERVE_WEIGHTS_DIR"] == mount["mountPath"]
    assert mount in owner["volumeMounts"]
    assert owner["command"][-1] == mount["mountPath"]
    assert mount["name"] in {volume["name"] for volume in spec["volumes"]}


def test_limits_of_time_fit_each_other(config: dict[str, Any], manifest: dict[str, Any], module: Any) -> None:
    closing = Settings().request_timeout + module.CLOSING_SECONDS
    spec = manifest["spec"]
    assert spec["rayClusterDeletionDelaySeconds"] >= closing
    [workers] = spec["rayClusterConfig"]["workerGroupSpecs"]
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] > closing
    # For which gateways keep an idle connection, where they do.
    assert config["http_options"]["keep_alive_timeout_s"] > 60
    # Far below the limit at which clients get 429.
    [deployment] = config["applications"][0]["deployments"]
    assert deployment["autoscaling_config"]["target_ongoing_requests"] <= Settings().max_queue_requests / 8


def test_bodies_do_not_pass_through_rays_own_proxy_and_no_replica_runs_on_the_head(
    manifest: dict[str, Any],
) -> None:
    cluster = manifest["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        assert {"name": "RAY_SERVE_ENABLE_HA_PROXY", "value": "1"} in container["env"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_each_replica_has_about_the_target_of_admitted_requests(module: Any) -> None:
    context = types.SimpleNamespace(
        aggregated_metrics={module.QUEUE_REQUESTS: {"a": 10.0, "b": 4.0}},
        target_num_replicas=2,
        config=types.SimpleNamespace(target_ongoing_requests=4),
    )
    assert module.queue_policy(context) == (3.5, {})
    context.aggregated_metrics = {}
    assert module.queue_policy(context) == (2, {})


class Lifespan:
    """What Ray does with an application's lifespan."""

    def __init__(self, application: Callable[..., Any]) -> None:
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.task = asyncio.ensure_future(
            application({"type": "lifespan", "state": {}}, self.received.get, self.sent.put)
        )

    async def tell(self, event: str) -> dict[str, Any]:
        await self.received.put({"type": f"lifespan.{event}"})
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        async with asyncio.timeout(20):
            return await self.sent.get()


def test_a_replica_starts_when_its_model_is_ready_and_tells_its_health_and_queue(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(module, "FAILED_SECONDS", 0)
    monkeypatch.setattr(module.os, "_exit", ended.append)

    async def live() -> None:
        begun, loading = threading.Event(), threading.Event()

        class Replica(module.Replica):  # type: ignore[misc]
            def load_engine(self) -> FakeEngine:
                begun.set()
                loading.wait(20)
                return FakeEngine()

        replica = Replica({"decode_processes": 1})
        assert replica.settings.threads == CORES
        app = replica.__serve_build_asgi_app__()
        lifespan = Lifespan(app)
        await lifespan.received.put({"type": "lifespan.startup"})
        while not begun.is_set():
            await asyncio.sleep(0)
        assert lifespan.sent.empty()
        assert not replica.started
        loading.set()
        assert (await lifespan.answer())["type"] == "lifespan.startup.complete"
        for behind_haproxy in (False, True):
            monkeypatch.setattr(module, "BEHIND_HAPROXY", behind_haproxy)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ray") as client:
                answer = await client.get("/readyz", headers={"X-Request-ID": "mine"})
            assert answer.status_code == 200
            # Ray adds it to every answer.
            assert "X-Request-ID" not in answer.headers
            assert answer.headers.get_list("Connection") == ["close"] * behind_haproxy
        await replica.check_health()
        assert await replica.record_autoscaling_stats() == {module.QUEUE_REQUESTS: 0.0}
        with replica.running.admission.admit(100):
            assert await replica.record_autoscaling_stats() == {module.QUEUE_REQUESTS: 1.0}
        replica.running._fail("The device has failed.")
        with pytest.raises(RuntimeError, match=r"The device has failed\."):
            await replica.check_health()
        while not ended:
            await asyncio.sleep(0)
        assert ended == [1]
        assert (await lifespan.tell("shutdown"))["type"] == "lifespan.shutdown.complete"
        await lifespan.task

    asyncio.run(live())


def test_a_model_that_cannot_be_loaded_fails_the_start_of_the_replica(module: Any) -> None:
    async def live() -> None:
        class Replica(module.Replica):  # type: ignore[misc]
            def load_engine(self) -> FakeEngine:
                raise RuntimeError("no such model")

        lifespan = Lifespan(Replica({"decode_processes": 1}).__serve_build_asgi_app__())
        answer = await lifespan.tell("startup")
        assert answer["type"] == "lifespan.startup.failed"
        assert "The model could not be loaded." in answer["message"]
        await lifespan.tell("shutdown")
        await lifespan.task

    asyncio.run(live())
