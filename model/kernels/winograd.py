"""3×3 convolutions with a quarter of the multiplications, on x86 and ARM: Winograd's F(4×4, 3×3), compiled from
winograd.c (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015).
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model.kernels.compiled import first_usable, load, openmp_functions
from model.kernels.processor import AVX2, NEON, has_amx
from model.kernels.quantization import IDENTITY, QuantParams
from model.kernels.winograd_transforms import largest_sums, weight_transform

if TYPE_CHECKING:
    from torch import Tensor

SOURCE = Path(__file__).with_name("winograd.c")
# In an axis: so many outputs of a tile, of so many inputs.
SIDE, REACH = 4, 6
# Tiles that a thread works on at once, at most, for each MB of second cache, of which up to 2 are counted: so few that
# their sums and products stay there, so many that the matrices, which are read again for each such block, do not weigh.
BLOCK, MOST_CACHE = 18, 2
# What the processor must have for a variant of the kernel, the fastest first.
VARIANTS: dict[torch.dtype, dict[str, tuple[str, ...]]] = {
    torch.uint8: {
        "bytes_avx512": ("avx512_vnni", "avx512_vl", "avx512_bw", "avx512_dq"),
        "bytes_avx2": AVX2,
    },
    torch.bfloat16: {"bfloat16_avx512": ("avx512_bf16", "avx512_vl", "avx512_bw", "avx512_dq")},
    torch.float32: {
        "float32_avx512": ("avx512_f", "avx512_vl", "avx512_bw", "avx512_dq"),
        "float32_avx2": AVX2,
        "float32_neon": NEON,
    },
}


class Work(ctypes.Structure):
    """`struct Work` of winograd.c, which describes it."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "weights", "scales", "bias", "result", "scratch")),
        *((f"x_{step}", ctypes.c_int64) for step in ("image", "row", "column")),
        *((f"result_{step}", ctypes.c_int64) for step in ("image", "row", "column")),
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "depth", "panel")),
        *((name, ctypes.c_int64) for name in ("block", "add")),
        *((name, ctypes.c_float) for name in ("x_zero", "x_step", "sum_zero", "sum_step", "least")),
        ("next", ctypes.c_int64),
        ("thread_number", ctypes.c_void_p),
    ]


@dataclass(frozen=True, slots=True)
class WinogradKernel:
    """A compiled variant, and the threads that it runs on."""

    # Of ctypes.
    library: Any
    openmp: tuple[int, int]
    # Of a vector register: channels of the result are multiples of it.
    lanes: int
    # Such registers for channels of the result that a product is made of at once, at most.
    vectors: int
    # Channels of the input that are read at once: all are a multiple of it.
    at_once: int
    # Channels whose products are summed before the sum is rounded to float32, of bytes.
    summed: int
    # The points at which, with both signs, the polynomials are evaluated besides 0 and infinity.
    near: float
    far: float

    @classmethod
    def load(cls, path: Path, openmp: tuple[int, int]) -> WinogradKernel:
        """Raises EngineError if there is no way to load it, or it is of another version."""
        library = load(path, SOURCE, Work)
        names = ("lanes", "vectors", "at_once", "summed")
        numbers = {name: ctypes.c_int64.in_dll(library, name).value for name in names}
        near, far = (ctypes.c_float * 2).in_dll(library, "points")
        library.convolve.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        library.convolve.restype = None
        library.scratch_bytes.argtypes = [ctypes.c_void_p]
        library.scratch_bytes.restype = ctypes.c_int64
        return cls(library, openmp, **numbers, near=near, far=far)

    def run(self, work: Work) -> None:
        """Do what `work` describes, all but its scratch and thread_number, on torch's threads."""
        parallel, work.thread_number = self.openmp
        threads, address = torch.get_num_threads(), ctypes.addressof(work)
        scratch = torch.empty(threads * self.library.scratch_bytes(address), dtype=torch.uint8)
        work.scratch = scratch.data_ptr()
        self.library.convolve(address, parallel, threads)


