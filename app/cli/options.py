"""Options that several commands of `maskserve` share, and the settings that they override."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app import settings


def setting_help(field: str) -> str:
    """The meaning of a setting, and its environment variable."""
    return f"{settings.Settings.model_fields[field].description} [{settings.variable(field)}]"


def list_settings() -> str:
    """All settings with their defaults, for the end of a help text."""
    # The default of this one depends on the machine, and its description says how.
    defaults = {"weights_dir": "see there"}
    lines = [
        f"- `{settings.variable(field)}` ({defaults.get(field, settings.default(field))}): {known.description}"
        for field, known in settings.Settings.model_fields.items()
    ]
    return "\n".join(["Every setting has an environment variable (its default in parentheses):", "", *lines])


def setting_option(field: str, name: str, metavar: str) -> typer.models.OptionInfo:
    """An option that overrides a setting.

    Args:
        field: of Settings.
        name: of the option, as `--port`.
        metavar: how help texts show its value.
    """
    option: typer.models.OptionInfo = typer.Option(
        name, metavar=metavar, show_default=False, help=setting_help(field)
    )
    return option


Model = Annotated[str | None, setting_option("model", "--model", "NAME")]
Device = Annotated[str | None, setting_option("device", "--device", "DEVICE")]
Precision = Annotated[str | None, setting_option("precision", "--precision", "FORMAT")]
FileFormat = Annotated[
    str, typer.Option("--format", metavar="coco|coco-dataset|cvat|label-studio", help="Format of that file.")
]
Ids = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="The label file that the results will be measured against: they get its ids of images and categories.",
    ),
]

Tile = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS|auto",
        show_default=False,
        help="Cut large images into overlapping tiles with sides of so many pixels, and merge what they have. `auto`: "
        "tiles in which the model sees the image in its own resolution.",
    ),
]
Overlap = Annotated[
    str | None,
    typer.Option(
        metavar="0.05–0.5",
        show_default="tile_overlap of the model, 0.2 or more",
        help="With --tile: the least overlap of neighbours, as a share of a tile's side.",
    ),
]
Whole = Annotated[
    bool | None,
    typer.Option(
        "--whole/--no-whole",
        show_default="with --tile auto",
        help="With --tile: segment the whole image too, for objects that are larger than a tile.",
    ),
]


def read_settings(**overrides: str | int | None) -> settings.Settings:
    """The settings, of which `overrides` take precedence; errors end the program with one line each."""
    try:
        return settings.load(overrides)
    except settings.SettingsError as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from None
