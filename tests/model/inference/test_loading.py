"""Engines by name or file, and the devices and precisions that they can have."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from model.errors import EngineError
from model.images.decode import decode as decode_image
from model.inference.devices import find_device, has_kernels_for, resolve_precision, use_device
from model.inference.engine import Engine
from model.kernels import processor
from model.masks.paste import decode, paste
from model.network.architecture import DIVISIBLE
from model.zoo import catalogue as weights
from model.zoo import model_file, zoo

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    Fail = Callable[[Exception], "object"]

from tests.model.inference.networks import CPU, THIN_SMALL, assert_same, described, network, photo, segment


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "thin.safetensors"
    model_file.save(path, network(THIN_SMALL), described(THIN_SMALL))
    return path


def test_engine_from_a_file_answers_as_the_network_that_was_saved(saved: Path, engine: Engine) -> None:
    loaded = Engine.load(str(saved), device="cpu")
    assert (loaded.model.name, loaded.device, loaded.precision) == ("random", CPU, "float32")
    assert_same(segment(loaded, photo(96, 128)), segment(engine, photo(96, 128)))


def test_downloaded_weights_are_looked_for_in_the_folder_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def load(name: str, folder: Path, *, runnable: bool) -> tuple[nn.Module, model_file.Model]:
        assert not runnable
        asked.append(folder)
        return copy.deepcopy(network(THIN_SMALL)), described(THIN_SMALL)

    monkeypatch.setattr(zoo, "load", load)
    Engine.load("anything", device="cpu", weights_folder=tmp_path)
    Engine.load("anything", device="cpu")
    assert asked == [tmp_path, weights.default_folder()]


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "meta", "mps", "", "cuda:-1", "cuda:999", "cuda:256"])
def test_unusable_devices_are_refused_before_anything_is_loaded(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "load", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(EngineError, match="device"):
        Engine.load("shapes", device=device)


def test_unknown_precision_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "load", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(
        EngineError, match="no such precision: 'float8'; there are auto, float32, bfloat16, float16"
    ):
        Engine.load("shapes", device="cpu", precision="float8")


@pytest.mark.parametrize(("usable", "device"), [(0, "cpu"), (2, "cuda")])
def test_auto_takes_a_gpu_if_there_is_one(usable: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: usable)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    assert find_device("auto") == torch.device(device)


def test_gpus_that_torch_was_not_built_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "compute_80"])
    for device in ("cuda", "auto"):
        with pytest.raises(EngineError, match=r"compute capability 7\.0: it was built for sm_75, sm_80"):
            Engine.load("shapes", device=device)


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((7, 0), False), ((7, 5), True), ((8, 9), True), ((9, 0), False), ((10, 0), True)],
)
def test_machine_code_runs_on_its_own_major_generation(capability: tuple[int, int], runs: bool) -> None:
    assert has_kernels_for(capability, ["sm_75", "sm_80", "sm_100a"]) is runs
    assert has_kernels_for(capability, ["compute_70"])


def test_a_gpu_is_the_current_one_and_its_float32_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[object] = []

    @contextlib.contextmanager
    def device(name: object) -> Any:
        entered.append(name)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    second = torch.device("cuda:1")
    for precision, reduced in [("float32", False), ("bfloat16", True)]:
        with use_device(second, precision):
            assert torch.backends.cudnn.allow_tf32 is reduced
        assert torch.backends.cudnn.allow_tf32
    assert entered == [second] * 2


def test_a_pass_makes_the_engines_device_the_current_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.inference import engine as module

    entered: list[tuple[torch.device, str]] = []

    def noted(device: torch.device, precision: str) -> Any:
        entered.append((device, precision))
        return contextlib.nullcontext()

    monkeypatch.setattr(module, "use_device", noted)
    segment(engine, photo(96, 128))
    assert entered == [(CPU, "float32")]


def test_gpus_that_are_not_there_are_refused_with_their_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EngineError, match="'cuda:2' was asked for, but 2 CUDA devices"):
        Engine.load("shapes", device="cuda:2")


@pytest.mark.parametrize(
    ("instructions", "precision"),
    [
        ((), "float32"),
        (("avx512_bf16",), "bfloat16"),
        (("avx512_bf16", "intel"), "float32"),
        (("avx512_bf16", "amx_bf16", "intel"), "bfloat16"),
        (("amx_bf16",), "bfloat16"),
    ],
)
def test_auto_precision_on_a_cpu_is_what_it_is_fastest_in(
    instructions: tuple[str, ...], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "is_intel", lambda: "intel" in instructions)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True))
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: True, raising=False)
    assert resolve_precision("auto", CPU) == precision


@pytest.mark.parametrize(
    ("generation", "precision"), [(9, "bfloat16"), (8, "bfloat16"), (7, "float16"), (6, "float32")]
)
def test_auto_precision_on_a_gpu_is_by_its_generation(
    generation: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (generation, 0))
    assert resolve_precision("auto", torch.device("cuda")) == precision


def test_float16_is_refused_on_a_cpu() -> None:
    with pytest.raises(EngineError, match="on a CPU there are float32, bfloat16 and int8"):
        Engine(network(THIN_SMALL), described(THIN_SMALL), CPU, "float16")


def test_bfloat16_finds_in_an_example_what_float32_finds() -> None:
    image = decode_image(
        (Path(__file__).parents[3] / "examples" / "shapes" / "images" / "000012.jpg").read_bytes()
    )
    exact, rounded = (
        segment(Engine.load("shapes", device="cpu", precision=precision), image, score_threshold=0.5)
        for precision in ("float32", "bfloat16")
    )
    assert len(exact) > 3
    assert len(exact) == len(rounded)
    # Which of two like proposals wins may differ, but not by much; nor is the order of scores near 1 the same.
    overlap, match = box_iou(exact.boxes, rounded.boxes).max(1)
    assert sorted(match.tolist()) == list(range(len(exact)))
    assert (overlap > 0.9).all()
    assert rounded.labels[match].tolist() == exact.labels.tolist()
    torch.testing.assert_close(rounded.scores[match], exact.scores, atol=0.02, rtol=0)
    for one, other in zip(
        paste(exact.probabilities, exact.boxes, exact.size),
        paste(rounded.probabilities[match], rounded.boxes[match], rounded.size),
        strict=True,
    ):
        shared, either = (
            combined(decode(one), decode(other)).sum() for combined in (np.logical_and, np.logical_or)
        )
        assert (
            shared / either > 0.9
        )  # some are of 700 pixels, many of them at the edge, and of boxes that differ


def test_padding_is_to_the_coarsest_stride(engine: Engine) -> None:
    assert DIVISIBLE == 32
    assert engine.padded_shape(97, 129)[0] % 32 == 0
