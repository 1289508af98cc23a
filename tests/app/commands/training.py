"""What makes a training run quick: options, how they are typed, and networks of few channels.

`python -m tests.app.commands.training train …` is the command line with such networks.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from app.cli.main import main
from app.commands import network as cli_network
from model.training.train import RunLog
from tests.model.thin import THIN, thin_backbones

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

QUICK = {"steps": 2, "batch_size": 2, "workers": 0, "precision": "float32", "sizes": ["64"], "warmup": 1}
TINY = replace(THIN, box_channels=16, mask_convs=1, proposals=20, max_size=96)
# The command line with networks of few channels: this module.
COMMAND = "tests.app.commands.training"
# In the environment: the step after which the process ends as by SIGKILL.
KILLED_AFTER = "TEST_KILLED_AFTER"


def as_arguments(options: dict[str, Any]) -> list[str]:
    """Options of run_training as command-line arguments."""
    words: list[str] = []
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", str(item)]
    return words


@contextmanager
def tiny_networks() -> Iterator[None]:
    """Give `small` and all ResNets few channels: steps, checkpoints and calibration take an eighth of their time."""
    with thin_backbones(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_network, "SMALL", TINY)
        yield


class KilledRunLog(RunLog):
    """A log that ends its process behind a step's record."""

    def step(self, record: Mapping[str, float]) -> None:
        super().step(record)
        if record["step"] == int(os.environ[KILLED_AFTER]):
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    with tiny_networks(), pytest.MonkeyPatch.context() as patched:
        # As in the process of the tests (tests/conftest.py).
        patched.setattr("app.runtime.cpus.usable_cpus", lambda: 1)
        if KILLED_AFTER in os.environ:
            patched.setattr("model.training.train.RunLog", KilledRunLog)
        main()
