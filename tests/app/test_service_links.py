"""Kubernetes' variables for a Service called maskserve are ignored; misspelt settings that resemble them are not."""

from __future__ import annotations

import pytest

from app.settings import SettingsError, default, load

# What Kubernetes sets for a Service with the port 8000; {} is the Service's name in capitals.
LINKS = {
    "{}_SERVICE_HOST": "10.0.0.7",
    "{}_SERVICE_PORT": "8000",
    "{}_SERVICE_PORT_HTTP": "8000",
    "{}_PORT": "tcp://10.0.0.7:8000",
    "{}_PORT_8000_TCP": "tcp://10.0.0.7:8000",
    "{}_PORT_8000_TCP_PROTO": "tcp",
    "{}_PORT_8000_TCP_PORT": "8000",
    "{}_PORT_8000_TCP_ADDR": "10.0.0.7",
}


@pytest.mark.parametrize("service", ["MASKSERVE", "MASKSERVE_GATEWAY", "MASKSERVE_SERVICE", "MASKSERVE_HOST"])
@pytest.mark.parametrize("address", ["10.0.0.7", "fd00::7"])
def test_what_kubernetes_sets_for_a_service_is_not_a_setting(
    monkeypatch: pytest.MonkeyPatch, service: str, address: str
) -> None:
    for name, value in LINKS.items():
        url = f"[{address}]" if ":" in address and "://" in value else address
        monkeypatch.setenv(name.format(service), value.replace("10.0.0.7", url))
    assert load().port == default("port")


@pytest.mark.parametrize("name", [name for name in LINKS if not name.startswith("{}_SERVICE_PORT")])
def test_each_variable_is_recognised_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name.format("MASKSERVE"), LINKS[name])
    assert load().port == default("port")


def test_the_port_of_the_command_line_stands_beside_a_service_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSERVE_PORT", "tcp://10.0.0.7:8000")
    assert load({"port": 9001}).port == 9001


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MASKSERVE_NAME", "shapes"),
        ("MASKSERVE_MODEL_NAME", "shapes"),
        ("MASKSERVE_HOST_NAME", "0.0.0.0"),
        ("MASKSERVE_ENV_X", "1"),
        ("MASKSERVE_ENV_PORT", "9001"),
        ("MASKSERVE_SERVICE_HOST", "0.0.0.0"),
        ("MASKSERVE_SERVICE_HOST", "127.0.0.1"),
        ("MASKSERVE_SERVICE_HOST", "localhost"),
        ("MASKSERVE_SERVICE_PORT", "9001"),
        ("MASKSERVE_SERVICE_PORT_HTTP", "9001"),
        ("MASKSERVE_GATEWAY_PORT", "80"),
        ("MASKSERVE_HTTP_PORT", "9001"),
        ("MASKSERVE_PORT_8000_TCP", "9001"),
        ("MASKSERVE_PORT_8000_TCP_ADDR", "localhost"),
        ("MASKSERVE_PORT_8000_TCP_PROTO", "http"),
        ("MASKSERVE_PORT_8000_TCP_PORT", "http"),
        ("MASKSERVE_PORT_8000_TCP_NAME", "x"),
    ],
)
def test_a_misspelt_setting_that_resembles_a_service_link_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name} is not a setting"):
        load()


def test_the_host_of_another_service_does_not_excuse_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSERVE_GATEWAY_SERVICE_HOST", "10.0.0.7")
    monkeypatch.setenv("MASKSERVE_SERVICE_PORT", "9001")
    with pytest.raises(SettingsError, match=r"^MASKSERVE_SERVICE_PORT is not a setting;"):
        load()
