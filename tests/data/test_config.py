"""The `data:` section: what it fills in, and what is said of mistakes in it."""

from __future__ import annotations

from typing import Any

import pytest

from mrp.config import ConfigError, Tree, build
from mrp.data.config import Config, Crop, Resize


def config(**values: Any) -> Config:
    data = {"train": "digits", "size": 8, **values}
    return build(Config, Tree(data, dict.fromkeys(data, "x.yaml")))


def test_the_section_fills_in_what_follows_from_the_channels() -> None:
    colour = config(size=[224, 192])
    assert colour.shape == (224, 192)
    assert (colour.mean, colour.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    grey = config(channels=1)
    assert (grey.shape, grey.mean, grey.std) == ((8, 8), (0.5,), (0.25,))
    assert config(channels=5, mean=0.4, std=[1]).mean == (0.4,) * 5
    assert Config.model_validate(colour.model_dump()) == colour


def test_a_bare_name_means_the_usual_options() -> None:
    assert config(augment="crop").augment == Crop() == config().augment
    assert config(augment="resize").augment == Resize()
    assert config(augment={"name": "crop", "scale": [0.67, 1]}).augment == Crop(scale=(0.67, 1.0))
    again = config(augment={"name": "resize", "flip": True})
    assert Config.model_validate(again.model_dump()) == again


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": [0.5, 0.5]}, "mean: 2 numbers were given; allowed: one, or one for each of the 3 channels"),
        ({"channels": 2, "std": [1, 2, 3]}, "std: 3 numbers were given; allowed: one, or one for each of the 2"),
        ({"channels": ["a", "b"], "mean": [0.5] * 3}, "mean: 3 numbers were given; allowed: one, or "),
        ({"std": 0}, "std: [0.0] was given; allowed: numbers above 0"),
        ({"size": 0}, "size: 0 was given; allowed: numbers from 1"),
        ({"size": [8, -1]}, "size: (8, -1) was given; allowed: numbers from 1"),
        ({"channels": 0}, "channels: 0 was given; allowed: a number from 1"),
        ({"channels": []}, "channels: [] was given"),
        ({"channels": ["a", "b", "a"]}, "channels: ['a', 'b', 'a'] was given; allowed: a number from 1"),
        ({"tail": "dorp"}, "tail: 'dorp' was given"),
        ({"sizes": 8}, "sizes: unknown key; did you mean 'size'"),
        ({"train": []}, "train: nothing was given"),
        ({"train": [{"source": "a", "weight": 0}]}, "train.0.weight: 0 was given"),
        ({"train": [{"source": "a", "wight": 1}]}, "train.0.wight: unknown key"),
        ({"fraction": 0}, "fraction: 0 was given"),
        ({"fraction": 2}, "fraction: 2 was given"),
        ({"lanes": 0}, "lanes: 0 was given"),
        ({"augment": "crp"}, "augment: unknown augmentation 'crp'; did you mean 'crop'?; known: blur, crop, flip, "),
        ({"augment": {"scale": [0.5, 1]}}, "augment: a section with a name is needed, such as {name: crop}; known: "),
        ({"augment": {"name": "crop", "scale": [0, 1]}}, "augment.scale: [0.0, 1.0] was given; allowed: two "
         "shares of the area, 0 < low <= high <= 1"),
        ({"augment": {"name": "crop", "ratio": [2, 1]}}, "augment.ratio: [2.0, 1.0] was given; allowed: two "
         "ratios of width to height, 0 < low <= high"),
        ({"augment": {"name": "resize", "scale": [0.5, 1]}}, "augment.scale: unknown key"),
        ({"augment": {"name": "crop", "flop": True}}, "augment.flop: unknown key; did you mean 'flip'"),
        ({"augment": "blur"}, "augment: blur stands first, where crop or resize is needed: [crop, blur]"),
        ({"augment": ["crop", "resize"]}, "augment: resize stands behind crop, and can only be the first; take one"),
        ({"augment": ["crop", {"name": "blurr"}]}, "augment.1: unknown augmentation 'blurr'; did you mean 'blur'?"),
        ({"augment": ["crop", {"name": "blur", "chanse": 1}]}, "augment.1.chanse: unknown key; did you mean 'chance'?"),
        ({"augment": ["crop", "grey"], "channels": 1}, "augment: grey is for 3 channels, and there are 1; leave "),
        ({"augment": ["crop", "jitter"], "channels": 5}, "augment: saturation and hue are for 3 channels, and there "),
        ({"augment": ["crop", "rotate90"], "size": [8, 16]}, "augment: rotate90 is for square images, and data.size "),
        ({"augment": {"name": "crop", "jitter": 0.1}, "channels": list("abcde")}, "augment: jitter and rand are for "),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        config(**values)
    assert str(error.value).startswith(f"x.yaml: {message}")
    assert "\n" not in str(error.value)
