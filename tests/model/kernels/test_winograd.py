"""Winograd's convolutions, by every compiled variant that this processor runs, against torch's."""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from model.errors import EngineError
from model.kernels import winograd
from model.kernels.compiled import openmp_functions
from model.kernels.int8 import QuantizedTensor
from model.kernels.processor import has_amx
from model.kernels.quantization import IDENTITY, QuantParams
from model.kernels.winograd import VARIANTS, Winograd, WinogradKernel, kernel_for, should_use_winograd
from model.kernels.winograd_transforms import input_transform, weight_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

FOLDER = Path(winograd.__file__).parent
COMPILED = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
NEEDS = {name: (dtype, needs) for dtype, names in VARIANTS.items() for name, needs in names.items()}
# By how much of a result's spread its error may be; a direct convolution's is 3e-7, 0.0024, and for bytes 0.02.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 0.012, torch.uint8: 0.021}


def usable(name: str) -> bool:
    has = torch.cpu.get_capabilities()
    return COMPILED and all(has.get(need) for need in NEEDS[name][1])


def each(names: Iterable[str]) -> pytest.MarkDecorator:
    skipped = {name: pytest.mark.skipif(not usable(name), reason="not for this processor") for name in NEEDS}
    return pytest.mark.parametrize("variant", [pytest.param(name, marks=skipped[name]) for name in names])


EACH = each(NEEDS)
EACH_OF_FLOATS = each(name for name, (dtype, _) in NEEDS.items() if dtype.is_floating_point)


def loaded(variant: str) -> WinogradKernel:
    openmp = openmp_functions()
    assert openmp is not None
    return WinogradKernel.load(FOLDER / f"winograd_{variant}.so", openmp)


class Problem:
    """A convolution with random weights, and a random input for it, of so many channels."""

    def __init__(
        self, variant: str, batch: int, height: int, width: int, *, inputs: int = 32, outputs: int = 48
    ) -> None:
        torch.manual_seed(batch + 10 * height + 100 * width)
        self.kernel, self.dtype = loaded(variant), NEEDS[variant][0]
        inputs = -(-inputs // self.kernel.at_once) * self.kernel.at_once
        quantised = self.dtype == torch.uint8
        self.x_params, self.params = (
            (QuantParams(0.02, 130), QuantParams(0.08, 90)) if quantised else (IDENTITY, IDENTITY)
        )
        self.x = self.stored(torch.randn(batch, inputs, height, width), self.x_params)
        self.weight, self.bias = torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5), torch.randn(outputs)

    def stored(self, values: Tensor, params: QuantParams) -> Tensor:
        """Numbers as a tensor of the kernel's, channels last."""
        values = values.contiguous(memory_format=torch.channels_last)
        return (
            QuantizedTensor.quantize(values, params).values
            if self.dtype == torch.uint8
            else values.to(self.dtype)
        )

    def prepared(self, *, relu: bool = False) -> Callable[..., Tensor]:
        made = Winograd(self.weight, self.bias, self.kernel, self.dtype, relu=relu, output_params=self.params)
        return partial(made, x_params=self.x_params)

    def exact(self) -> Tensor:
        """In float64."""
        x = real(self.x, self.x_params)
        return functional.conv2d(x, self.weight.double(), self.bias.double(), padding=1)

    def assert_close(self, found: Tensor, expected: Tensor) -> None:
        """No value may be off by more than ten times the error that they may have together."""
        assert found.dtype == self.dtype
        close = 10 * BOUNDS[self.dtype]
        if self.dtype == torch.uint8:
            expected = expected.clamp(
                *((end - self.params.zero_point) * self.params.scale for end in (0, 255))
            )
            close = self.params.scale / 2 + 10 * BOUNDS[torch.bfloat16]
        torch.testing.assert_close(real(found, self.params), expected, atol=close, rtol=close)


