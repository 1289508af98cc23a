"""The dense part against torchvision's backbone and RPN head, and the recording of it as CUDA graphs."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from bench.synthetic_weights import synthetic_weights
from model.inference import cuda_graphs as graphs
from model.inference.cuda_graphs import CudaGraphCache
from model.inference.features import FeatureExtractor, FeatureMaps, _max_pool, prepare
from model.kernels.convolution import Format
from model.network.architecture import BACKBONES, SMALL, Architecture
from tests.model.thin import thin_if_deep

FLOAT = Format(torch.device("cpu"), torch.float32)
THIN = replace(SMALL, fpn_channels=16, box_channels=16, mask_channels=16, min_size=96, max_size=160)


def images(batch: int = 2, height: int = 96, width: int = 128) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(batch, 3, height, width).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "architecture",
    [
        *(replace(THIN, backbone=name) for name in BACKBONES if name != "resnet152"),
        replace(THIN, fpn_norm=True),
    ],
    ids=lambda a: f"{a.backbone}{' with norms in the pyramid' if a.fpn_norm else ''}",
)
def test_maps_are_torchvisions(architecture: Architecture) -> None:
    with thin_if_deep(architecture):
        network: Any = synthetic_weights(architecture, torch.rand(3, 96, 128))
    with torch.inference_mode():
        features = network.backbone(images())
        objectness, deltas = network.rpn.head(list(features.values()))
        found = FeatureExtractor(network, FLOAT)(images())
    assert found.shapes == [tuple(f.shape[2:]) for f in features.values()]
    rows = torch.cat([features[str(n)].permute(0, 2, 3, 1).flatten(0, 2) for n in range(4)])
    near = {"atol": 2e-4 * float(rows.std()), "rtol": 1e-3}
    torch.testing.assert_close(found.table, rows, **near)
    for mine, theirs in zip(found.objectness, objectness, strict=True):
        torch.testing.assert_close(mine, theirs.permute(0, 2, 3, 1).flatten(1), atol=1e-3, rtol=1e-3)
    for mine, theirs in zip(found.deltas, deltas, strict=True):
        expected = theirs.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        torch.testing.assert_close(mine, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 2)], ids=["3x3", "2x2"])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 2, 2), (1, 16, 24), (3, 8, 6)])
def test_maxima_are_torchs(batch: int, height: int, width: int, pool: nn.MaxPool2d) -> None:
    x = torch.randn(batch, 5, height, width).contiguous(memory_format=torch.channels_last)
    found = _max_pool(x, pool.kernel_size)
    assert torch.equal(found, pool(x))
    # Of a batch of one, too, as oneDNN reads strides; it would fall back to slow kernels or fail.
    assert found.stride() == torch.empty(found.shape, memory_format=torch.channels_last).stride()


@pytest.mark.parametrize("module", [nn.LeakyReLU(), nn.Linear(3, 3), nn.ConvTranspose2d(3, 3, 2)])
def test_modules_that_nobody_knows_are_refused_by_name(module: nn.Module) -> None:
    with pytest.raises(TypeError, match=type(module).__name__):
        prepare([("odd", module)], FLOAT)


# CUDA graphs: torch's own objects need a GPU, so these stand in for them


class _Graph:
    """Replays by running the recorded function again on the recorded input."""

    made: ClassVar[list[_Graph]] = []  # emptied by the fixture

    def __init__(self) -> None:
        self.replays = 0
        self.made.append(self)

    def replay(self) -> None:
        self.replays += 1


class _Stream:
    def wait_stream(self, _other: object) -> None: ...


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> list[_Graph]:
    @contextlib.contextmanager
    def graph(_graph: _Graph, pool: object, stream: object, capture_error_mode: str) -> Any:
        assert pool is not None
        assert isinstance(stream, _Stream)
        assert capture_error_mode == "thread_local"
        yield

    _Graph.made = []
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    return _Graph.made


def as_it_is(x: Tensor) -> FeatureMaps:
    return FeatureMaps(x, [], [], [])


def test_each_shape_is_recorded_once_and_replayed_on_its_own_input(recorder: list[_Graph]) -> None:
    seen: list[Tensor] = []

    def dense(x: Tensor) -> FeatureMaps:
        seen.append(x)
        return as_it_is(x)

    captured = CudaGraphCache(dense)
    for x in (images(1), images(2), images(1) + 1):
        maps = captured(x)
        assert torch.equal(maps.table, x)
        assert maps.table.data_ptr() != x.data_ptr()  # the recorded input, into which x was copied
    assert [graph.replays for graph in recorder] == [2, 1]
    assert len(seen) == 2 * 3  # two runs before each recording


def test_number_of_recordings_is_bounded_and_they_can_be_forgotten(
    recorder: list[_Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MAX_RECORDINGS", 1)
    captured = CudaGraphCache(as_it_is)
    first, second = images(1), images(2)
    captured(first)
    assert captured(second).table is second  # as it is, unrecorded
    assert len(recorder) == 1
    captured.clear()
    captured(second)
    assert len(recorder) == 2


def test_what_was_long_idle_makes_room_for_another_shape(
    recorder: list[_Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MAX_RECORDINGS", 2)
    monkeypatch.setattr(graphs, "IDLE_BATCHES", 3)
    captured = CudaGraphCache(as_it_is)
    old, used, new = images(1), images(2), images(3)
    for x in (old, used):
        captured(x)
    assert captured(new).table is new
    captured(used)
    assert captured(new).table is not new  # in the place of `old`
    assert captured(used).table is not used
    assert captured(old).table is old
    assert len(recorder) == 3


def failing_record(monkeypatch: pytest.MonkeyPatch, *, device_is_well: bool) -> list[str]:
    """Make every recording fail at its end; what is asked of the device afterwards."""
    asked: list[str] = []

    @contextlib.contextmanager
    def graph(*_args: object, **_options: object) -> Any:
        yield
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def synchronize() -> None:
        asked.append("synchronize")
        if not device_is_well:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda _: asked.append("set_stream"))
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    return asked


def test_what_cannot_be_recorded_runs_as_it_is(
    recorder: list[_Graph], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = failing_record(monkeypatch, device_is_well=True)
    captured = CudaGraphCache(as_it_is)
    for x in (images(1), images(1) + 1):
        assert captured(x).table is x
    assert len(recorder) == 1  # it is not tried again
    assert asked == ["set_stream", "synchronize"]
    assert "without a CUDA graph: [1, 3, 96, 128]" in caplog.text


@pytest.mark.usefixtures("recorder")
def test_a_device_that_failed_while_recording_is_not_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_record(monkeypatch, device_is_well=False)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        CudaGraphCache(as_it_is)(images(1))
