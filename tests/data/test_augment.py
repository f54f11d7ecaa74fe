"""Crops, flips and resizes: right in their pixels, and the same wherever the same key is met."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import CenterCrop, Compose
from torchvision.transforms.v2 import Resize as TorchvisionResize
from torchvision.transforms.v2.functional import resized_crop

from mrp.data.augment import View, crop_box, resize, uniforms
from mrp.data.config import Config, Crop

BICUBIC = InterpolationMode.BICUBIC


def photo(height: int, width: int, channels: int = 3) -> Tensor:
    rows, columns = np.mgrid[:height, :width] / 8
    waves = [np.sin(rows * (1 + channel)) + np.cos(columns + channel) for channel in range(channels)]
    return torch.from_numpy((np.stack(waves, -1) * 60 + 128).astype(np.uint8)).permute(2, 0, 1)


def view(train: bool, size: Any = 32, **options: Any) -> View:
    return View(Config(train="digits", size=size, **options), train)


@given(height=st.integers(1, 600), width=st.integers(1, 600), key=st.integers(0, 2**63 - 1), low=st.floats(0.05, 0.9))
def test_a_crop_lies_inside_and_has_the_asked_shape(height: int, width: int, key: int, low: float) -> None:
    crop = Crop(scale=(low, 1.0))
    top, left, h, w = crop_box((height, width), crop, uniforms(key)[1:])
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    if min(h, w) > 30 and 0.8 < height / width < 1.25:  # where the centre crop, too, is almost the whole image
        assert 0.72 < w / h < 1.39
        assert low * 0.95 < h * w / (height * width)


def test_crops_are_spread_as_torchvision_spreads_them() -> None:
    """Area uniform, logarithm of the ratio uniform, position uniform."""
    boxes = np.array([crop_box((1000, 1000), Crop(), uniforms(key * 7919)[1:]) for key in range(4000)])
    top, left, height, width = boxes.T
    free = width < 990
    assert abs((left[free] / (1000 - width[free])).mean() - 0.5) < 0.02
    assert abs((top[height < 990] / (1000 - height[height < 990])).mean() - 0.5) < 0.02
    assert abs(np.log(width / height).mean()) < 0.02
    small = height * width / 1e6 < 0.6  # large areas are under-represented: they fit less often
    assert abs(np.quantile((height * width / 1e6)[small], 0.5) - 0.4) < 0.02


def test_an_image_too_long_for_any_crop_gives_its_centre() -> None:
    draws = uniforms(1)[1:]
    assert crop_box((10, 1000), Crop(scale=(0.9, 1)), draws) == (0, 493, 10, 13)
    assert crop_box((1000, 10), Crop(scale=(0.9, 1)), draws) == (493, 0, 13, 10)


def test_draws_are_uniform_and_apart() -> None:
    draws = np.array([uniforms(key) for key in range(5000)])
    assert np.abs(draws.mean(0) - 0.5).max() < 0.03
    correlation = np.corrcoef(draws.T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.08
    assert len(np.unique(draws)) == draws.size


@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, (48, 20)])
def test_training_pixels_are_those_of_torchvision(size: Any, how: str) -> None:
    image, train = photo(120, 90), view(True, size, augment={"name": "crop", "interpolation": how})
    flipped = 0
    for key in range(20):
        flip, *draws = uniforms(key)
        wanted = resized_crop(
            image, *crop_box((120, 90), Crop(), draws), list(train.size), InterpolationMode(how), antialias=True
        )
        flipped += flip < 0.5
        torch.testing.assert_close(train(image, key), wanted.flip(-1) if flip < 0.5 else wanted, rtol=0, atol=0)
    assert 3 < flipped < 17


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (256, 256), (97, 411), (20, 25)])
def test_evaluation_pixels_are_those_of_torchvision(height: int, width: int) -> None:
    image = photo(height, width)
    wanted = Compose([TorchvisionResize(64, BICUBIC, antialias=True), CenterCrop(56)])(image)
    for how in ("bicubic", "bilinear"):  # which is for crops alone
        seen = view(False, 56, augment={"name": "crop", "interpolation": how})(image, 5)
        torch.testing.assert_close(seen, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(32, 64), (64, 32)])
def test_evaluation_covers_sizes_that_are_not_square(size: tuple[int, int]) -> None:
    for image in (photo(100, 300), photo(300, 100), photo(100, 100)):
        assert view(False, size)(image, 0).shape == (3, *size)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_resizing_bytes_is_resizing_numbers(channels: int) -> None:
    image = photo(70, 90, channels)
    wanted = resize(image.float(), (32, 48)).clamp(0, 255)
    assert (resize(image, (32, 48)).float() - wanted).abs().max() <= 2


def test_sixteen_bits_are_resized_without_loss() -> None:
    image = (photo(70, 90, 1).int() * 257).to(torch.uint16)
    small = resize(image, (32, 48))
    assert small.dtype == torch.uint16
    wanted = resize(image.float(), (32, 48)).clamp(0, 0xFFFF)
    assert (small.float() - wanted).abs().max() <= 0.51
    assert view(True, 32, channels=1)(image, 3).dtype == torch.uint16


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = photo(32, 32)
    assert torch.equal(view(False)(image, 1), image)
    assert torch.equal(view(False, augment="resize")(image, 1), image)
    assert torch.equal(view(True, augment="resize")(image, 1), image)
    flipping = view(True, augment={"name": "resize", "flip": True})
    seen = [torch.equal(flipping(image, key), image.flip(2)) for key in range(50)]
    assert seen == [uniforms(key)[0] < 0.5 for key in range(50)]


def test_resize_shows_the_whole_image_in_evaluation_too() -> None:
    image = photo(60, 90)
    assert torch.equal(view(False, augment="resize")(image, 1), resize(image, (32, 32)))


@given(key=st.integers(0, 2**63 - 1))
def test_the_same_key_gives_the_same_pixels(key: int) -> None:
    image = photo(40, 50)
    torch.manual_seed(0)
    first = view(True)(image, key)
    torch.manual_seed(1)
    assert torch.equal(view(True)(image.contiguous(), key), first)


def test_the_draws_of_this_version_stay() -> None:
    """A change here changes every run's crops."""
    assert crop_box((375, 500), Crop(), uniforms(12345)[1:]) == (77, 62, 207, 213)