def real(x: Tensor, params: QuantParams) -> Tensor:
    return (x.double() - params.zero_point) * params.scale


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not COMPILED, reason="compiled for Linux on x86 and ARM only")
def test_it_is_compiled_where_it_can_be_and_the_fastest_variant_is_taken() -> None:
    for dtype, names in VARIANTS.items():
        for name in names:
            is_ours = name.endswith("neon") == (platform.machine() == "aarch64")
            assert (FOLDER / f"winograd_{name}.so").exists() == is_ours
        fit = [name for name in names if usable(name)]
        amx = dtype != torch.float32 and has_amx()
        found = kernel_for(dtype)
        assert (found is None) == (not fit or amx)
        assert found is None or found.library._name == str(FOLDER / f"winograd_{fit[0]}.so")


@pytest.mark.skipif(not COMPILED, reason="compiled for Linux on x86 and ARM only")
def test_a_variant_reads_as_many_channels_at_once_as_it_says() -> None:
    """Of every compiled file, also those that this processor cannot run."""
    for name, (dtype, _) in NEEDS.items():
        if (FOLDER / f"winograd_{name}.so").exists():
            kernel = loaded(name)
            assert kernel.at_once == (2 if dtype == torch.uint8 else 1) * kernel.lanes
            assert kernel.lanes == {"avx512": 16, "avx2": 8, "neon": 4}[name.rpartition("_")[2]]


SIZES, CHANNELS = st.integers(1, 23), st.sampled_from([16, 32, 48, 80, 128])


@EACH
@settings(deadline=None, max_examples=80)
@given(st.integers(1, 3), SIZES, SIZES, st.tuples(CHANNELS, CHANNELS))
def test_any_size_equals_torch(
    variant: str, batch: int, height: int, width: int, channels: list[int]
) -> None:
    inputs, outputs = channels
    problem = Problem(variant, batch, height, width, inputs=inputs, outputs=outputs)
    exact = problem.exact()
    problem.assert_close(problem.prepared()(problem.x), exact)
    problem.assert_close(problem.prepared(relu=True)(problem.x), exact.relu())


@EACH
@pytest.mark.parametrize("inputs", [32, 256, 512])
def test_error_is_of_the_order_of_a_direct_convolutions(variant: str, inputs: int) -> None:
    problem = Problem(variant, 1, 32, 32, inputs=inputs, outputs=64)
    exact = problem.exact()
    found = real(problem.prepared()(problem.x), problem.params)
    error = (found - exact).std() / exact.std()
    assert float(error) < BOUNDS[problem.dtype]


