"""Settings come from the environment; what is misspelt or out of bounds stops the start, clearly."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import Settings, SettingsError, default, format_settings, load, variable


def test_every_setting_has_a_meaning() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_nothing_set_gives_the_defaults() -> None:
    settings = load()
    assert {name: getattr(settings, name) for name in Settings.model_fields} == {
        name: default(name) for name in Settings.model_fields
    }


def test_every_setting_can_be_given_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        with monkeypatch.context() as patch:
            patch.setenv(variable(name), "" if default(name) is None else str(default(name)))
            assert getattr(load(), name) == default(name)


def test_values_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSERVE_PORT", "9001")
    monkeypatch.setenv("maskserve_model", "shapes")
    settings = load()
    assert (settings.port, settings.model) == (9001, "shapes")


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSERVE_PORT", "9001")
    monkeypatch.setenv("MASKSERVE_MODEL", "shapes")
    settings = load({"port": 9002, "model": None})
    assert (settings.port, settings.model) == (9002, "shapes")


def test_an_empty_variable_counts_as_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSERVE_PORT", "")
    assert load().port == default("port")


def test_a_default_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSERVE_PORT", "9001")
    assert default("port") == 8000


def test_a_home_folder_of_nobody_is_an_error_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSERVE_WEIGHTS_DIR", "~nobody-of-that-name/w")
    message = r"^MASKSERVE_WEIGHTS_DIR=~nobody-of-that-name/w: there is no such user's folder: ~nobody-of-that-name/w$"
    with pytest.raises(SettingsError, match=message):
        load()


def test_weights_folder_may_be_below_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSERVE_WEIGHTS_DIR", "~/w")
    assert load().weights_dir == Path.home() / "w"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MASKSERVE_PROT", "MASKSERVE_PORT"),
        ("MASKSERVE_MAX_UPLOAD_BYTE", "MASKSERVE_MAX_UPLOAD_BYTES"),
        ("MASKSERVE_LOGLEVEL", "MASKSERVE_LOG_LEVEL"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_closest_right_one(
    monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=f"^{name} is not a setting; did you mean {meant}"):
        load()


def test_a_name_like_no_setting_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSERVE_QQQ", "1")
    with pytest.raises(SettingsError, match="MASKSERVE_QQQ is not a setting; `maskserve serve --help`"):
        load()


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
        ("MASKSERVE_TRACING", "perhaps"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_variable_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}={value}: "):
        load()


def test_a_value_out_of_bounds_is_refused_on_the_command_line_too() -> None:
    with pytest.raises(SettingsError, match=r"^MASKSERVE_PORT=70000: .*65535"):
        load({"port": 70000})


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSERVE_PORT", "x")
    monkeypatch.setenv("MASKSERVE_MAX_BATCH_SIZE", "0")
    with pytest.raises(SettingsError) as error:
        load()
    assert len(str(error.value).splitlines()) == 2


def test_a_file_of_settings_in_the_working_folder_is_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("MASKSERVE_PORT=9001\n")
    monkeypatch.chdir(tmp_path)
    assert load().port == default("port")


def test_the_effective_settings_name_every_field() -> None:
    line = format_settings(Settings())
    assert "port=8000" in line
    assert all(f"{name}=" in line for name in Settings.model_fields)
