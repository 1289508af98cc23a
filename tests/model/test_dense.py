"""The dense part against torchvision's backbone and RPN head, and the recording of it as CUDA graphs."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from bench.lifelike import lifelike
from model import graphs
from model.convolution import Format
from model.dense import Dense, Maps, _halved, steps
from model.graphs import Captured
from model.network import BACKBONES, SMALL, Architecture

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
    network: Any = lifelike(architecture, torch.rand(3, 96, 128))
    with torch.inference_mode():
        features = network.backbone(images())
        objectness, deltas = network.rpn.head(list(features.values()))
        found = Dense(network, FLOAT)(images())
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
    found = _halved(x, pool.kernel_size)
    assert torch.equal(found, pool(x))
    # Of a batch of one, too, as oneDNN reads strides; it would fall back to slow kernels or fail.
    assert found.stride() == torch.empty(found.shape, memory_format=torch.channels_last).stride()


@pytest.mark.parametrize("module", [nn.LeakyReLU(), nn.Linear(3, 3), nn.ConvTranspose2d(3, 3, 2)])
def test_modules_that_nobody_knows_are_refused_by_name(module: nn.Module) -> None:
    with pytest.raises(TypeError, match=type(module).__name__):
        steps([("odd", module)], FLOAT)


# CUDA graphs: torch's own objects need a GPU, so these stand in for them


class _Graph:
    """Replays by running the recorded function again on the recorded input."""

    made: ClassVar[list[_Graph]] = []  # emptied by the fixture

    def __init__(self) -> None:
        self.replays = 0
        self.made.append(self)

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> list[_Graph]:
    class Stream:
        def wait_stream(self, _other: object) -> None: ...

    @contextlib.contextmanager
    def graph(_graph: _Graph, pool: object) -> Any:
        assert pool is not None
        yield

    _Graph.made = []
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    return _Graph.made


def test_each_shape_is_recorded_once_and_replayed_on_its_own_input(recorder: list[_Graph]) -> None:
    seen: list[Tensor] = []

    def dense(x: Tensor) -> Maps:
        seen.append(x)
        return Maps(x, [], [], [])

    captured = Captured(dense)
    for x in (images(1), images(2), images(1) + 1):
        maps = captured(x)
        assert torch.equal(maps.table, x)
        assert maps.table.data_ptr() != x.data_ptr()  # the recorded input, into which x was copied
    assert [graph.replays for graph in recorder] == [2, 1]
    assert len(seen) == 2 * 3  # two runs before each recording


def test_number_of_recordings_is_bounded_and_they_can_be_forgotten(
    recorder: list[_Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MOST", 1)
    captured = Captured(lambda x: Maps(x, [], [], []))
    first, second = images(1), images(2)
    captured(first)
    assert captured(second).table is second  # as it is, unrecorded
    assert len(recorder) == 1
    captured.forget()
    captured(second)
    assert len(recorder) == 2
