"""Chains of augmentations: right in their pixels, decided by the key alone, and recognised by a resumed run."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from mrp.api import pretrain
from mrp.cli import main
from mrp.config import ConfigError, Tree, build
from mrp.data.augment import View
from mrp.data.augmentations.crop import Augmentation as Crop
from mrp.data.augmentations.jitter import _brightness, _contrast, _hue, _saturation
from mrp.data.config import Config
from mrp.data.decode import UnfitError
from mrp.run import load
from tests.data.conftest import SMALL

DIMMER = '''
"""Images that are darker."""
from typing import Literal
import torch
from mrp.data import augment
from mrp.data.augment import draws
from mrp.data.config import Change

class Config(Change):
    name: Literal["dimmer"] = "dimmer"
    most: float = 0.5

class Augmentation(augment.Augmentation):
    def __call__(self, image, key):
        return (image.float() * (1 - self.config.most * next(draws(key)))).to(image.dtype)
'''
LEFT = '''
"""The left half of an image."""
from typing import Literal
from mrp.data import augment
from mrp.data.config import Frame

class Config(Frame):
    name: Literal["left"] = "left"

class Augmentation(augment.Framing):
    def box(self, size, key):
        return 0, 0, size[0], size[1] // 2

    def __call__(self, image, key):
        return image
'''
WORDS = ["demo", "data.test=null", "machine.workers=1", *SMALL]


def picture(channels: int = 3, kind: torch.dtype = torch.uint8, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(channels, side, side, generator=generator)
    largest = {torch.uint8: 255.0, torch.uint16: 65535.0}.get(kind, 1.0)
    return (numbers * largest).to(kind)


def view(*chain: Any, channels: int = 3, size: Any = 16, train: bool = True) -> View:
    values = {"train": "digits", "size": size, "channels": channels, "mean": 0.5, "std": 0.5, "augment": list(chain)}
    return View(build(Config, Tree(values, {})), train)


def test_a_chain_does_each_in_turn_after_the_first() -> None:
    """The crop is what it is alone; what stands behind it sees its result."""
    image = picture(side=40)
    alone, chained = view("crop"), view("crop", {"name": "solarise", "threshold": 0})
    for key in range(10):
        assert torch.equal(chained(image, key), 255 - alone(image, key))
    twice = view("resize", *[{"name": "flip", "chance": 1}] * 2)
    assert torch.equal(twice(picture(), 1), picture())


def test_each_of_a_chain_has_a_key_of_its_own() -> None:
    """Two of one kind do not draw the same, and chances are kept."""
    image, both = picture(), view("resize", "flip", {"name": "flip", "axis": "vertical"})
    seen = [int(torch.equal(one, image)) for one in (both(image, key) for key in range(400))]
    assert 70 < sum(seen) < 130  # a quarter, where neither is done
    half = view("resize", {"name": "solarise", "chance": 0.1})
    assert 20 < sum(not torch.equal(half(image, key), image) for key in range(400)) < 60


def test_quarter_turns_are_those_of_numpy_each_as_often() -> None:
    image, turned = picture(), view("resize", "rotate90")
    wanted = [np.rot90(image.numpy(), turns, (1, 2)) for turns in range(4)]
    found = [next(n for n, one in enumerate(wanted) if (turned(image, key).numpy() == one).all()) for key in range(400)]
    assert min(np.bincount(found, minlength=4)) > 65


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.float32])
def test_blur_is_torchvisions_inside_the_edges(kind: torch.dtype) -> None:
    image = picture(5, kind, 32)
    blurred = view("resize", {"name": "blur", "deviation": [1.5, 1.5]}, channels=5, size=32)(image, 3)
    wanted = functional.gaussian_blur(image.float(), [11, 11], [1.5, 1.5])
    assert blurred.dtype == kind
    error = (blurred.float() - wanted)[:, 6:-6, 6:-6].abs().max()
    assert error < (1e-5 if kind == torch.float32 else 0.52)
    assert blurred.float().std() < 0.5 * image.float().std()


def test_solarise_is_pillows_and_has_its_like_for_16_bits() -> None:
    image = picture()
    found = view("resize", "solarise")(image, 1)
    assert torch.equal(found, functional.solarize(image, 128))
    deep = view("resize", "solarise", channels=1)(picture(1, torch.uint16), 1)
    numbers = picture(1, torch.uint16).int()
    assert torch.equal(deep.int(), torch.where(numbers >= 32768, 65535 - numbers, numbers))


def test_grey_is_the_brightness_of_the_conversion() -> None:
    image = picture()
    found = view("resize", "grey")(image, 1)
    assert (found == found[:1]).all()
    assert (found.float() - functional.rgb_to_grayscale(image, 3).float()).abs().max() <= 1


@pytest.mark.parametrize("share", [-0.3, 0.0, 0.2, 0.45])
def test_jitter_has_the_formulas_of_torchvision(share: float) -> None:
    pixels = picture(3, torch.float32)
    pairs = [
        (_brightness, functional.adjust_brightness), (_contrast, functional.adjust_contrast),
        (_saturation, functional.adjust_saturation),
    ]  # fmt: skip
    for ours, theirs in pairs:
        torch.testing.assert_close(ours(pixels, share).clamp(0, 1), theirs(pixels, 1 + share), rtol=0, atol=2e-3)
    torch.testing.assert_close(_hue(pixels, share), functional.adjust_hue(pixels, share), rtol=0, atol=1e-4)


def test_hue_is_bit_for_bit_its_formula() -> None:
    """In the form in which runs before it computed it."""
    pixels = (picture(3, torch.uint8, 40) // 50).float() / 5  # with equal colours among them
    value, chroma = pixels.amax(0), pixels.amax(0) - pixels.amin(0)
    (red, green, blue), there = pixels, chroma.clamp_min(1e-12)
    other = torch.where(value == green, 2 + (blue - red) / there, 4 + (red - green) / there)
    sixth = torch.where(value == red, (green - blue) / there, other)
    for share in np.linspace(-0.5, 0.5, 49).tolist():
        turns = (sixth + 6 * share + torch.tensor([5.0, 3.0, 1.0])[:, None, None]) % 6
        assert torch.equal(_hue(pixels, share), value - chroma * torch.minimum(turns, 4 - turns).clamp(0, 1))


def test_jitter_varies_as_it_says_and_takes_any_channels() -> None:
    image = torch.full((5, 16, 16), 100, dtype=torch.uint8)
    plain = {"name": "jitter", "contrast": 0, "saturation": 0, "hue": 0, "brightness": 0.5}
    jittered = view("resize", plain, channels=5)
    means = [float(jittered(image, key).float().mean()) for key in range(200)]
    assert 50 <= min(means) < 60
    assert 140 < max(means) <= 150
    floats = view("resize", plain | {"contrast": 0.4}, channels=5)(1000 * picture(5, torch.float32), 1)
    assert floats.max() > 300, "numbers without a range are not cut off"


def test_numbers_without_a_range_are_refused_where_it_matters() -> None:
    image = picture(3, torch.float32)
    for chain, message in ((("resize", "solarise"), "solarise is for"), (("resize", "jitter"), "hue is for")):
        with pytest.raises(UnfitError, match=message):
            view(*chain)(image, 1)


def test_a_list_of_one_is_that_one_and_evaluation_sees_no_chain() -> None:
    assert view("crop", train=False)(picture(side=40), 1).equal(view("crop", "blur", train=False)(picture(side=40), 2))
    assert load("demo", ["data.augment=[resize]"]).data == load("demo").data
    data = load("demo", ["data.augment=[resize, flip, {name: flip, axis: vertical}]"]).data
    assert (data.mirrors, load("demo").data.mirrors) == (True, False)
    assert Config.model_validate(data.model_dump(mode="json")) == data


def test_a_crop_of_a_chain_decodes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    chained = view("crop", "flip")
    found = chained.decoded(pixels, [1, 2, 3])
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    assert all(torch.equal(one, chained(image, key)) for one, key in zip(found, (1, 2, 3), strict=True))
    monkeypatch.setattr(Crop, "box", lambda *_: (10, 10, 5, 5))
    monkeypatch.setattr("mrp.data.augment.resize", lambda image, *_: image)
    assert chained.decoded(pixels, [1])[0].shape == (3, 5, 5)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dimmer.py").write_text(DIMMER)
    (tmp_path / "left.py").write_text(LEFT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_of_ones_own_change_and_frame(own: Path) -> None:
    image = picture(side=40)
    seen = view("./left.py", {"name": "./dimmer.py", "most": 1.0})
    whole = view("resize")(image[:, :, :20], 0).float()
    shares = [float(seen(image, key).float().mean() / whole.mean()) for key in range(50)]
    assert min(shares) < 0.1 < 0.9 < max(shares)
    assert torch.equal(pickle.loads(pickle.dumps(seen))(image, 1), seen(image, 1))


def test_a_file_of_ones_own_may_change_its_image_and_no_other(own: Path) -> None:
    (own / "dimmer.py").write_text(DIMMER.replace("return (", "image.mul_(0)\n        return ("))
    image = picture()
    before = image.clone()
    assert not view("resize", "./dimmer.py")(image, 0).any()
    (own / "left.py").write_text(
        LEFT.replace("size[1] // 2", "size[1]").replace("return image", "return image.mul_(0)")
    )
    assert not view("./left.py")(image, 0).any()
    assert torch.equal(image, before)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("image.float()", "returns a tensor of torch.float32 and shape (3, 16, 16) for an image of torch.uint8 and"),
        ("image[:, :4]", "returns a tensor of torch.uint8 and shape (3, 4, 16) for"),
        ("None", "returns a NoneType for"),
        ("image.numpy()", "returns a ndarray for"),
    ],
)
def test_an_augmentation_of_ones_own_keeps_the_form_of_an_image(own: Path, returned: str, message: str) -> None:
    (own / "dimmer.py").write_text(DIMMER.replace("return (", f"return {returned}\n        return ("))
    with pytest.raises(ConfigError, match=rf"dimmer.py: {re.escape(message)}"):
        view("resize", "./dimmer.py")(picture(), 0)
    (own / "left.py").write_text(LEFT.replace("return image", f"return {returned}"))
    with pytest.raises(ConfigError, match=rf"left.py: {re.escape(message)}"):
        view("./left.py")(picture(), 0)


@pytest.mark.parametrize("box", ["0, 0, size[0], size[1] + 1", "-1, 0, size[0], 5", "0, 0, 0, 5", "3, 0, size[0], 5"])
def test_a_box_of_ones_own_lies_inside_the_image(own: Path, box: str) -> None:
    """Another part of the image was taken in its place, or less of it."""
    (own / "left.py").write_text(LEFT.replace("0, 0, size[0], size[1] // 2", box))
    with pytest.raises(
        ConfigError, match=r"left.py: chooses the box .* of an image of 16 x 16 pixels; choose one that"
    ):
        view("./left.py")(picture(), 0)


def test_a_run_goes_on_with_its_chain_and_with_no_other(own: Path) -> None:
    chain = "data.augment=[resize, {name: ./dimmer.py, most: 0.3}, flip]"
    main(["pretrain", *WORDS, chain, "--folder", "run"])
    identity = json.loads(Path("run/identity.json").read_text())
    assert identity["data.augment.1.name"] == "dimmer.py"
    assert len(identity["data.augment.1.content"]) == 64
    assert Path("run/code/dimmer.py").is_file()
    Path("elsewhere").mkdir()
    Path("dimmer.py").rename("elsewhere/dimmer.py")
    for key in ("data.augment.2.chance", "data.augment.2.axis"):  # as if the option did not exist then
        del identity[key]
    Path("run/identity.json").write_text(json.dumps(identity))
    main(["pretrain", "run/config.yaml", "length=3 steps", "resume.allow=[length]", "--folder", "run"])
    other = chain.replace("0.3", "0.4").replace("./", "./elsewhere/")
    with pytest.raises(ConfigError, match=r"data\.augment\.1\.most = 0\.3, not 0\.4"):
        pretrain(*WORDS, other, "length=3 steps", folder="run")
