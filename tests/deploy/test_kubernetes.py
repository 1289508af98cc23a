"""The Kubernetes manifests: valid for the API, base and overlays alike, and their numbers fit the service."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.main import create_app
from app.settings import Settings, variable

ROOT = Path(__file__).parents[2] / "deploy/kubernetes"
OLDEST = "1.30"  # as base/kustomization.yaml says
OVERLAYS = ["cpu", "gpu"]
LABEL = {"app.kubernetes.io/name": "maskserve"}

Manifest = dict[str, Any]


def render(folder: Path, resources: dict[str, Manifest] | None = None) -> dict[str, Manifest]:
    """What `kubectl kustomize` makes of those features that are used here: kind → manifest.

    Compared with kubectl 1.37's own output when it was written.
    """
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    resources = {} if resources is None else resources
    known = {"apiVersion", "kind", "resources", "components", "patches"}
    assert kustomization.keys() <= known
    for name in kustomization.get("resources", []):
        if (folder / name).is_dir():
            render(folder / name, resources)
        else:
            manifest = yaml.safe_load((folder / name).read_text())
            resources[manifest["kind"]] = manifest
    for name in kustomization.get("components", []):
        render(folder / name, resources)
    for patch in kustomization.get("patches", []):
        if "path" in patch:
            change = yaml.safe_load((folder / patch["path"]).read_text())
            resources[change["kind"]] = merged(resources[change["kind"]], change)
        elif "target" not in patch:
            change = yaml.safe_load(patch["patch"])
            assert change["$patch"] == "delete"
            del resources[change["kind"]]
        elif (manifest := resources.get(patch["target"]["kind"])) is not None:
            for operation in yaml.safe_load(patch["patch"]):
                apply(manifest, operation)
    return resources


def merged(base: Any, change: Any) -> Any:
    """A strategic merge: objects key by key, lists of named objects name by name, everything else replaced."""
    if isinstance(base, dict) and isinstance(change, dict):
        return {key: merged(base.get(key), change.get(key, base.get(key))) for key in base | change}
    if (
        isinstance(base, list)
        and isinstance(change, list)
        and all("name" in item for item in [*base, *change])
    ):
        by_name = {item["name"]: item for item in base}
        return list({**by_name, **{c["name"]: merged(by_name.get(c["name"]), c) for c in change}}.values())
    return copy.deepcopy(change)


def apply(manifest: Any, operation: Manifest) -> None:
    """One operation of a JSON patch (RFC 6902): add or remove."""
    *path, last = operation["path"].strip("/").split("/")
    for key in path:
        manifest = manifest[int(key) if isinstance(manifest, list) else key]
    if operation["op"] == "remove":
        del manifest[last]
    else:
        manifest[last] = operation["value"]


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> dict[str, Manifest]:
    return render(ROOT / "overlays" / request.param)


@pytest.fixture(scope="module")
def pod(overlay: dict[str, Manifest]) -> Manifest:
    spec: Manifest = overlay["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def container(pod: Manifest) -> Manifest:
    [only] = pod["containers"]
    return only


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_every_manifest_is_valid_for_the_api(overlay: dict[str, Manifest], version: str) -> None:
    builtin = {
        kind: manifest for kind, manifest in overlay.items() if kind != "ServiceMonitor"
    }  # an operator's own
    assert builtin.keys() == {
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "NetworkPolicy",
        "HorizontalPodAutoscaler",
    }
    for manifest in builtin.values():
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("folder", OVERLAYS)
def test_with_api_keys_the_manifests_are_valid_and_prometheus_has_a_key(folder: str) -> None:
    resources = render(ROOT / "api-keys", render(ROOT / "overlays" / folder))
    kubernetes_validate.validate(resources["Deployment"], OLDEST, strict=True)
    [container] = resources["Deployment"]["spec"]["template"]["spec"]["containers"]
    settings = {entry["name"]: entry["value"] for entry in container["env"]}
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "api-keys"]
    assert Path(settings["MASKSERVE_API_KEYS_FILE"]).parent == Path(mount["mountPath"])
    [endpoint] = resources["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"]["name"] == "maskserve-metrics-key"


def test_every_selector_means_our_pods_and_no_others(overlay: dict[str, Manifest]) -> None:
    assert overlay["Deployment"]["spec"]["template"]["metadata"]["labels"] == LABEL
    assert overlay["Service"]["spec"]["selector"] == LABEL
    for kind, key in [
        ("Deployment", "selector"),
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
        ("ServiceMonitor", "selector"),
    ]:
        assert overlay[kind]["spec"][key] == {"matchLabels": LABEL}, kind
    # A ServiceMonitor selects Services.
    assert overlay["Service"]["metadata"]["labels"] == LABEL


def test_ports_are_the_one_that_the_container_has(overlay: dict[str, Manifest], container: Manifest) -> None:
    [port] = container["ports"]
    assert (port["name"], port["containerPort"]) == ("http", Settings().port)
    assert overlay["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    assert overlay["NetworkPolicy"]["spec"]["ingress"][0]["ports"] == [{"port": "http"}]
    assert overlay["ServiceMonitor"]["spec"]["endpoints"][0]["port"] == "http"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == "http"


def test_health_restarts_and_readiness_only_takes_traffic_away(container: Manifest) -> None:
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    startup = container["startupProbe"]
    assert startup["httpGet"]["path"] == "/readyz"
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 120


def test_what_is_set_are_settings(container: Manifest) -> None:
    assert {entry["name"] for entry in container["env"]} <= {
        variable(field) for field in Settings.model_fields
    }


def test_the_grace_period_fits_the_wait_the_drain_and_the_end(pod: Manifest, container: Manifest) -> None:
    settings = {entry["name"]: entry["value"] for entry in container["env"]}
    wait = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    delay = float(settings.get("MASKSERVE_DRAIN_DELAY", 0))
    drain = float(settings["MASKSERVE_DRAIN_TIMEOUT"])
    assert drain >= Settings().request_timeout  # whatever was accepted may take so long
    assert pod["terminationGracePeriodSeconds"] >= wait + delay + drain + 5


def test_a_new_replica_is_ready_before_an_old_one_goes(overlay: dict[str, Manifest]) -> None:
    assert overlay["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_pods_fulfil_the_restricted_pod_security_standard(pod: Manifest, container: Manifest) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False


def test_pods_have_the_user_of_the_image(pod: Manifest) -> None:
    dockerfile = (ROOT.parents[1] / "Dockerfile").read_text()
    context = pod["securityContext"]
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}\n" in dockerfile


def test_replicas_talk_to_nobody_and_only_gateway_and_prometheus_to_them(
    overlay: dict[str, Manifest],
) -> None:
    policy = overlay["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    assert len(policy["ingress"][0]["from"]) == 2


def test_the_autoscaler_counts_requests_in_flight_and_says_alone_how_many_replicas_there_are(
    overlay: dict[str, Manifest],
) -> None:
    scaler = overlay["HorizontalPodAutoscaler"]["spec"]
    [metric] = scaler["metrics"]
    name = metric["pods"]["metric"]["name"]
    told = create_app(Settings(), load=lambda: None).state.service.metrics.text().decode()
    assert f"\n{name} " in told
    # Far below the limit at which clients get 429.
    assert float(metric["pods"]["target"]["averageValue"]) <= Settings().max_queue_requests / 8
    assert scaler["scaleTargetRef"]["name"] == overlay["Deployment"]["metadata"]["name"]
    assert "replicas" not in overlay["Deployment"]["spec"]


@pytest.mark.parametrize("folder", OVERLAYS)
def test_with_keda_there_is_one_autoscaler_with_the_rule_of_the_other(folder: str) -> None:
    """KEDA's own schema was checked when it was written; the part that is Kubernetes' is checked here."""
    before = render(ROOT / "overlays" / folder)
    resources = render(ROOT / "keda", copy.deepcopy(before))
    assert "HorizontalPodAutoscaler" not in resources
    assert resources.keys() - before.keys() == {"ScaledObject"}
    scaled = resources["ScaledObject"]["spec"]
    horizontal = render(ROOT / "overlays/cpu")["HorizontalPodAutoscaler"]["spec"]
    assert scaled["scaleTargetRef"] == {"name": horizontal["scaleTargetRef"]["name"]}
    bounds = (scaled["minReplicaCount"], scaled["maxReplicaCount"])
    assert bounds == (horizontal["minReplicas"], horizontal["maxReplicas"])
    assert bounds[0] <= scaled["fallback"]["replicas"] <= bounds[1]
    assert scaled["advanced"]["horizontalPodAutoscalerConfig"] == {"behavior": horizontal["behavior"]}
    [trigger] = scaled["triggers"]
    [metric] = horizontal["metrics"]
    assert metric["pods"]["metric"]["name"] in trigger["metadata"]["query"]
    assert trigger["metricType"] == metric["pods"]["target"]["type"]
    assert trigger["metadata"]["threshold"] == metric["pods"]["target"]["averageValue"]
    # A sum over the replicas, because KEDA divides by their number.
    assert trigger["metadata"]["query"].startswith("sum(avg_over_time(")
    assert f'service="{resources["Service"]["metadata"]["name"]}"' in trigger["metadata"]["query"]


def test_memory_is_bounded_and_gpus_are_asked_for_where_they_are_used() -> None:
    for name in OVERLAYS:
        [container] = render(ROOT / "overlays" / name)["Deployment"]["spec"]["template"]["spec"]["containers"]
        settings = {entry["name"]: entry["value"] for entry in container["env"]}
        limits = container["resources"]["limits"]
        assert "memory" in limits
        assert (settings["MASKSERVE_DEVICE"] == "cuda") == ("nvidia.com/gpu" in limits) == (name == "gpu")


@pytest.mark.parametrize("file", sorted(ROOT.glob("**/*.yaml")), ids=lambda file: str(file.relative_to(ROOT)))
def test_each_file_opens_with_what_it_is_for(file: Path) -> None:
    assert file.read_text().startswith("# ")
