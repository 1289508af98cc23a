"""The kernels for ARM's NEON, under QEMU's emulation of such a processor, against torch on this one.

They need the dependency group `kernels` and QEMU's `qemu-aarch64` (Debian's package qemu-user): docs/engine.md.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from model.kernels import bilinear, nms, winograd
from model.kernels.winograd import Winograd

if TYPE_CHECKING:
    from torch import Tensor

EMULATOR = shutil.which("qemu-aarch64")
MISSING = [name for name in ("hatchling", "ziglang") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(
        bool(MISSING), reason=f"not installed (dependency group kernels): {', '.join(MISSING)}"
    ),
    pytest.mark.skipif(EMULATOR is None, reason="there is no qemu-aarch64 (Debian's package qemu-user)"),
]
HARNESS = Path(__file__).with_name("emulated.c")
LANES, VECTORS = 4, 4
# Of winograd.c.
POINTS = 0.6875, 1.5


def compile_for_arm(folder: Path, source: Path, function: str, *more: str) -> Path:
    """A program that runs the kernel's function, with the flags of the package's own build."""
    import hatch_build

    flags = hatch_build.VARIANTS["aarch64"][f"{source.stem}_{'float32_' * (source.stem == 'winograd')}neon"]
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl"]
    kernel, program = folder / f"{source.stem}.o", folder / source.stem
    # What is linked is a library there.
    own = [flag for flag in hatch_build.FLAGS if flag not in ("-nostdlib", "-shared")]
    subprocess.run([*compiler, *own, *flags, "-DSOURCE=0", "-c", source, "-o", kernel], check=True)
    subprocess.run(
        [*compiler, "-static", "-O1", f"-DKERNEL={function}", *more, HARNESS, kernel, "-o", program],
        check=True,
    )
    return program


def emulate(program: Path, work: Any, sizes: dict[str, int]) -> None:
    """Do what `work` describes. sizes: bytes of its arrays by their names, of which the last is the result."""
    place = {name: getattr(type(work), name).offset for name, *_ in work._fields_}
    numbers = [(place[name], size) for name, size in sizes.items()]
    described = np.int64(ctypes.sizeof(work)).tobytes() + bytes(work) + np.int64(len(sizes)).tobytes()
    for (at, size), name in zip(numbers, sizes, strict=True):
        described += np.array([at, size], np.int64).tobytes() + ctypes.string_at(getattr(work, name), size)
    described += np.array([place.get("scratch", -1), place.get("thread_number", -1)], np.int64).tobytes()
    done = subprocess.run([str(EMULATOR), program], input=described, capture_output=True, check=True)
    *_, (name, size) = sizes.items()
    assert len(done.stdout) == size
    ctypes.memmove(getattr(work, name), done.stdout, size)


@pytest.fixture(scope="module")
def convolve(tmp_path_factory: pytest.TempPathFactory) -> winograd.WinogradKernel:
    folder = tmp_path_factory.mktemp("winograd")
    program = compile_for_arm(folder, winograd.SOURCE, "convolve", "-DHAS_SCRATCH")

    class Emulated(winograd.WinogradKernel):
        def run(self, work: winograd.Work) -> None:
            numbers = {
                "x": work.images * work.x_image,
                "weights": winograd.REACH**2 * work.channels * work.depth,
                "bias": work.depth,
                "result": work.images * work.result_image,
            }
            emulate(program, work, {name: 4 * count for name, count in numbers.items()})

    near, far = POINTS
    sizes = {"lanes": LANES, "vectors": VECTORS, "at_once": LANES, "summed": 0}
    return Emulated(None, (0, 0), near=near, far=far, **sizes)


@pytest.mark.parametrize(
    ("batch", "height", "width", "inputs", "outputs"),
    [
        (1, 14, 14, 16, 16),
        (2, 7, 9, 4, 12),
        (1, 23, 5, 20, 36),
        (1, 1, 1, 8, 4),
        (3, 16, 16, 64, 68),
        (1, 50, 33, 12, 20),
    ],
)
@pytest.mark.parametrize(("relu", "has_residual"), [(False, False), (True, False), (True, True)])
def test_convolutions_are_torchs(  # noqa: PLR0917 - what pytest gives it
    convolve: winograd.WinogradKernel,
    batch: int,
    height: int,
    width: int,
    inputs: int,
    outputs: int,
    *,
    relu: bool,
    has_residual: bool,
) -> None:
    torch.manual_seed(height)
    x = torch.randn(batch, inputs, height, width).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5), torch.randn(outputs)
    residual = torch.randn(batch, outputs, height, width).contiguous(memory_format=torch.channels_last)
    expected = functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    if has_residual:
        expected += residual
    if relu:
        expected = expected.relu()
    made = Winograd(weight, bias, convolve, torch.float32, relu=relu)
    found = made(x, residual.clone(memory_format=torch.preserve_format)) if has_residual else made(x)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)


@pytest.fixture(scope="module")
def resize(tmp_path_factory: pytest.TempPathFactory) -> bilinear.ResizeKernel:
    program = compile_for_arm(tmp_path_factory.mktemp("bilinear"), bilinear.SOURCE, "resize")

    class Library:
        @staticmethod
        def resize(address: int, _parallel: int, _threads: int) -> None:
            work = bilinear.Work.from_address(address)
            rows, columns = ((8 * n, 8 * n, 4 * n) for n in (work.height, work.width))
            names = ("above", "below", "down"), ("left", "right", "across")
            axes = {
                n: s
                for own, sizes in zip(names, (rows, columns), strict=True)
                for n, s in zip(own, sizes, strict=True)
            }
            last = int(np.frombuffer(ctypes.string_at(work.below, rows[0]), np.int64).max())
            result = work.height * work.result_row * (2 if work.is_bfloat16 else 4)
            emulate(program, work, {"photo": (last + 1) * work.photo_row, **axes, "result": result})

    return bilinear.ResizeKernel(Library, 0)


def resized(
    kernel: bilinear.ResizeKernel, photo: np.ndarray, size: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    result = torch.zeros(*size, 3, dtype=dtype)
    kernel(photo, result, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([-1.0, 0.0, 1.0]))
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("before", "after"), [((30, 40), (17, 23)), ((5, 7), (64, 50)), ((1, 1), (3, 3))])
def test_photos_become_what_they_become_on_x86_bit_for_bit(
    resize: bilinear.ResizeKernel, before: tuple[int, int], after: tuple[int, int], dtype: torch.dtype
) -> None:
    ours = bilinear.kernel()
    if ours is None:
        pytest.skip("there is no kernel for this processor to compare with")
    photo = np.random.default_rng(0).integers(0, 256, (*before, 3), np.uint8)
    assert torch.equal(resized(resize, photo, after, dtype), resized(ours, photo, after, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_survivors_are_those_on_x86(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = compile_for_arm(tmp_path, nms.SOURCE, "suppress")

    def suppress(address: int) -> None:
        work = nms.Work.from_address(address)
        number = work.count * dtype.itemsize
        emulate(program, work, {"boxes": 4 * number, "areas": number, "is_suppressed": work.count})

    corner = torch.rand(300, 2, generator=torch.Generator().manual_seed(0)) * 60
    boxes = torch.cat([corner, corner + 1 + corner.flip(0) / 2], 1).to(dtype)
    scores = boxes[:, 2] % 1
    expected = nms.load_operators().nms(boxes, scores, 0.4)
    monkeypatch.setattr(nms, "kernel", lambda: suppress)
    assert torch.equal(nms.nms(boxes, scores, 0.4), expected)
