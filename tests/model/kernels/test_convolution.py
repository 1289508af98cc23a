"""Prepared convolutions against the modules that they stand for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

from model.kernels import convolution, onednn
from model.kernels.convolution import ACTIVATIONS, Conv, Format, Linear, fold
from model.kernels.openmp import use_threads
from model.kernels.winograd import kernel_for

FLOAT = Format(torch.device("cpu"), torch.float32)
HALF = Format(torch.device("cpu"), torch.bfloat16)


def normed(norm: Any, channels: int) -> Any:
    """Statistics and weights as after training."""
    for name, low, high in (
        ("weight", 0.5, 2),
        ("bias", -1, 1),
        ("running_mean", -1, 1),
        ("running_var", 0.1, 4),
    ):
        getattr(norm, name).data.uniform_(low, high)
    return norm.requires_grad_(False).eval()


def pair(norm: str | None, **geometry: Any) -> tuple[nn.Conv2d, Any]:
    torch.manual_seed(1)
    conv = nn.Conv2d(geometry.pop("inputs", 8), geometry.pop("outputs", 12), **geometry).requires_grad_(False)
    made = {
        None: lambda _: None,
        "batch": nn.BatchNorm2d,
        "frozen": lambda channels: FrozenBatchNorm2d(channels, eps=0.0),
    }[norm](conv.out_channels)
    return conv, made if made is None else normed(made, conv.out_channels)


def image(channels: int = 8, height: int = 17, width: int = 22, batch: int = 2) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(batch, channels, height, width).contiguous(memory_format=torch.channels_last)


GEOMETRIES = [
    pytest.param({"kernel_size": 3, "padding": 1}, id="3x3"),
    pytest.param({"kernel_size": 3, "padding": 1, "stride": 2}, id="3x3 stride 2"),
    pytest.param({"kernel_size": 1}, id="1x1"),
    pytest.param({"kernel_size": 1, "stride": 2}, id="1x1 stride 2"),
    pytest.param({"kernel_size": 7, "padding": 3, "stride": 2, "inputs": 3}, id="stem"),
    pytest.param({"kernel_size": 3, "padding": 2, "dilation": 2}, id="dilated"),
    pytest.param({"kernel_size": 3, "padding": 1, "groups": 4}, id="grouped"),
    pytest.param({"kernel_size": 5, "padding": 2, "groups": 8, "outputs": 8}, id="depthwise"),
    pytest.param({"kernel_size": 3, "padding": 1, "bias": False}, id="no bias"),
    pytest.param({"kernel_size": 3, "padding": 1, "inputs": 128, "outputs": 128}, id="by Winograd"),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("norm", [None, "batch", "frozen"])
def test_one_convolution_stands_for_convolution_norm_and_activation(
    geometry: dict[str, Any], norm: str | None
) -> None:
    conv, after = pair(norm, **geometry)
    x = image(conv.in_channels)
    expected = conv(x) if after is None else after(conv(x))
    torch.testing.assert_close(Conv(conv, FLOAT, norm=after)(x), expected, atol=1e-4, rtol=1e-4)
    relu = Conv(conv, FLOAT, norm=after, activation="relu")(x)
    torch.testing.assert_close(relu, expected.relu(), atol=1e-4, rtol=1e-4)
    assert relu.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_sum_with_another_tensor_comes_before_the_activation(geometry: dict[str, Any]) -> None:
    conv, after = pair("batch", **geometry)
    x = image(conv.in_channels)
    plain = after(conv(x))
    residual = torch.randn(plain.shape).contiguous(memory_format=torch.channels_last)
    expected = (plain + residual).relu()
    found = Conv(conv, FLOAT, norm=after, activation="relu")(x, residual=residual)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [8, 128])
def test_result_goes_where_it_is_wanted(channels: int) -> None:
    conv, _ = pair(None, kernel_size=3, padding=1, inputs=channels, outputs=channels)
    x = image(channels)
    table = torch.zeros(2 * 17 * 22 + 5, channels)
    place = table[5:].view(2, 17, 22, channels).permute(0, 3, 1, 2)
    found = Conv(conv, FLOAT)(x, out=place)
    assert found.data_ptr() == place.data_ptr()
    torch.testing.assert_close(place, conv(x), atol=1e-4, rtol=1e-4)
    assert not table[:5].any()


def test_every_activation_is_torchs() -> None:
    conv, _ = pair(None, kernel_size=3, padding=1)
    for kind, name in ACTIVATIONS.items():
        found = Conv(conv, FLOAT, activation=name)(image())
        torch.testing.assert_close(found, kind()(conv(image())), atol=1e-5, rtol=1e-5)


def test_without_onednn_the_answers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, after = pair("batch", kernel_size=3, padding=1)
    residual = torch.randn(2, 12, 17, 22).contiguous(memory_format=torch.channels_last)
    results = []
    for available in (True, False):
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda usable=available: usable)
        for activation in ("none", "relu", "hardswish"):
            prepared = Conv(conv, FLOAT, norm=after, activation=activation)
            results.append(
                (
                    prepared(image()),
                    prepared(image(), residual=residual.clone()) if activation != "hardswish" else 0,
                )
            )
    for fused, plain in zip(results[:3], results[3:], strict=True):
        torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-5)


def test_bfloat16_loses_what_its_eight_bits_lose() -> None:
    for inputs in (12, 256):  # directly, and by Winograd where there is a kernel for it
        conv, after = pair("batch", kernel_size=3, padding=1, inputs=inputs, outputs=inputs)
        x = image(inputs, 14, 14)
        exact = after(conv(x)).relu()
        prepared = Conv(conv, HALF, norm=after, activation="relu")
        found = prepared(x.bfloat16())
        assert bool(prepared._winograd) == (inputs == 256 and kernel_for(torch.bfloat16) is not None)
        assert found.dtype == torch.bfloat16
        assert float((found.float() - exact).std() / exact.std()) < 0.02


@pytest.mark.parametrize("form", [FLOAT, HALF], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("width", [24, 64])
@pytest.mark.parametrize("shape", [(5, 64), (2, 3, 4, 64), (0, 64)])
def test_fully_connected_layers_are_torchs(form: Format, shape: tuple[int, ...], width: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape).to(form.dtype), torch.randn(width, 64), torch.randn(width)
    expected = functional.linear(x, weight.to(form.dtype), bias.to(form.dtype)).relu()
    torch.testing.assert_close(Linear(weight, bias, form, "relu")(x), expected)


def test_fold_of_a_frozen_norm_without_eps_keeps_tiny_variances_apart() -> None:
    conv, norm = pair("frozen", kernel_size=1)
    norm.running_var[0] = 1e-12
    weight, bias = fold(conv, norm)
    assert weight.dtype == bias.dtype == torch.float64
    torch.testing.assert_close(
        weight[0] / conv.weight[0].double(), (norm.weight[0].double() * 1e6).expand(8, 1, 1)
    )


def test_answers_do_not_depend_on_which_shapes_came_before() -> None:
    conv, _ = pair(None, kernel_size=1, stride=2, inputs=64, outputs=128)
    sizes = [(24, 32), (32, 24), (40, 40), (8, 64), (24, 32)]
    prepared = Conv(conv, FLOAT)
    for height, width in sizes:
        x = image(64, height, width, batch=1)
        torch.testing.assert_close(prepared(x), Conv(conv, FLOAT)(x), atol=1e-5, rtol=1e-5)
    assert len(prepared._packed) <= convolution.PACKED_SHAPES


def test_module_that_was_prepared_is_left_as_it_was() -> None:
    conv, after = pair("batch", kernel_size=3, padding=1)
    before = copy.deepcopy(conv.state_dict()), copy.deepcopy(after.state_dict())
    Conv(conv, HALF, norm=after, activation="relu")(image().bfloat16())
    for module, state in zip((conv, after), before, strict=True):
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, state[name])


@pytest.mark.parametrize(
    ("module", "norm"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), None),
        (nn.Conv2d(4, 4, 3, padding="same"), None),
        (nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)),
        (nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
    ids=["reflecting", "same", "group norm", "no statistics"],
)
def test_what_cannot_be_prepared_is_refused(module: nn.Conv2d, norm: nn.Module | None) -> None:
    with pytest.raises(TypeError):
        Conv(module, FLOAT, norm=norm)


@pytest.mark.parametrize("form", [FLOAT, HALF], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("depth", "width"), [(3136, 256), (512, 324), (1024, 91)])
def test_fully_connected_layers_do_not_depend_on_the_number_of_threads(
    form: Format, depth: int, width: int
) -> None:
    torch.manual_seed(0)
    layer = Linear(torch.randn(width, depth) / 30, torch.randn(width), form)
    for rows in (1, 7, 17, 60, 171):
        x = torch.randn(rows, depth).to(form.dtype)
        with use_threads(1):
            expected = layer(x)
        for threads in (2, 3, 16):
            with use_threads(threads):
                assert torch.equal(layer(x), expected), (rows, threads)


def test_fully_connected_layers_are_compiled_for_few_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    linear = onednn.linear

    def noted(x: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.add(len(x))
        return linear(x, *others)

    monkeypatch.setattr(onednn, "linear", noted)
    layer = Linear(torch.randn(4, 8), torch.randn(4), FLOAT)
    assert [len(layer(torch.randn(rows, 8))) for rows in range(1, 200)] == list(range(1, 200))
    assert seen == {50, 100, 150, 200}
