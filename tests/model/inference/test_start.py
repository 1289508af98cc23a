"""What starting an engine imports, and what it keeps of the network that it is given."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.errors import EngineError
from model.inference.engine import Engine
from model.instances import Options
from model.kernels import amx_linear, bilinear, compiled, int8, nms, rounding, winograd
from model.zoo import model_file, zoo

if TYPE_CHECKING:
    import ctypes
    from types import ModuleType

    from model.instances import Instances

CPU = torch.device("cpu")

PROGRAM = """
import sys
import numpy as np
from model.errors import EngineError
from model.inference.engine import Engine
from model.instances import Options

engine = Engine.load("nuclei", device="cpu")
engine.warm_up()
engine.segment([np.zeros((48, 64, 3), np.uint8)], [Options()])
print(*sorted({"torchvision", "torch._dynamo", "sympy"} & set(sys.modules)))
"""


def test_the_model_of_a_bare_checkout_runs_without_importing_torchvision() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def scene() -> np.ndarray:
    """One of the scenes that the page offers."""
    path = min((Path(__file__).parents[3] / "examples" / "shapes" / "images").glob("*.*"))
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def assert_equal(some: Instances, others: Instances) -> None:
    assert len(some) > 0
    for name in ("boxes", "scores", "labels", "probabilities"):
        assert torch.equal(getattr(some, name), getattr(others, name))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_answers_do_not_depend_on_whose_modules_held_the_weights(precision: str) -> None:
    engines = [
        Engine(*model_file.read(zoo.bundled_path("shapes"), runnable=runnable), CPU, precision)
        for runnable in (True, False)
    ]
    photo = scene()
    (found,), (expected,) = (engine.segment([photo], [Options()]) for engine in engines)
    assert_equal(found, expected)


@pytest.mark.parametrize("runnable", [True, False])
def test_an_engine_keeps_no_memory_of_its_network(runnable: bool) -> None:
    network, model = model_file.read(zoo.bundled_path("shapes"))
    if not runnable:
        network, model = model_file.read(zoo.bundled_path("shapes"), runnable=False)
        network.load_state_dict({n: t.clone() for n, t in network.state_dict().items()}, assign=True)
    engine, photo = Engine(network, model, CPU, "float32"), scene()
    (before,) = engine.segment([photo], [Options()])
    for tensor in network.state_dict().values():
        tensor.zero_()
    (after,) = engine.segment([photo], [Options()])
    assert_equal(before, after)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kernel", [amx_linear, bilinear, nms, rounding, winograd])
def test_a_kernel_that_cannot_be_loaded_is_said_when_the_engine_is(
    kernel: ModuleType, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if precision == "int8" and not int8.is_supported():
        pytest.skip("the processor has no AVX2")
    loaded: list[Path] = []
    for library in kernel.SOURCE.parent.glob(f"{kernel.SOURCE.stem}_*.so"):
        (tmp_path / library.name).write_bytes(b"no library")
    (tmp_path / kernel.SOURCE.name).write_bytes(kernel.SOURCE.read_bytes())
    monkeypatch.setattr(kernel, "SOURCE", tmp_path / kernel.SOURCE.name)
    load = getattr(kernel, "kernel", winograd.kernel_for)
    real = compiled.load

    def note(path: Path, source: Path, work: type[ctypes.Structure]) -> Any:
        loaded.append(path)
        return real(path, source, work)

    monkeypatch.setattr(compiled, "load", note)
    monkeypatch.setattr(winograd, "load", note)
    load.cache_clear()
    try:
        with contextlib.suppress(EngineError):
            Engine.load("shapes", device="cpu", precision=precision)
        if not any(path.is_relative_to(tmp_path) for path in loaded):
            pytest.skip("the engine needs no such kernel on this processor in this precision")
        load.cache_clear()
        with pytest.raises(EngineError, match=rf"{kernel.SOURCE.stem}_\w+\.so cannot be loaded: [^\n]*$"):
            Engine.load("shapes", device="cpu", precision=precision)
    finally:
        load.cache_clear()