@EACH
@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_blocks_of_any_size_on_any_threads_give_the_same_bits(
    variant: str, size: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem(variant, 5, 19, 14, inputs=160)
    prepared = problem.prepared(relu=True)
    torch.set_num_threads(1)
    whole = prepared(problem.x)
    assert torch.equal(prepared(problem.x[3:4]), whole[3:4])  # whatever the neighbours are
    monkeypatch.setattr(winograd, "BLOCK", size)
    torch.set_num_threads(count)
    assert torch.equal(prepared(problem.x), whole)


@EACH
def test_scratch_is_what_it_says(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    empty, beyond = torch.empty, 4096

    def watched(size: int, *, dtype: torch.dtype) -> Tensor:
        made.append(empty(size + beyond, dtype=dtype).fill_(0xA5))
        return made[-1][:size]

    problem = Problem(variant, 2, 30, 41, inputs=64, outputs=80)
    prepared = problem.prepared()
    expected = prepared(problem.x)
    torch.set_num_threads(2)
    monkeypatch.setattr(torch, "empty", watched)
    found = prepared(problem.x)
    assert len(made) == 1
    assert (made[0][-beyond:] == 0xA5).all()
    assert not (made[0] == 0xA5).all()
    assert torch.equal(found, expected)


@EACH
@pytest.mark.parametrize("batch", [1, 3])
def test_maps_that_lie_in_memory_in_other_ways(variant: str, batch: int) -> None:
    problem = Problem(variant, batch, 38, 28)
    prepared = problem.prepared()
    with_gaps = problem.x[:, :, ::2, ::2]  # as P6 is made of P5
    close = with_gaps.contiguous(memory_format=torch.channels_last)
    assert torch.equal(prepared(with_gaps), prepared(close))
    assert torch.equal(prepared(close.contiguous()), prepared(close))


@each(name for name, (dtype, _) in NEEDS.items() if dtype == torch.uint8)
@pytest.mark.parametrize("inputs", [32, 128, 160])
@pytest.mark.parametrize("zero_point", [0, 130, 255])
def test_no_sum_of_bytes_is_too_large(variant: str, zero_point: int, inputs: int) -> None:
    """Each of a tile's 36 products at its largest, upwards and downwards, and the weights that make most of it."""
    kernel = loaded(variant)
    taps, cells = (make(kernel.near, kernel.far) for make in (weight_transform, input_transform))
    both = torch.from_numpy(np.kron(cells, cells)).view(36, 6, 6)
    x = torch.full((2, 36, 12, 12), zero_point, dtype=torch.uint8)
    x[0, :, 3:9, 3:9], x[1, :, 3:9, 3:9] = 255 * (both > 0), 255 * (both < 0)
    x = x.view(72, 1, 12, 12).expand(-1, inputs, -1, -1).contiguous(memory_format=torch.channels_last)
    weight = torch.from_numpy(np.einsum("ia,jb->ijab", taps, taps)).view(36, 1, 3, 3)
    weight = torch.cat([weight, torch.zeros(12, 1, 3, 3)]).expand(-1, inputs, -1, -1) / inputs
    exact = functional.conv2d(x.double() - zero_point, weight, padding=1)
    params = QuantParams.from_range(float(exact.min()), float(exact.max()))
    convolve = Winograd(weight, torch.zeros(48), kernel, torch.uint8, relu=False, output_params=params)
    off = real(convolve(x, x_params=QuantParams(1.0, zero_point)), params) - exact
    # One that is, is off by twice the largest. As all weights are rounded one way here, so are all errors.
    assert off.abs().max() < 0.05 * (exact.max() - exact.min())


@each(name for name, (dtype, _) in NEEDS.items() if dtype == torch.uint8)
@pytest.mark.parametrize("inputs", [32, 256, 512])
def test_nearly_all_results_of_bytes_are_the_nearest(variant: str, inputs: int) -> None:
    problem = Problem(variant, 1, 32, 32, inputs=inputs, outputs=64)
    steps = problem.exact() / problem.params.scale + problem.params.zero_point
    off = problem.prepared()(problem.x).int() - steps.round().clamp(0, 255).int()
    assert off.abs().max() <= 1
    assert (off != 0).float().mean() < 0.04


@EACH
def test_sum_and_place(variant: str) -> None:
    problem = Problem(variant, 2, 13, 10)
    prepared, exact = problem.prepared(relu=True), problem.exact()
    residual_params = IDENTITY if problem.params is IDENTITY else QuantParams(0.03, 128)
    residual = problem.stored(torch.randn(exact.shape), residual_params)
    expected = (exact + real(residual, residual_params)).relu()
    found = prepared(problem.x, residual, residual_params=residual_params)
    assert found.data_ptr() == residual.data_ptr()
    problem.assert_close(found, expected)
    # Only what it was given is written to, here the middle of something larger.
    around = torch.full((2, 15, 12, 64), 7, dtype=problem.dtype)
    out = around[:, 1:14, 1:11, 8:56].permute(0, 3, 1, 2)
    assert prepared(problem.x, out=out).data_ptr() == out.data_ptr()
    problem.assert_close(out, exact.relu())
    out.fill_(7)
    assert (around == 7).all()
    with pytest.raises(ValueError, match="not both"):
        prepared(problem.x, residual, out)


@EACH
def test_what_it_cannot_compute_is_refused(variant: str) -> None:
    problem = Problem(variant, 1, 8, 8)
    prepared = problem.prepared()
    with pytest.raises(ValueError, match="tensors of torch"):
        prepared(problem.x.double())
    with pytest.raises(ValueError, match="channels-last"):
        prepared(problem.x, out=torch.empty(1, 48, 8, 8, dtype=problem.dtype))
    for inputs, outputs in ((18, 48), (32, 18)):
        weight, bias = torch.zeros(outputs, inputs, 3, 3), torch.zeros(outputs)
        with pytest.raises(ValueError, match="must be multiples of"):
            Winograd(weight, bias, problem.kernel, problem.dtype, relu=False)
    with pytest.raises(ValueError, match="32 channels"):
        prepared(problem.x[:, :16])
    with pytest.raises(ValueError, match=r"\[1, 48, 8, 8\]"):
        prepared(
            problem.x,
            out=torch.empty(1, 48, 8, 7, dtype=problem.dtype).to(memory_format=torch.channels_last),
        )


@EACH
def test_no_images_give_no_results(variant: str) -> None:
    problem = Problem(variant, 1, 14, 14)
    assert problem.prepared()(problem.x[:0]).shape == (0, 48, 14, 14)


@EACH_OF_FLOATS
def test_what_is_not_a_number_stays_so_and_among_its_own(variant: str) -> None:
    problem = Problem(variant, 3, 20, 20)
    prepared = problem.prepared(relu=True)
    without = prepared(problem.x)
    problem.x[1, 3, 9, 9] = torch.nan
    found = prepared(problem.x)
    assert found[1, :, 8:11, 8:11].isnan().all()
    assert torch.equal(found[::2], without[::2])
    found[1, :, 8:12, 8:12] = without[1, :, 8:12, 8:12]  # its tile, and none of the others
    assert torch.equal(found, without)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_threads_get_blocks_of_one_size_and_as_many_as_the_others(threads: int) -> None:
    most = winograd.BLOCK * winograd.second_cache()
    for tiles in range(1, 500):
        size = winograd.tiles_per_block(tiles, threads)
        blocks = -(-tiles // size)
        assert 1 <= size <= most
        assert tiles < threads or -(-blocks // threads) == -(-tiles // (most * threads))
    assert winograd.tiles_per_block(0, threads) == 0


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The answers that are kept are forgotten, before and after."""
    kernel_for.cache_clear()
    yield monkeypatch
    kernel_for.cache_clear()


HASWELL = ("avx2", "fma3")
ICE_LAKE = (*HASWELL, "avx512_f", "avx512_vl", "avx512_bw", "avx512_dq", "avx512_vnni")
ZEN_4 = (*ICE_LAKE, "avx512_bf16")
SAPPHIRE_RAPIDS = (*ZEN_4, "amx_bf16")


@pytest.mark.skipif(not COMPILED or platform.machine() != "x86_64", reason="compiled for x86 only")
@pytest.mark.parametrize(
    ("has", "dtype", "expected"),
    [
        (("avx2",), torch.float32, None),
        (("avx2",), torch.uint8, None),
        (HASWELL, torch.float32, "float32_avx2"),
        (HASWELL, torch.bfloat16, None),
        (HASWELL, torch.uint8, "bytes_avx2"),
        (ICE_LAKE, torch.float32, "float32_avx512"),
        (ICE_LAKE, torch.bfloat16, None),
        (ICE_LAKE, torch.uint8, "bytes_avx512"),
        (ZEN_4, torch.float32, "float32_avx512"),
        (ZEN_4, torch.bfloat16, "bfloat16_avx512"),
        (ZEN_4, torch.uint8, "bytes_avx512"),
        (ZEN_4, torch.float16, None),
        (SAPPHIRE_RAPIDS, torch.float32, "float32_avx512"),
        (SAPPHIRE_RAPIDS, torch.bfloat16, None),
        (SAPPHIRE_RAPIDS, torch.uint8, None),
    ],
)
def test_processors(
    has: tuple[str, ...], dtype: torch.dtype, expected: str | None, fresh: pytest.MonkeyPatch
) -> None:
    fresh.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(has, True))
    fresh.setattr(torch.cpu, "_init_amx", lambda: True, raising=False)
    found = kernel_for(dtype)
    assert (found and Path(found.library._name).stem) == (expected and f"winograd_{expected}")


def test_without_openmp_there_is_none(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(winograd, "openmp_functions", lambda: None)
    assert kernel_for(torch.float32) is None
    assert not should_use_winograd(torch.empty(1, 256, 50, 50, device="meta"), 256)


@pytest.mark.skipif(not usable("float32_avx2"), reason="not for this processor")
def test_without_the_compiled_file_there_is_none_and_the_log_says_so(
    fresh: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh.setattr(winograd, "SOURCE", tmp_path / "winograd.c")
    assert kernel_for(torch.float32) is None
    assert "winograd_float32_avx2.so is not there" in caplog.text
    said = len(caplog.records)
    assert not should_use_winograd(torch.empty(1, 256, 50, 50, device="meta"), 256)
    assert len(caplog.records) == said  # once, not for each convolution


@pytest.mark.skipif(not usable("float32_avx2"), reason="not for this processor")
def test_one_that_another_version_compiled_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(ctypes.Structure):
        _fields_ = [*winograd.Work._fields_, ("more", ctypes.c_int64)]

    monkeypatch.setattr(winograd, "Work", Longer)
    with pytest.raises(EngineError, match=r"winograd_float32_avx2\.so was compiled from another version's"):
        loaded("float32_avx2")


@pytest.mark.skipif(not usable("float32_avx2"), reason="not for this processor")
@pytest.mark.parametrize("changed", ["source", "names"])
def test_nor_one_whose_source_has_changed(
    changed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = "winograd_float32_avx2.so"
    if changed == "source":
        (tmp_path / "winograd.c").write_bytes(winograd.SOURCE.read_bytes() + b"\n")
        monkeypatch.setattr(winograd, "SOURCE", tmp_path / "winograd.c")
    else:  # as one that was made before there was such a check
        compiled = (FOLDER / library).read_bytes()
        (tmp_path / library).write_bytes(compiled.replace(b"\0work_bytes\0", b"\0work_words\0"))
    with pytest.raises(EngineError, match=r"was compiled from another version's"):
        WinogradKernel.load((FOLDER if changed == "source" else tmp_path) / library, (0, 0))


def test_one_that_cannot_be_loaded_is_said_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    with pytest.raises(EngineError, match=r"broken\.so cannot be loaded: "):
        WinogradKernel.load(broken, (0, 0))


@pytest.mark.parametrize(
    ("shape", "outputs", "expected"),
    [
        ((1, 256, 200, 272), 256, True),
        ((1, 64, 200, 272), 64, True),
        ((1, 96, 24, 32), 96, True),
        ((20, 256, 14, 14), 256, True),
        ((1000, 256, 7, 7), 256, True),
        ((1, 256, 13, 17), 256, True),
        ((1, 3, 200, 272), 64, False),
        # It reads 32 channels at once.
        ((1, 48, 200, 272), 64, False),
        ((1, 64, 200, 272), 48, True),
        ((1, 64, 200, 272), 91, False),
        ((1, 256, 200, 1), 256, False),  # a tile has four columns
        ((1, 256, 2, 100), 256, False),
        ((1, 256, 4, 5), 256, False),  # the matrices are read for hardly anything
    ],
)
def test_rule_that_says_where_it_pays(
    shape: tuple[int, ...], outputs: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel: Any = WinogradKernel(None, (0, 0), lanes=16, vectors=4, at_once=32, summed=128, near=0.5, far=1.5)
    monkeypatch.setattr(winograd, "kernel_for", lambda dtype: kernel if dtype == torch.float32 else None)
    assert should_use_winograd(torch.empty(shape, device="meta"), outputs) is expected
    assert should_use_winograd(torch.empty(shape, device="meta", dtype=torch.float16), outputs) is False