@cache
def kernel_for(dtype: torch.dtype) -> WinogradKernel | None:
    """The fastest variant that this processor runs; None if there is none, and convolutions are computed directly.

    That is so where nothing was compiled (hatch_build.py: for Linux on x86 and ARM), where torch has no OpenMP, and in
    other numbers than float32 where the processor has AMX, by which a direct convolution is faster.
    """
    openmp = openmp_functions()
    if openmp is None or (dtype != torch.float32 and has_amx()):
        return None
    variants = VARIANTS.get(dtype, {})
    paths = {SOURCE.with_name(f"winograd_{name}.so"): needs for name, needs in variants.items()}
    path = first_usable(paths, cost="3×3 convolutions take two or three times as long")
    return None if path is None else WinogradKernel.load(path, openmp)


def kernel_of_channels(dtype: torch.dtype, inputs: int, outputs: int) -> WinogradKernel | None:
    """The kernel for a convolution of so many channels; None if there is none."""
    kernel = kernel_for(dtype)
    return None if kernel is None or inputs % kernel.at_once or outputs % kernel.lanes else kernel


def should_use_winograd(x: Tensor, outputs: int) -> bool:
    """Whether a convolution of x [B, C, H, W] to `outputs` channels goes this way.

    A rule and no timing at start, so that two replicas on like machines give the same answer, and none by the number of
    images or RoIs, which must not depend on what else was found: docs/engine.md has the measurements behind it.
    """
    channels, height, width = (int(n) for n in x.shape[1:])
    if kernel_of_channels(x.dtype, channels, outputs) is None:
        return False
    # Half the multiplications are left out or more, and the matrices are not read for hardly anything.
    return 2 * REACH**2 * tile_count(height, width) < 9 * height * width and height * width >= 49


