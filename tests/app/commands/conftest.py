"""One finished training run for each file of tests that needs one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from model.data.shapes import Shapes
from tests.app.commands.training import QUICK, Trained, as_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """Train as a user would. `small` and all ResNets have few channels until the file's tests are done."""
    from app.commands import train as cli_train
    from tests.model.thin import THIN, thin_resnets

    folder = tmp_path_factory.mktemp("trained")
    data, run = folder / "data", folder / "run"
    Shapes(seed=3, length=4, sides=(64, 96)).export(data)
    tiny = replace(THIN, box_channels=16, mask_convs=1, proposals=20, max_size=96)
    with thin_resnets(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_train, "SMALL", tiny)
        arguments = ["train", "--data", str(data), "--validation", str(data), "--out", str(run)]
        result = CliRunner().invoke(cli, [*arguments, *as_arguments(QUICK), "--validate-every", "1"])
        assert result.exit_code == 0, result.output
        yield Trained(data, run, result.stdout)
