"""docker-compose.yml: valid by the Compose specification, and in step with the service and its gateway."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings, variable

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
REPLICAS = {name: service for name, service in SERVICES.items() if service["image"].startswith("maskserve:")}


def seconds(duration: str) -> int:
    """Compose's `70s` or `2m`."""
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def test_the_file_is_valid_by_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run(
        [*command, ROOT / "docker-compose.yml"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_with_nothing_configured_a_gateway_and_replicas_start() -> None:
    [default] = re.findall(r"^COMPOSE_PROFILES=(.+)$", (ROOT / ".env").read_text(), re.MULTILINE)
    started = {name for name, service in SERVICES.items() if default in service.get("profiles", [default])}
    assert "gateway" in started
    assert started & REPLICAS.keys()
    # Nothing has to be given: every variable has a default, or stands for nothing.
    assert not re.findall(r"\$\{\w+(:?\?[^}]*)?\}", (ROOT / "docker-compose.yml").read_text())


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_an_image_is_built_once(profile: str) -> None:
    built = [
        service for service in REPLICAS.values() if profile in service["profiles"] and "build" in service
    ]
    assert len(built) == 1


def test_the_gateway_has_processes_enough_to_be_reloaded_and_probed() -> None:
    config = (ROOT / "deploy/gateway/nginx.conf").read_text()
    [workers] = re.findall(r"^worker_processes (\d+);$", config, re.MULTILINE)
    # The old ones and the new ones, and a shell with what it starts.
    assert 2 * int(workers) + 16 <= SERVICES["gateway"]["deploy"]["resources"]["limits"]["pids"]


def test_every_variable_is_documented() -> None:
    table = (ROOT / "docs/deployment.md").read_text()
    for name in set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text())):
        assert f"`{name}`" in table, name


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory", "pids"} <= service["deploy"]["resources"]["limits"].keys()
    assert not service.get("privileged")


def test_every_profile_of_replicas_is_reached_by_the_name_that_the_gateway_has() -> None:
    [name] = re.findall(r"server (\w+):8000 resolve", (ROOT / "deploy/gateway/replicas.conf").read_text())
    assert {profile for service in REPLICAS.values() for profile in service["profiles"]} == {"cpu", "gpu"}
    for service in REPLICAS.values():
        assert service["networks"]["replicas"]["aliases"] == [name]
    assert set(SERVICES["gateway"]["depends_on"]) == set(REPLICAS)


def test_replicas_are_reached_through_the_gateway_only() -> None:
    assert COMPOSE["networks"]["replicas"]["internal"] is True
    for service in REPLICAS.values():
        assert "ports" not in service
        assert set(service["networks"]) == {"replicas"}


def test_the_gpu_profile_reserves_a_gpu() -> None:
    for service in REPLICAS.values():
        devices = service["deploy"]["resources"].get("reservations", {}).get("devices", [])
        assert bool(devices) == ("gpu" in service["profiles"])
        assert all(device["capabilities"] == ["gpu"] for device in devices)


def test_what_is_set_are_settings() -> None:
    known = {variable(field) for field in Settings.model_fields}
    for service in REPLICAS.values():
        assert service["environment"].keys() <= known


def test_a_stopped_replica_has_time_to_drain_and_a_stopped_gateway_to_wait_for_it() -> None:
    for service in REPLICAS.values():
        drain = float(service["environment"]["MASKSERVE_DRAIN_TIMEOUT"])
        delay = float(service["environment"].get("MASKSERVE_DRAIN_DELAY", 0))
        assert drain >= Settings().request_timeout  # whatever was accepted may take so long
        assert seconds(service["stop_grace_period"]) >= delay + drain + 5
    assert seconds(SERVICES["gateway"]["stop_grace_period"]) > Settings().request_timeout


def test_every_file_that_is_mounted_is_there() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    sources = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    sources += [re.sub(r"\$\{\w+:-(.+)\}", r"\1", secret["file"]) for secret in COMPOSE["secrets"].values()]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source


def test_keys_are_only_asked_for_when_a_file_of_keys_is_given() -> None:
    for service in REPLICAS.values():
        assert service["environment"]["MASKSERVE_API_KEYS_FILE"] == "${API_KEYS_FILE:+/run/secrets/api_keys}"
        assert service["secrets"] == ["api_keys"]


def test_prometheus_asks_the_replicas_by_their_name() -> None:
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    [job] = prometheus["scrape_configs"]
    [discovery] = job["dns_sd_configs"]
    assert (discovery["names"], discovery["port"]) == (["maskserve"], 8000)
    assert job["authorization"]["credentials_file"] == "/run/secrets/metrics_key"
    for rules in prometheus["rule_files"]:
        assert (ROOT / "deploy/prometheus" / rules).is_file()
