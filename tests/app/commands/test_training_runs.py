"""Training as people run it: killed and resumed, and by several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from app.commands import train as cli_train
from app.commands.network import NetworkOptions
from app.commands.source import Source
from model.data.shapes import Shapes
from model.training import run_folder
from model.training.train import RunLog, read_log
from tests.app.commands.training import COMMAND, KILLED_AFTER, as_arguments
from tests.service.forks import ForkedProcess

if TYPE_CHECKING:
    from collections.abc import Mapping


pytestmark = pytest.mark.usefixtures("tiny_networks")
OPTIONS: dict[str, Any] = {
    "steps": 8, "batch_size": 2, "workers": 0, "precision": "float32", "sizes": ["64"], "warmup": 2,
    "optimizer": "sgd", "learning_rate": 1e-3,
}  # fmt: skip
ROOT = Path(__file__).parents[3]
PATIENCE = 400  # seconds, for what takes ten; met only when something hangs


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "scenes"
    Shapes(seed=3, length=5, sides=(64, 96)).export(path)
    return path


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory, tiny_networks: None) -> Path:
    """A run that was never interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert cli_train.run_training(Source(str(scenes)), run, NetworkOptions(), "cpu", OPTIONS) == 0
    return run


def assert_same_run(run: Path, whole: Path) -> None:
    """The weights are the same bit for bit, and so are the losses of all steps."""
    theirs = load_file(whole / "model.safetensors")
    assert all(torch.equal(t, theirs[name]) for name, t in load_file(run / "model.safetensors").items())
    curves = [[(r["step"], r["L"]) for r in read_log(path / "log.jsonl")] for path in (whole, run)]
    assert curves[0] == curves[1]
    assert [step for step, _ in curves[0]] == list(range(OPTIONS["steps"]))


def start(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, run to its end."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def test_run_that_was_killed_ends_with_the_same_weights_bit_for_bit(
    scenes: Path, whole: Path, tmp_path: Path
) -> None:
    options, killed = {**OPTIONS, "checkpoint_every": 2}, tmp_path / "killed"
    words = ["-m", COMMAND, "train", "--data", scenes, "--out", killed, *as_arguments(options)]
    # The first step is 0: five are logged, and four are in the checkpoint.
    process = ForkedProcess([str(word) for word in words], ROOT, {**os.environ, KILLED_AFTER: "4"})
    with process.stderr as stderr:
        said = stderr.read()
    assert process.wait(PATIENCE) == -signal.SIGKILL, said
    assert len(read_log(killed / "log.jsonl")) == 5
    assert torch.load(killed / "checkpoint.pt", weights_only=True)["step"] == 4
    assert cli_train.run_training(Source(str(scenes)), killed, NetworkOptions(), "cpu", options) == 0
    assert_same_run(killed, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_saves_its_step_and_goes_on_from_there(  # noqa: PLR0917 - fixtures
    number: signal.Signals,
    scenes: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    # Without the product's handler, SIGTERM would end the tests.
    monkeypatch.setattr("model.training.train.RunLog", signalling_log({2: number}))
    arguments = Source(str(scenes)), tmp_path / "run", NetworkOptions(), "cpu", OPTIONS
    assert cli_train.run_training(*arguments) == 128 + number
    assert capsys.readouterr().err.splitlines()[-1] == (
        "interrupted at step 3; the same command continues from there"
    )
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    monkeypatch.setattr("model.training.train.RunLog", RunLog)
    assert cli_train.run_training(*arguments) == 0
    assert_same_run(tmp_path / "run", whole)


def signalling_log(signals: dict[int, signal.Signals]) -> type[RunLog]:
    """A log that raises signals in its process, by step, behind the record of the step."""

    class Signalling(RunLog):
        def step(self, record: Mapping[str, float]) -> None:
            super().step(record)
            if (number := signals.get(int(record["step"]))) is not None:
                assert signal.getsignal(number) is not signal.SIG_DFL
                signal.raise_signal(number)

    return Signalling


def raise_interrupt(*_: object, **__: object) -> None:
    """In place of a function: Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


def test_interrupt_before_the_first_step_and_while_the_report_is_written(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = Source(str(scenes)), tmp_path / "run", NetworkOptions(), "cpu", {**OPTIONS, "steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr("model.training.train.RunLog", raise_interrupt)
        assert cli_train.run_training(*arguments) == 130
    assert "interrupted before anything was saved" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    monkeypatch.setattr(cli_train, "report", raise_interrupt)
    assert cli_train.run_training(*arguments) == 130
    assert capsys.readouterr().err.endswith("interrupted at step 1; the same command continues from there\n")


def test_second_signal_ends_the_run_at_once(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("model.training.train.RunLog", signalling_log({3: signal.SIGINT}))
    # The second one comes while the first one's checkpoint is being saved.
    saved = run_folder.save_checkpoint

    def save(run: Path, document: dict[str, Any]) -> None:
        if document["step"] == 4:
            signal.raise_signal(signal.SIGINT)
        saved(run, document)

    monkeypatch.setattr("model.training.train.save_checkpoint", save)
    options = {**OPTIONS, "checkpoint_every": 3}
    assert cli_train.run_training(Source(str(scenes)), tmp_path, NetworkOptions(), "cpu", options) == 130
    assert capsys.readouterr().err.endswith(
        "interrupted; the same command continues from the checkpoint of step 3\n"
    )
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3


def test_two_processes_train_as_one_does(scenes: Path, tmp_path: Path) -> None:
    """Five images in batches of four: of every second batch the second process has no image at all.

    In float64, because sums in another order differ by 1e-6 after some steps in float32, and that now and then puts a
    proposal on the other side of a threshold.
    """
    torch.manual_seed(1)
    # With a backbone of its own a network has constants for norms; batches of another size have other statistics.
    backbone = tmp_path / "body.safetensors"
    save_file(torchvision.models.resnet18(weights=None).state_dict(), backbone)
    options = {
        "steps": 6, "batch_size": 4, "workers": 0, "precision": "float64", "sizes": ["64"], "warmup": 1,
        "optimizer": "sgd", "learning_rate": 2e-4, "rois": 32, "checkpoint_every": 100,
    }  # fmt: skip
    network = NetworkOptions(backbone=str(backbone))
    assert cli_train.run_training(Source(str(scenes)), tmp_path / "one", network, "cpu", options) == 0
    done = start(
        *("-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone", "-m", COMMAND, "train"),
        *("--data", scenes, "--out", tmp_path / "two", "--backbone", backbone, *as_arguments(options)),
    )
    assert done.returncode == 0, done.stderr
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 6
    terms = ("L", "L_cls", "L_box", "L_mask", "L_rpn_cls", "L_rpn_box")
    apart = [max(abs(ours[t] - theirs[t]) for t in terms) for ours, theirs in zip(two, one, strict=True)]
    assert max(apart) < 1e-5
    assert one[-1]["L"] < one[0]["L"]
    assert len(json.loads((tmp_path / "two" / "environment.json").read_text())) == 1
    assert json.loads((tmp_path / "two" / "environment.json").read_text())[0]["processes"] == 2
