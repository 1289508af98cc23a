"""The network's input against torchvision's own transform."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from model.inference.preprocess import Preprocessor
from model.kernels import bilinear
from model.kernels.convolution import Format

if TYPE_CHECKING:
    from collections.abc import Iterator

MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(params=["in C", "by torch"], scope="module", autouse=True)
def _way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways through: the compiled kernel, and what takes its place where there is none."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "by torch":
            patch.setattr(bilinear, "kernel", lambda: None)
        elif bilinear.kernel() is None:
            pytest.skip("there is no kernel for this processor")
        yield


def both(
    images: list[np.ndarray], low: int, high: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    transform = GeneralizedRCNNTransform(low, high, MEAN, DEVIATION)
    expected, _ = transform([torch.from_numpy(image).permute(2, 0, 1) / 255 for image in images])
    padded = int(expected.tensors.shape[2]), int(expected.tensors.shape[3])
    found = Preprocessor(transform, Format(torch.device("cpu"), dtype))(images, expected.image_sizes, padded)
    return found, expected.tensors


@settings(deadline=None, max_examples=80)
@given(st.integers(2, 400), st.integers(2, 400), st.sampled_from([(32, 64), (100, 150), (224, 400)]))
def test_any_size_equals_torchvision(height: int, width: int, limits: tuple[int, int]) -> None:
    if min(height, width) * limits[1] < max(height, width):
        return  # torchvision fails at images that would get no pixel
    found, expected = both([noise(height, width)], *limits, torch.float32)
    # Which rows a row lies between is known to a millionth of a pixel, and noise differs by 4 from pixel to pixel.
    torch.testing.assert_close(found, expected, atol=5e-4, rtol=0)


@pytest.mark.parametrize("size", [(700, 933), (2000, 150), (199, 1700)])
def test_large_images_equal_torchvision(size: tuple[int, int]) -> None:
    found, expected = both([noise(*size)], 96, 160, torch.float32)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_images_of_a_batch_are_padded_with_zeros_to_one_shape() -> None:
    images = [noise(100, 130), noise(96, 128), noise(301, 402)]
    found, expected = both(images, 96, 160, torch.float32)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_is_the_rounded_result() -> None:
    found, expected = both([noise(240, 320)], 96, 160, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.01)


def test_read_only_and_strided_images_are_read() -> None:
    image = noise(96, 128)
    wide = np.repeat(image, 2, axis=1)[:, ::2]
    wide.flags.writeable = False
    normalise = Preprocessor(
        GeneralizedRCNNTransform(96, 160, MEAN, DEVIATION), Format(torch.device("cpu"), torch.float32)
    )
    one, other = (normalise([photo], [(96, 128)], (96, 128)) for photo in (image, wide))
    assert torch.equal(one, other)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_one_pixel_is_stretched(size: tuple[int, int]) -> None:
    transform = GeneralizedRCNNTransform(32, 64, MEAN, DEVIATION)
    normalise = Preprocessor(transform, Format(torch.device("cpu"), torch.float32))
    image = np.full((*size, 3), 255, np.uint8)
    found = normalise([image], [(32, 64)], (32, 64))
    white = (1 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    torch.testing.assert_close(found, white[None, :, None, None].expand(1, 3, 32, 64), atol=1e-5, rtol=0)
