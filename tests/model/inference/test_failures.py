"""How failures of the device are named, and what a failed attempt leaves behind."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING
from unittest import mock

import pytest
import torch

from model.errors import DeviceFailed, OutOfDeviceMemory
from model.inference.cuda_graphs import CudaGraphCache

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from model.inference.engine import Engine

    Fail = Callable[[Exception], "_Failing"]

from tests.model.inference.networks import photo, segment


class _Failing:
    """A dense part that holds a tensor, as a real one would, and raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.held: weakref.ref[Tensor] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        activations = images + 1
        self.held = weakref.ref(activations)
        raise self.error


@pytest.fixture
def failing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], _Failing]:
    """Make the engine's dense part raise."""

    def fail(error: Exception) -> _Failing:
        forward = _Failing(error)
        monkeypatch.setattr(engine, "_extract", forward)
        return forward

    return fail


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_running_out_of_memory_is_named(engine: Engine, failing: Fail, error: Exception) -> None:
    failing(error)
    with pytest.raises(OutOfDeviceMemory) as caught:
        segment(engine, photo(96, 128))
    assert caught.value.__cause__ is error


def test_what_the_cpu_allocator_raises_is_named(engine: Engine, failing: Fail) -> None:
    with pytest.raises(RuntimeError) as real:
        torch.empty(10**15)
    failing(real.value)
    with pytest.raises(OutOfDeviceMemory):
        segment(engine, photo(96, 128))


def test_failed_attempt_lets_go_of_its_tensors(engine: Engine, failing: Fail) -> None:
    backbone = failing(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(OutOfDeviceMemory) as caught:
        segment(engine, photo(96, 128))
    assert caught.value.__traceback__ is not None  # somebody still holds the error, as a log would
    assert backbone.held is not None
    assert backbone.held() is None


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: unspecified launch failure",
    ],
)
def test_lost_device_is_named(
    engine: Engine, failing: Fail, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(RuntimeError(text))
    ready = torch.zeros(1, 3, 96, 128)
    monkeypatch.setattr(engine, "_preprocess", lambda *_: ready)
    monkeypatch.setattr(engine, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    with pytest.raises(DeviceFailed, match=text):
        segment(engine, photo(96, 128))


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), ValueError("CUDA error"), KeyError(1)]
)
def test_other_errors_pass_as_they_are(engine: Engine, failing: Fail, error: Exception) -> None:
    failing(error)
    with pytest.raises(type(error)) as caught:
        segment(engine, photo(96, 128))
    assert caught.value is error


def test_recordings_are_dropped_where_memory_ran_out(
    engine: Engine, failing: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = CudaGraphCache(failing(torch.OutOfMemoryError("CUDA out of memory.")))
    forget = mock.Mock()
    monkeypatch.setattr(captured, "clear", forget)
    monkeypatch.setattr(CudaGraphCache, "__call__", lambda made, images: made._extract(images))
    monkeypatch.setattr(engine, "_extract", captured)
    with pytest.raises(OutOfDeviceMemory):
        segment(engine, photo(96, 128))
    forget.assert_called_once_with()