class Winograd:
    """A 3×3 convolution with stride 1 and padding 1: relu(convolution(x) + bias + residual), each part as wanted.

    Of bytes, in the engine's int8, it multiplies whole numbers of 16 bits, of which only the weights are rounded, sums
    them in 32 bits, for each 128 channels, and rounds to bytes once.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        kernel: WinogradKernel,
        dtype: torch.dtype,
        *,
        relu: bool,
        output_params: QuantParams = IDENTITY,
    ) -> None:
        """Lay out the weights. ValueError where K or C is no multiple of what the kernel takes at once.

        Args:
            weight: [K, C, 3, 3].
            bias: [K].
            kernel: what computes it.
            dtype: of the input and the result.
            relu: whether negative results become 0.
            output_params: of the result, where that is uint8.
        """
        if len(bias) % kernel.lanes or int(weight.shape[1]) % kernel.at_once:
            raise ValueError(
                f"channels must be multiples of {kernel.lanes}, the input's of {kernel.at_once}, "
                f"not {list(weight.shape[:2])}"
            )
        self._kernel, self._dtype, self._output_params = kernel, dtype, output_params
        self._least = float(output_params.zero_point) if relu else -math.inf
        self._depth, self._channels = len(bias), int(weight.shape[1])
        registers = self._depth // kernel.lanes
        panels = -(-registers // kernel.vectors)
        self._panel = -(-registers // panels) * kernel.lanes
        self._weights, self._scales = self._matrices(weight)
        self._bias = (bias.double() / output_params.scale + output_params.zero_point).float().contiguous()

    def _matrices(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The weights [K, C, 3, 3] as the kernel reads them, flat, and of bytes what their products are multiplied by.

        For each panel of k channels of the result [36, C / together, k, together], and [36, k]: of the 36 products of
        a tile.
        """
        quantised = self._dtype == torch.uint8
        numbers = torch.int16 if quantised else self._dtype
        # Neighbouring channels that one instruction multiplies and sums.
        together = 4 // numbers.itemsize
        taps = torch.from_numpy(weight_transform(self._kernel.near, self._kernel.far))
        both_axes = torch.kron(taps, taps)  # [36, 9]
        laid_out = torch.empty(REACH**2 * self._depth * self._channels, dtype=numbers)
        scales = torch.empty(REACH**2 * self._depth if quantised else 0)
        first = 0
        for panel in torch.split(weight, self._panel):
            # Put in order while there are 9 numbers for each pair of channels, not 36: five times as fast.
            ordered = panel.reshape(len(panel), -1, together, 9).permute(3, 1, 0, 2).reshape(9, -1)
            products = both_axes @ ordered.double()  # [36, C / together * k * together]
            if quantised:
                products, steps = self._quantize(products.view(REACH**2, -1, len(panel), together))
                scales[first // self._channels :][: steps.numel()] = steps.flatten()
            laid_out[first : first + products.numel()].view(REACH**2, -1).copy_(products.flatten(1))
            first += products.numel()
        return laid_out, scales

    def _quantize(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [36, C / 2, K, 2] as whole numbers, and their steps [36, K].

        The steps are the finest with which no sum can leave 32 bits.
        """
        largest = torch.from_numpy(largest_sums(self._kernel.near, self._kernel.far))[:, None]
        # Rounded, each weight may grow by a half.
        most = (2**31 - 1) / largest - self._kernel.summed / 2
        magnitudes = weights.abs()
        parts = torch.split(magnitudes, self._kernel.summed // 2, dim=1)
        sums = torch.stack([part.sum((1, 3)) for part in parts]).amax(0)  # [36, K]
        steps = torch.maximum(sums / most, magnitudes.amax((1, 3)) / (2**15 - 1)).clamp(min=1e-30)
        return weights.div_(steps[:, None, :, None]).round_(), steps

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        out: Tensor | None = None,
        *,
        x_params: QuantParams = IDENTITY,
        residual_params: QuantParams = IDENTITY,
    ) -> Tensor:
        """[B, K, H, W], in `out` if given, from x [B, C, H, W], channels last. `residual` [B, K, H, W] is overwritten.

        Args:
            x: channels last, or copied so.
            residual: added to the result, which takes its place.
            out: where the result goes; not with `residual`.
            x_params: of x, where that is uint8.
            residual_params: of the residual, likewise.
        """
        if residual is not None:
            if out is not None:
                raise ValueError("the result goes onto `residual` or into `out`, not both")
            out = residual
        if x.stride(1) != 1:
            x = x.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        if channels != self._channels:
            raise ValueError(f"the convolution is of {self._channels} channels, not {channels}")
        shape = [batch, self._depth, height, width]
        if out is None:
            out = x.new_empty((batch, height, width, self._depth)).permute(0, 3, 1, 2)
        elif list(out.shape) != shape or out.stride(1) != 1:
            raise ValueError(f"the result must go into a channels-last tensor {shape}, not {list(out.shape)}")
        if {x.dtype, out.dtype} != {self._dtype}:
            raise ValueError(f"the kernel is for tensors of {self._dtype}, not {x.dtype} and {out.dtype}")
        work = Work(
            x=x.data_ptr(),
            weights=self._weights.data_ptr(),
            scales=self._scales.data_ptr(),
            bias=self._bias.data_ptr(),
            result=out.data_ptr(),
            x_image=x.stride(0),
            x_row=x.stride(2),
            x_column=x.stride(3),
            result_image=out.stride(0),
            result_row=out.stride(2),
            result_column=out.stride(3),
            images=batch,
            height=height,
            width=width,
            channels=channels,
            depth=self._depth,
            panel=self._panel,
            block=tiles_per_block(batch * tile_count(height, width), torch.get_num_threads()),
            add=residual is not None,
            x_zero=x_params.zero_point,
            x_step=x_params.scale / self._output_params.scale,
            sum_zero=residual_params.zero_point,
            sum_step=residual_params.scale / self._output_params.scale,
            least=self._least,
        )
        self._kernel.run(work)
        return out


def tiles_per_block(tiles: int, threads: int) -> int:
    """How many tiles a thread works on at once, so that each gets as many such blocks as the others.

    Results do not depend on it.
    """
    most = BLOCK * second_cache()
    blocks = -(-tiles // (most * threads)) * threads
    return -(-tiles // max(blocks, 1))


@cache
def second_cache() -> int:
    """Megabytes of a core's, from 1 to MOST_CACHE; 1 where torch does not know."""
    size = torch.cpu.get_capabilities().get("l2_cache_size", 0)
    return min(max(int(size) // 2**20, 1), MOST_CACHE)


def tile_count(height: int, width: int) -> int:
    """How many tiles cover a feature map."""
    return -(-height // SIDE) * -(-width // SIDE)
