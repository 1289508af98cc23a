"""The options of `maskserve train` reach the run by the names of the recipe and of the network."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from typer.testing import CliRunner

from app.cli.main import cli
from app.commands import train as commands_train
from app.commands.network import NetworkOptions
from model.training.recipe import PROBABILITIES, STRENGTHS, Recipe

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

NETWORK = [
    "--anchors",
    "8",
    "--detections",
    "400",
    "--input",
    "256",
    "320",
    "--paste",
    "detectron2",
    "--nms",
    "0.4",
]


def started(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[NetworkOptions, dict[str, Any], str]:
    """The network, the settings to replace and the recipe's name that a command line leads to."""
    calls: list[tuple[NetworkOptions, dict[str, Any], str]] = []

    def run_training(*arguments: Any, recipe: str) -> int:
        _, _, network, _, overrides = arguments
        calls.append((network, overrides, recipe))
        return 0

    monkeypatch.setattr(commands_train, "run_training", run_training)
    result = CliRunner().invoke(cli, ["train", *words])
    assert result.exit_code == 0, result.output
    return calls[0]


def test_every_probability_and_strength_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {name: 0.01 * n for n, name in enumerate((*PROBABILITIES, *STRENGTHS), start=1)}
    words = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    network, overrides, recipe = started(monkeypatch, "--recipe", "nuclei", *words, *NETWORK)
    assert {name: value for name, value in overrides.items() if value is not None} == values
    assert replace(network, weights_folder=None) == NetworkOptions(
        input=(256, 320), anchors="8", detections=400, paste="detectron2", nms=0.4
    )
    assert recipe == "nuclei"


def test_nothing_is_replaced_unless_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASKSERVE_WEIGHTS_DIR", str(tmp_path))
    network, overrides, recipe = started(monkeypatch)
    assert network == NetworkOptions(weights_folder=tmp_path)
    assert recipe == "small"
    assert set(overrides.values()) == {None}
    # `sizes` is taken apart by `choose_sizes`.
    assert overrides.keys() - {"sizes"} <= {f.name for f in fields(Recipe)}
