"""Jitter and RandAugment: keyed, as strong as published, and for the images they are for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import ColorJitter

from mrp.data import colour
from mrp.data.augment import View
from mrp.data.augmentations.crop import colour as coloured
from mrp.data.colour import jitter, randaugment
from mrp.data.config import Config, Crop, RandAugment
from mrp.data.decode import UnfitError

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).resize((48, 48))

FILL = (124, 116, 104)  # ImageNet's mean


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_the_same_key_gives_the_same_picture_and_others_others() -> None:
    first = [array(randaugment(PICTURE, RandAugment(), key, FILL)) for key in range(60)]
    assert all((array(randaugment(PICTURE, RandAugment(), key, FILL)) == one).all() for key, one in enumerate(first))
    assert len({one.tobytes() for one in first}) > 35
    untouched = sum((one == array(PICTURE)).all() for one in first)
    assert 5 <= untouched <= 27  # a quarter, for each of two operations is done half of the time


def test_every_operation_is_drawn_alike_and_has_its_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[int] = Counter()
    strengths: list[float] = []

    def note(number: int) -> Any:
        def operation(image: Image.Image, magnitude: float, sign: int, fill: tuple[int, ...]) -> Image.Image:
            seen[number] += 1
            strengths.append(magnitude * sign)
            return image

        return operation

    monkeypatch.setattr(colour, "_OPERATIONS", tuple(note(number) for number in range(15)))
    for key in range(3000):
        randaugment(PICTURE, RandAugment(), key * 7919, FILL)
    assert 2850 < seen.total() < 3150
    assert min(seen.values()) > 140
    assert max(seen.values()) < 270
    sizes = np.abs(strengths)
    assert abs(np.mean(np.sign(strengths))) < 0.06
    assert abs(np.median(sizes) - 0.9) < 0.005
    assert abs(np.std(sizes) - 0.05) < 0.01
    assert sizes.max() <= 1


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (0, ImageOps.autocontrast(PICTURE)),
        (1, ImageOps.equalize(PICTURE)),
        (2, ImageOps.invert(PICTURE)),
        (3, PICTURE.rotate(27, Image.Resampling.BICUBIC, fillcolor=(124, 116, 104))),
        (4, PICTURE.point(lambda value: value & 0b10000000)),  # 4 - int(3.6) = 1 bit is left
        (5, PICTURE.point(lambda value: 255 - value if value >= 26 else value)),
        (6, PICTURE.point(lambda value: min(255, value + 99) if value < 128 else value)),
    ],
)
def test_an_operation_is_the_published_one_at_magnitude_nine(number: int, wanted: Image.Image) -> None:
    found = colour._OPERATIONS[number](PICTURE, 0.9, 1, FILL)
    np.testing.assert_array_equal(array(found), array(wanted))


@pytest.mark.parametrize("number", range(15))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_operation_keeps_size_and_mode(number: int, mode: str) -> None:
    for sign in (1, -1):
        for magnitude in (0.0, 0.37, 1.0):
            found = colour._OPERATIONS[number](PICTURE.convert(mode), magnitude, sign, FILL)
            assert (found.size, found.mode) == (PICTURE.size, mode)


def test_moving_goes_as_far_as_published() -> None:
    right = array(colour._OPERATIONS[13](PICTURE, 1.0, -1, FILL))  # .45 of 48 pixels
    filled = (right == (124, 116, 104)).all((0, 2))
    assert filled.sum() in (21, 22)
    assert filled[:21].all()
    assert np.corrcoef(right[:, 24:, 0].ravel(), array(PICTURE)[:, 2:26, 0].ravel())[0, 1] > 0.7


def test_jitter_spreads_as_torchvision_spreads_it() -> None:
    ours = [array(jitter(PICTURE, 0.4, key)) for key in range(300)]
    torch.manual_seed(0)
    theirs = [array(ColorJitter(0.4, 0.4, 0.4)(PICTURE)) for _ in range(300)]
    for measure in (np.mean, np.std):
        a, b = ([measure(one) for one in many] for many in (ours, theirs))
        assert abs(np.mean(a) - np.mean(b)) < 4
        assert abs(np.std(a) / np.std(b) - 1) < 0.2


def tensor(channels: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return (torch.arange(channels * 40 * 40) % 251).reshape(channels, 40, 40).to(dtype)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_applies_them_after_the_crop(channels: int) -> None:
    augment = Crop(rand=RandAugment(), jitter=0.4)
    view = View(Config(train="x", size=32, channels=channels, augment=augment), True)
    plain = View(Config(train="x", size=32, channels=channels), True)
    changed, fill = 0, FILL if channels == 3 else (128,)
    for key in range(20):
        found = view(tensor(channels), key)
        assert (found.shape, found.dtype) == ((channels, 32, 32), torch.uint8)
        assert torch.equal(found, coloured(plain(tensor(channels), key), augment, key, fill))
        changed += not torch.equal(found, plain(tensor(channels), key))
    assert changed > 15
    evaluation = View(Config(train="x", size=32, channels=channels, augment=augment), False)
    assert torch.equal(evaluation(tensor(channels), 1), View(Config(train="x", size=32), False)(tensor(channels), 1))


def test_other_images_are_refused() -> None:
    view = View(Config(train="x", size=32, augment=Crop(jitter=0.4)), True)
    with pytest.raises(UnfitError, match=r"augment\.jitter and augment\.rand are for images of 8 bits"):
        view(tensor(3, torch.uint16), 1)
    with pytest.raises(ValueError, match=r"jitter and rand are for 1 or 3 channels, and there are 4"):
        Config(train="x", size=32, channels=4, augment=Crop(jitter=0.4))
