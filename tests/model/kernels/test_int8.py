"""Convolutions in bytes against those in floats, and the models that can run so."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_iou

from bench.synthetic_weights import synthetic_weights
from model.data.shapes import Shapes
from model.errors import EngineError
from model.images.decode import decode
from model.inference.calibration import is_calibrated, measure_ranges, take_samples, why_not_int8
from model.inference.devices import resolve_precision
from model.inference.engine import Engine
from model.inference.features import FeatureExtractor
from model.inference.preprocess import Preprocessor
from model.inference.roi_heads import BoxHead
from model.instances import Options
from model.kernels import int8, rounding
from model.kernels.convolution import Conv, Format, Linear
from model.kernels.int8 import Int8Conv, Int8Format, QuantizedTensor
from model.kernels.int8_linear import Int8HeadFormat, Int8Linear
from model.kernels.openmp import use_threads
from model.kernels.processor import is_fast_in_bfloat16
from model.kernels.quantization import QuantizedWeight, QuantParams, largest_weight
from model.kernels.winograd import kernel_for
from model.network.architecture import BACKBONES, MOBILENETS, SMALL, Architecture
from model.zoo import catalogue as weights
from model.zoo import model_file, zoo

if TYPE_CHECKING:
    import numpy as np

CPU = torch.device("cpu")
FLOAT = Format(CPU, torch.float32)
EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "shapes" / "images").glob("*.jpg"))
THIN = replace(
    SMALL, fpn_channels=16, box_channels=16, mask_channels=16, proposals=20, min_size=96, max_size=160
)

needs_int8 = pytest.mark.skipif(not int8.is_supported(), reason="the processor has no AVX2")


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.5, 2.5), (-3.0, 0.0), (0.5, 2.0), (0.0, 0.0)])
def test_a_scale_covers_its_range_and_has_an_exact_zero(low: float, high: float) -> None:
    params = QuantParams.from_range(low, high)
    x = torch.tensor([low, 0.0, high, low - 100, high + 100]).view(1, 5, 1, 1)
    found = (QuantizedTensor.quantize(x, params).values.float() - params.zero_point).flatten() * params.scale
    assert found[1] == 0
    torch.testing.assert_close(found[[0, 2]], x.flatten()[[0, 2]], atol=params.scale, rtol=0)
    torch.testing.assert_close(
        found[3:], torch.tensor([min(low, 0), max(high, 0)]), atol=params.scale + 1e-8, rtol=0
    )


def floats(x: QuantizedTensor) -> Tensor:
    return (x.values.float() - x.params.zero_point) * x.params.scale


def image(channels: int = 8, height: int = 9, width: int = 13, batch: int = 2) -> QuantizedTensor:
    torch.manual_seed(height)
    x = torch.randn(batch, channels, height, width).contiguous(memory_format=torch.channels_last)
    return QuantizedTensor.quantize(x, QuantParams.from_range(-2.5, 3.0))


def pair(activation: str = "none", **geometry: Any) -> tuple[Conv, Int8Conv, QuantParams]:
    """A convolution whose weights are whole numbers of steps, in floats and in bytes."""
    conv = nn.Conv2d(**{"in_channels": 8, "out_channels": 16, "kernel_size": 3, "padding": 1, **geometry})
    torch.manual_seed(0)
    largest = largest_weight()
    with torch.no_grad():
        conv.weight.copy_(torch.randint(-largest, largest + 1, conv.weight.shape) / (4 * largest))
        conv.weight.flatten(1)[:, 0] = 1 / 4
    params = QuantParams.from_range(0.0 if activation == "relu" else -9.0, 9.0)
    return Conv(conv, FLOAT, activation=activation), Int8Conv(conv, params, activation=activation), params


GEOMETRIES = [
    {},
    {"kernel_size": 1, "padding": 0},
    {"stride": 2},
    {"kernel_size": 7, "stride": 2, "padding": 3, "in_channels": 3},
    {"groups": 4},
    {"dilation": 2, "padding": 2},
]


@needs_int8
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_result_is_the_nearest_byte(geometry: dict[str, Any], activation: str) -> None:
    exact, rounded, params = pair(activation, **geometry)
    x = image(geometry.get("in_channels", 8))
    expected = QuantizedTensor.quantize(exact(floats(x)), params)
    found = rounded(x)
    assert found.params == params
    assert found.values.is_contiguous(memory_format=torch.channels_last)
    assert (found.values.int() - expected.values.int()).abs().max() <= 1  # in the middle, either
    assert (found.values != expected.values).float().mean() < 0.01


@needs_int8
@pytest.mark.parametrize("low", [0.0, -4.0])
def test_sum_comes_before_activation_and_rounding(low: float) -> None:
    exact, rounded, params = pair("relu")
    x = image()
    residual = QuantizedTensor.quantize(
        3 * torch.randn(2, 16, 9, 13).contiguous(memory_format=torch.channels_last),
        QuantParams.from_range(low, 5.0),
    )
    expected = QuantizedTensor.quantize(exact(floats(x), residual=floats(residual)), params)
    found = rounded(x, residual=residual)
    assert (found.values.int() - expected.values.int()).abs().max() <= 1
    assert (found.values != expected.values).float().mean() < 0.01


@needs_int8
@pytest.mark.skipif(kernel_for(torch.uint8) is None, reason="there is no kernel for bytes here")
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_by_winograd_results_and_sums_are_nearly_the_nearest_byte(activation: str) -> None:
    exact, rounded, params = pair(activation, in_channels=32, out_channels=48)
    for x_params in (
        QuantParams.from_range(-2.5, 3.0),
        QuantParams.from_range(0.0, 3.0),
    ):  # the RPN's see one of each level
        x = QuantizedTensor.quantize(floats(image(32, 14, 15)), x_params)
        residual = QuantizedTensor.quantize(3 * floats(image(48, 14, 15)), QuantParams.from_range(-5.0, 6.0))
        expected = [exact(floats(x)), exact(floats(x), residual=floats(residual))]
        for found, nearest in zip([rounded(x), rounded(x, residual=residual)], expected, strict=True):
            assert found.params == params
            off = found.values.int() - QuantizedTensor.quantize(nearest, params).values.int()
            assert off.abs().max() <= 1
            assert off.abs().float().mean() < 0.02
    assert rounded._winograd is not None
    assert not rounded._packed


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_result_is_put_where_it_is_wanted_as_floats_too(dtype: torch.dtype) -> None:
    _, rounded, _ = pair()
    table = torch.zeros(2 * 9 * 13 + 5, 16, dtype=dtype)
    place = table[5:].view(2, 9, 13, 16).permute(0, 3, 1, 2)
    found = rounded(image(), out=place)
    torch.testing.assert_close(place, floats(found).to(dtype))
    assert not table[:5].any()


@needs_int8
def test_without_output_params_the_result_is_floats() -> None:
    exact, rounded, _ = pair()
    rounded._output_params = None
    torch.testing.assert_close(rounded(image()), exact(floats(image())), atol=1e-4, rtol=1e-4)


@needs_int8
def test_every_shape_gives_the_same_result_however_many_came_before() -> None:
    exact, rounded, params = pair()
    for height in range(7, 11 + int8.PACKED_SHAPES):
        x = image(height=height)
        expected = QuantizedTensor.quantize(exact(floats(x)), params)
        assert (rounded(x).values.int() - expected.values.int()).abs().max() <= 1
    assert len(rounded._packed) == int8.PACKED_SHAPES


@needs_int8
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("rows", [0, 1, 50, 123])
def test_fully_connected_layers_multiply_the_nearest_bytes(rows: int, activation: str) -> None:
    torch.manual_seed(rows)
    largest, params = largest_weight(), QuantParams.from_range(-1.0, 3.0)
    weight, bias = torch.randint(-largest, largest + 1, (40, 392)) / largest, torch.randn(40)
    weight[:, 0] = 1
    layer = Int8Linear(weight, bias, params, activation)
    x = 2 * torch.randn(rows, 392)
    nearest = floats(QuantizedTensor(rounding.quantize(x, params), params))
    exact = nearest.double() @ weight.double().T + bias.double()
    found = layer(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), exact.relu() if activation == "relu" else exact, atol=1e-4, rtol=1e-5
    )
    for threads in (1, 3):
        with use_threads(threads):
            assert torch.equal(layer(x), found)


@pytest.mark.parametrize(("vnni", "largest"), [(True, 127), (False, 64)])
def test_without_vnni_weights_are_smaller(vnni: bool, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    weight = torch.randn(5, 7, 3, 3)
    found = QuantizedWeight.quantize(weight)
    assert (found.values.abs().flatten(1).amax(1) == largest).all()
    torch.testing.assert_close(
        found.values * found.scales[:, None, None, None],
        weight,
        rtol=0,
        atol=float(weight.abs().max()) / (2 * largest) * 1.001,
    )


def test_nor_where_onednn_is_held_to_older_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert QuantizedWeight.quantize(torch.randn(5, 7)).values.abs().max() == 64


def test_heads_read_the_range_of_the_whole_pyramid() -> None:
    ranges = {
        "backbone.fpn.layer_blocks.0.0": (-1.0, 2.0),
        "backbone.fpn.layer_blocks.3.0": (-0.5, 7.0),
        "backbone.fpn.inner_blocks.0.0": (-90.0, 90.0),
        "elsewhere.fpn.layer_blocks.0.0": (-90.0, 90.0),
    }
    assert Int8HeadFormat.from_ranges(ranges).pooled_params == QuantParams.from_range(-1.0, 7.0)


@needs_int8
@pytest.mark.parametrize("box_convs", [0, 2])
def test_only_a_layer_that_reads_the_pyramid_multiplies_bytes(box_convs: int) -> None:
    network = synthetic_weights(replace(THIN, box_convs=box_convs), torch.rand(3, 96, 128))
    form = Int8HeadFormat(CPU, torch.float32, QuantParams.from_range(-1.0, 1.0))
    kinds = [type(layer) for layer in BoxHead(network.roi_heads, form)._layers]
    assert kinds == ([Linear] if box_convs else [Int8Linear, Linear])


@needs_int8
def test_the_largest_numbers_are_summed_exactly() -> None:
    """Without VNNI, two products are summed in 16 bits."""
    largest, params = float(largest_weight()), QuantParams(1.0, 0)
    conv = nn.Conv2d(64, 16, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.where(torch.rand(conv.weight.shape) < 0.5, -largest, largest))
        conv.weight[0] = largest
    x = QuantizedTensor(torch.full((1, 64, 5, 5), 255, dtype=torch.uint8), params)
    whole = Int8Conv(conv, None)(x)
    assert torch.equal(whole, functional.conv2d(x.values.double(), conv.weight.double()).float())
    sums = Int8Linear(conv.weight.detach().flatten(1), torch.zeros(16), params)(x.values.float()[..., 0, 0])
    assert torch.equal(sums, whole[..., 0, 0])


# Whole networks


def picture(seed: int) -> np.ndarray:
    return Shapes(seed=seed, length=1, sides=(96, 160))[0].pixels


@needs_int8
@pytest.mark.parametrize(
    "architecture",
    [
        *(
            replace(THIN, backbone=n)
            for n in BACKBONES
            if "101" not in n and "152" not in n and n not in MOBILENETS
        ),
        replace(THIN, fpn_norm=True, rpn_convs=2),
    ],
    ids=lambda a: f"{a.backbone}{' like v2' if a.fpn_norm else ''}",
)
def test_maps_are_nearly_those_of_floats(architecture: Architecture) -> None:
    pixels = picture(0)
    network: Any = synthetic_weights(architecture, torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    ranges = measure_ranges(network, architecture, [pixels, picture(1)])
    size, padded = architecture.input_size(*pixels.shape[:2]), architecture.padded_shape(*pixels.shape[:2])
    images = Preprocessor(network.transform, FLOAT)([pixels], [size], padded)
    with torch.inference_mode():
        exact = FeatureExtractor(network, FLOAT)(images)
        half = FeatureExtractor(network, Format(CPU, torch.bfloat16))(images.bfloat16())
        found = FeatureExtractor(network, Int8Format.from_ranges(network, ranges, torch.float32))(images)
    assert found.shapes == exact.shapes
    # Random weights make more of rounding, layer by layer, than trained ones: up to 11 % of the maps in bfloat16.
    assert (found.table - exact.table).std() < 8 * (half.table - exact.table).std()
    logits = torch.stack([torch.cat([level[0] for level in m.objectness]) for m in (found, exact)])
    assert torch.corrcoef(logits)[0, 1] > 0.85


@pytest.fixture(scope="module")
def calibrated() -> tuple[nn.Module, model_file.Model]:
    """`shapes`, whether its file is calibrated or not."""
    network, model = model_file.read(zoo.bundled_path("shapes"))
    images = [decode(path.read_bytes()) for path in EXAMPLES]
    return network, replace(model, ranges=measure_ranges(network, model.architecture, images))


@needs_int8
@pytest.mark.parametrize("bfloat16", [True, False])
def test_shapes_finds_in_an_example_what_it_finds_in_floats(
    bfloat16: bool, calibrated: tuple[nn.Module, model_file.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    if bfloat16 and not is_fast_in_bfloat16():
        pytest.skip("the processor is not fast in bfloat16")
    monkeypatch.setattr("model.inference.formats.is_fast_in_bfloat16", lambda: bfloat16)
    pixels = decode(next(p for p in EXAMPLES if p.name == "000012.jpg").read_bytes())
    answers = [
        Engine(*calibrated, CPU, precision).segment([pixels], [Options(score_threshold=0.5)])[0]
        for precision in ("float32", "int8")
    ]
    for one, other in (answers, answers[::-1]):
        clear = one.scores > 0.7
        assert clear.sum() > 3
        alike = box_iou(one.boxes, other.boxes) > 0.8
        alike &= one.labels[:, None] == other.labels
        alike &= (one.scores[:, None] - other.scores).abs() < 0.2
        assert alike.any(1)[clear].all()


@needs_int8
def test_heads_compute_in_floats_where_the_processor_has_no_bfloat16(
    calibrated: tuple[nn.Module, model_file.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.inference.formats.is_fast_in_bfloat16", lambda: False)
    engine = Engine(*calibrated, CPU, "int8")
    engine.warm_up()
    assert engine.precision == "int8"
    first, second = engine._box_head._layers
    assert isinstance(first, Int8Linear)
    assert second._weight.dtype == torch.float32


# What cannot run so


def test_it_is_refused_without_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "fma3": False})
    with pytest.raises(EngineError, match="int8 needs an x86 processor with AVX2; here there are"):
        resolve_precision("int8", CPU)


def test_it_is_refused_on_a_gpu() -> None:
    with pytest.raises(EngineError, match="int8 is for CPUs; on a GPU there are"):
        resolve_precision("int8", torch.device("cuda"))


@needs_int8
def test_a_model_that_was_never_calibrated_is_refused_with_the_command(
    calibrated: tuple[nn.Module, model_file.Model],
) -> None:
    network, model = calibrated
    missing = dict(list(model.ranges.items())[:-1])
    for ranges in ({}, missing):
        with pytest.raises(
            EngineError, match=r"shapes has not been calibrated .* `maskserve calibrate MODEL IMAGE…`"
        ):
            Engine(network, replace(model, ranges=ranges), CPU, "int8")


@needs_int8
@pytest.mark.parametrize("backbone", MOBILENETS)
def test_mobilenets_are_refused_by_name(backbone: str) -> None:
    architecture = replace(THIN, backbone=backbone)
    network = synthetic_weights(architecture, torch.rand(3, 96, 128))
    with pytest.raises(ValueError, match=f"{backbone} cannot run in int8; int8 is for ResNet"):
        measure_ranges(network, architecture, [picture(0)])
    with pytest.raises(EngineError, match=f"{backbone} cannot run in int8; int8 is for ResNet"):
        Engine(network, model_file.describe("thin", architecture, ()), CPU, "int8")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"single_map": "dc5"}, "a resnet18 DC5, which has one map"),
        ({"pyramid": False}, "a resnet18 C4, which has one map"),
        ({"fpn_norm": True, "head_norm": "group"}, "a resnet18 with GroupNorm in its pyramid"),
    ],
)
def test_what_cannot_run_in_int8_is_named_with_what_can(changes: dict[str, Any], kind: str) -> None:
    assert why_not_int8(THIN) == ""
    assert why_not_int8(replace(THIN, fpn_norm=True)) == ""
    why = why_not_int8(replace(THIN, **changes))
    assert re.match(f"{kind}.* cannot run in int8; .*--precision bfloat16", why)


def test_nothing_is_measured_without_images() -> None:
    network = synthetic_weights(THIN, torch.rand(3, 96, 128))
    with pytest.raises(ValueError, match="without images"):
        measure_ranges(network, THIN, [])


def test_examples_are_spread_over_a_dataset() -> None:
    assert len(list(take_samples(Shapes(seed=1, length=3, sides=(64, 96))))) == 3


@pytest.mark.parametrize("name", weights.bundled())
def test_a_bundled_model_is_calibrated(name: str) -> None:
    network, model = model_file.read(zoo.bundled_path(name))
    assert is_calibrated(network, model.ranges)
