"""What starting an engine imports, and what it keeps of the network that it is given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from model.inference.engine import Engine
from model.instances import Options
from model.zoo import model_file, zoo

if TYPE_CHECKING:
    from model.instances import Instances

CPU = torch.device("cpu")

PROGRAM = """
import sys
import numpy as np
from model.inference.engine import Engine
from model.instances import Options

engine = Engine.load("shapes", device="cpu")
engine.warm_up()
engine.segment([np.zeros((48, 64, 3), np.uint8)], [Options()])
print(*sorted({"torchvision", "torch._dynamo", "sympy"} & set(sys.modules)))
"""


def test_the_bundled_model_runs_without_importing_torchvision() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def scene() -> np.ndarray:
    """One of the scenes that the page offers."""
    path = min((Path(__file__).parents[3] / "examples" / "images").glob("*.*"))
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def assert_equal(some: Instances, others: Instances) -> None:
    assert len(some) > 0
    for name in ("boxes", "scores", "labels", "probabilities"):
        assert torch.equal(getattr(some, name), getattr(others, name))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_answers_do_not_depend_on_whose_modules_held_the_weights(precision: str) -> None:
    engines = [
        Engine(*model_file.read(zoo.bundled(), runnable=runnable), CPU, precision)
        for runnable in (True, False)
    ]
    photo = scene()
    (found,), (expected,) = (engine.segment([photo], [Options()]) for engine in engines)
    assert_equal(found, expected)


@pytest.mark.parametrize("runnable", [True, False])
def test_an_engine_keeps_no_memory_of_its_network(runnable: bool) -> None:
    network, model = model_file.read(zoo.bundled())
    if not runnable:
        network, model = model_file.read(zoo.bundled(), runnable=False)
        network.load_state_dict({n: t.clone() for n, t in network.state_dict().items()}, assign=True)
    engine, photo = Engine(network, model, CPU, "float32"), scene()
    (before,) = engine.segment([photo], [Options()])
    for tensor in network.state_dict().values():
        tensor.zero_()
    (after,) = engine.segment([photo], [Options()])
    assert_equal(before, after)
