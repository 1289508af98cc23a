"""Options that several commands of `maskserve` share, and the settings that they override."""

from __future__ import annotations

from typing import Annotated

import typer

from app import settings


def setting_help(field: str) -> str:
    """What a setting means, from the one place that says it, and the variable that sets it too."""
    return f"{settings.Settings.model_fields[field].description} [{settings.variable(field)}]"


def all_settings() -> str:
    """Every setting with its default, for the end of a help text."""
    lines = [
        f"- `{settings.variable(field)}` ({settings.default(field)}): {known.description}"
        for field, known in settings.Settings.model_fields.items()
        if field != "weights_dir"
    ]
    return "\n".join(["Every setting is an environment variable, with its default:", "", *lines])


def flag(field: str, name: str, metavar: str) -> typer.models.OptionInfo:
    """An option that overrides a setting."""
    option: typer.models.OptionInfo = typer.Option(
        name, metavar=metavar, show_default=False, help=setting_help(field)
    )
    return option


Model = Annotated[str | None, flag("model", "--model", "NAME")]
Device = Annotated[str | None, flag("device", "--device", "DEVICE")]
Precision = Annotated[str | None, flag("precision", "--precision", "FORMAT")]


def read_settings(**overrides: str | int | None) -> settings.Settings:
    """The settings with the command line's on top; what is wrong with them ends the program, a line each."""
    try:
        return settings.load(overrides)
    except settings.SettingsError as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from None
