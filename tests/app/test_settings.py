"""Settings come from the environment; what is misspelt or out of bounds stops the start, clearly."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import Settings, SettingsError, effective, load, variable


def test_every_setting_has_a_meaning() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_nothing_set_gives_the_defaults() -> None:
    assert load(environment={}) == Settings()


def test_every_setting_can_be_given_by_its_variable() -> None:
    defaults = Settings()
    for name in Settings.model_fields:
        default = getattr(defaults, name)
        assert load(environment={variable(name): "" if default is None else str(default)}) == defaults


def test_values_are_read_from_the_environment() -> None:
    settings = load(environment={"MASKSERVE_PORT": "9001", "MASKSERVE_MODEL": "shapes", "HOME": "/root"})
    assert (settings.port, settings.model) == (9001, "shapes")


def test_the_command_line_wins_over_the_environment() -> None:
    assert load(
        {"port": 9002, "model": None}, {"MASKSERVE_PORT": "9001", "MASKSERVE_MODEL": "shapes"}
    ) == Settings(port=9002, model="shapes")


def test_an_empty_variable_counts_as_not_given() -> None:
    assert load(environment={"MASKSERVE_PORT": ""}) == Settings()


def test_a_home_folder_of_nobody_is_an_error_in_one_line() -> None:
    with pytest.raises(SettingsError, match="there is no such user's folder: ~nobody-of-that-name/w"):
        load(environment={"MASKSERVE_WEIGHTS_DIR": "~nobody-of-that-name/w"})


def test_weights_folder_may_be_below_the_home_folder() -> None:
    assert load(environment={"MASKSERVE_WEIGHTS_DIR": "~/w"}).weights_dir == Path.home() / "w"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MASKSERVE_PROT", "MASKSERVE_PORT"),
        ("MASKSERVE_MAX_UPLOAD_BYTE", "MASKSERVE_MAX_UPLOAD_BYTES"),
        ("MASKSERVE_LOGLEVEL", "MASKSERVE_LOG_LEVEL"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_closest_right_one(name: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} is not a setting; did you mean {meant}"):
        load(environment={name: "1"})


def test_a_name_like_no_setting_is_refused_too() -> None:
    with pytest.raises(SettingsError, match="MASKSERVE_QQQ is not a setting; `maskserve serve --help`"):
        load(environment={"MASKSERVE_QQQ": "1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MASKSERVE_PORT", "70000"),
        ("MASKSERVE_PORT", "http"),
        ("MASKSERVE_DEVICE", "gpu"),
        ("MASKSERVE_REQUEST_TIMEOUT", "nan"),
        ("MASKSERVE_REQUEST_TIMEOUT", "inf"),
        ("MASKSERVE_REQUEST_TIMEOUT", "0"),
        ("MASKSERVE_MAX_BATCH_SIZE", "0"),
        ("MASKSERVE_LOG_FORMAT", "xml"),
        ("MASKSERVE_PRECISION", "float8"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_variable_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}={value}: "):
        load(environment={name: value})


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        load(environment={"MASKSERVE_PORT": "x", "MASKSERVE_MAX_BATCH_SIZE": "0"})
    assert len(str(error.value).splitlines()) == 2


def test_what_kubernetes_says_about_a_service_named_maskserve_is_no_setting() -> None:
    environment = {
        "MASKSERVE_SERVICE_HOST": "10.0.0.7",
        "MASKSERVE_SERVICE_PORT": "8000",
        "MASKSERVE_SERVICE_PORT_HTTP": "8000",
        "MASKSERVE_PORT": "tcp://10.0.0.7:8000",
        "MASKSERVE_PORT_8000_TCP": "tcp://10.0.0.7:8000",
        "MASKSERVE_PORT_8000_TCP_PROTO": "tcp",
        "MASKSERVE_PORT_8000_TCP_PORT": "8000",
        "MASKSERVE_PORT_8000_TCP_ADDR": "10.0.0.7",
        "MASKSERVE_GATEWAY_SERVICE_HOST": "10.0.0.8",
        "MASKSERVE_GATEWAY_PORT": "tcp://10.0.0.8:80",
        "MASKSERVE_GATEWAY_PORT_80_TCP_ADDR": "10.0.0.8",
    }
    assert load(environment=environment) == Settings()


def test_the_effective_settings_name_every_field() -> None:
    line = effective(Settings())
    assert "port=8000" in line
    assert all(f"{name}=" in line for name in Settings.model_fields)
