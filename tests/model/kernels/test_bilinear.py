"""The compiled resizing; that its results are torchvision's is tested in tests/model/inference/test_preprocess.py."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch.nn import functional

from model.errors import EngineError
from model.kernels import bilinear
from model.kernels.compiled import openmp_functions
from model.kernels.openmp import use_threads
from model.kernels.processor import AVX2

if TYPE_CHECKING:
    from pathlib import Path

SCALE, SHIFT = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([-1.0, 0.0, 1.0])
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module")
def kernel() -> bilinear.ResizeKernel:
    has = torch.cpu.get_capabilities()
    if sys.platform != "linux" or platform.machine() != "x86_64" or not all(map(has.get, AVX2)):
        pytest.skip("not for this processor")
    if openmp_functions() is None:
        pytest.skip("torch has no OpenMP here")
    found = bilinear.kernel()
    assert found is not None
    return found


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_size_is_exact(kernel: bilinear.ResizeKernel, dtype: torch.dtype) -> None:
    image = photo(37, 53)
    result = torch.empty(37, 53, 3, dtype=dtype)
    kernel(image, result, torch.ones(3), torch.zeros(3))
    assert torch.equal(result, torch.from_numpy(image).to(dtype))


@pytest.mark.parametrize(
    "size", [(97, 301, 64, 200), (97, 301, 211, 640), (1, 300, 32, 64), (900, 60, 150, 10)]
)
def test_it_is_torchs_kernel_for_several_threads(
    kernel: bilinear.ResizeKernel, size: tuple[int, int, int, int]
) -> None:
    image, result = photo(*size[:2]), torch.empty(*size[2:], 3)
    kernel(image, result, torch.ones(3), torch.zeros(3))
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float().contiguous()
    with use_threads(2):
        expected = functional.interpolate(planes, size[2:], mode="bilinear", align_corners=False)
    # Another way to round would be seen: torch's kernel for one thread differs by a thousandth and more.
    torch.testing.assert_close(result, expected[0].permute(1, 2, 0), atol=4e-5, rtol=0)


def test_half_way_between_two_bfloat16_the_even_one_is_taken(kernel: bilinear.ResizeKernel) -> None:
    values = 1 + torch.arange(-8, 256) / 256  # half of them lie so
    for value in values.tolist():
        result = torch.empty(1, 1, 3, dtype=torch.bfloat16)
        kernel(np.ones((1, 1, 3), np.uint8), result, torch.full((3,), value), torch.zeros(3))
        assert torch.equal(result, torch.full((1, 1, 3), value).bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_any_number_of_threads_gives_the_same(
    kernel: bilinear.ResizeKernel, dtype: torch.dtype, threads: int
) -> None:
    results = [torch.empty(150, 211, 3, dtype=dtype) for _ in range(2)]
    for count, result in zip((1, threads), results, strict=True):
        with use_threads(count):
            kernel(photo(97, 301), result, SCALE, SHIFT)
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_written_beside_a_part_of_an_array(
    kernel: bilinear.ResizeKernel, dtype: torch.dtype
) -> None:
    around = torch.full((40, 50, 3), 7.0, dtype=dtype)
    kernel(photo(90, 61), around[3:33, 4:45], SCALE, SHIFT)
    alone = torch.empty(30, 41, 3, dtype=dtype)
    kernel(photo(90, 61), alone, SCALE, SHIFT)
    assert torch.equal(around[3:33, 4:45], alone)
    around[3:33, 4:45] = 7
    assert (around == 7).all()


@pytest.mark.parametrize("step", ["rows", "columns", "upside down", "mirrored"])
def test_parts_of_photos_are_read_where_they_are(kernel: bilinear.ResizeKernel, step: str) -> None:
    whole = photo(80, 90)
    part = {
        "rows": whole[5:75:2, 3:83],
        "columns": whole[5:75, 3:83:2],
        "upside down": whole[::-1],
        "mirrored": whole[:, ::-1],
    }[step]
    results = [torch.empty(33, 47, 3) for _ in range(2)]
    for image, result in zip((part, part.copy()), results, strict=True):
        kernel(image, result, SCALE, SHIFT)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("image", "result"),
    [
        (photo(4, 4).astype(np.float32), torch.empty(4, 4, 3)),
        (photo(4, 4)[..., :2], torch.empty(4, 4, 3)),
        (photo(4, 4)[:0], torch.empty(4, 4, 3)),
        (photo(4, 4), torch.empty(4, 4, 3, dtype=torch.float16)),
        (photo(4, 4), torch.empty(3, 4, 4).permute(1, 2, 0)),
        (photo(4, 4), torch.empty(4, 4, 3)[..., :2]),
        (photo(4, 4), torch.empty(4, 0, 3)),
        (photo(4, 4), torch.empty(4, 4, 3, device="meta")),
    ],
)
def test_other_arrays_are_refused(
    kernel: bilinear.ResizeKernel, image: np.ndarray, result: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match="not"):
        kernel(image, result, SCALE, SHIFT)


def test_numbers_of_other_channels_are_refused(kernel: bilinear.ResizeKernel) -> None:
    with pytest.raises(ValueError, match="three channels"):
        kernel(photo(4, 4), torch.empty(4, 4, 3), SCALE[:1], SHIFT)


def test_a_missing_or_broken_library_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "bilinear_avx2.so"
    monkeypatch.setattr(bilinear, "SOURCE", tmp_path / "bilinear.c")
    monkeypatch.setattr(bilinear, "openmp_functions", lambda: (0, 0))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(AVX2, True))
    bilinear.kernel.cache_clear()
    try:
        assert bilinear.kernel() is None
        assert "bilinear_avx2.so is not there: photos take" in caplog.text
        bilinear.kernel.cache_clear()
        broken.write_bytes(b"no library")
        with pytest.raises(EngineError, match=r"bilinear_avx2\.so cannot be loaded: [^\n]*$"):
            bilinear.kernel()
    finally:
        bilinear.kernel.cache_clear()
