"""Channels by name: in the run's order, some of them missing, from one source or from several that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mrp.batch import Batch
from mrp.config import ConfigError, Tree, build
from mrp.data.augment import View
from mrp.data.config import CacheConfig, Config
from mrp.data.decode import decode
from mrp.data.open import open_data
from mrp.data.order import Order
from mrp.data.source import DecodeError, Partial, Source
from mrp.data.storage.cache import Cache
from tests.data.conftest import evaluated, loaded
from tests.data.test_own_source import STRIPES

PIXELS = np.random.default_rng(0).integers(1, 256, (6, 8, 8, 3), np.uint8)
PRESENT = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1], [1, 1, 0]], bool)


def data(train: Any, **more: Any) -> Config:
    values = {"train": train, "size": 8, "augment": "resize", "mean": 0.5, "std": 0.25}
    return build(Config, Tree(values | more, {"": "the test"}))


def opened(config: Config) -> Source:
    return open_data(config, "train", Cache(CacheConfig()))


def arrays(folder: Path, name: str = "cells", channels: Any = ("er", "rna", "dapi"), **more: Any) -> dict[str, Any]:
    np.savez(folder / f"{name}.npz", images=PIXELS, labels=np.arange(6) % 2, present=PRESENT)
    return {"name": "arrays", "path": str(folder / f"{name}.npz"), "channels": list(channels), **more}


def batches(config: Config, **more: Any) -> list[Batch]:
    loader = loaded(opened(config), View(config, train=True), Order(6, 6, 0), **more)
    return [batch for step in loader.steps(0, 1) for batch in step]


def test_the_channels_of_a_run_are_in_its_order(tmp_path: Path) -> None:
    section = arrays(tmp_path)
    source = opened(data(section, channels=["dapi", "er"]))
    pixels, label = source.read(1)
    np.testing.assert_array_equal(pixels, PIXELS[1][..., [2, 0]])
    assert (label, source.classes, source.channels, source.partial) == (1, ("0", "1"), ("dapi", "er"), False)
    as_it_is = opened(data(section, channels=["er", "rna", "dapi"]))
    assert as_it_is.identity == opened(data(section, channels=3)).identity != source.identity
    assert source.content != as_it_is.content
    assert source.where(2) == as_it_is.where(2)


def test_a_channel_that_a_source_has_not_is_missing_in_all_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = opened(data(arrays(tmp_path), channels=["dapy", "er"]))
    image, _ = source.read(0)
    assert isinstance(image, Partial)
    assert (image.present.tolist(), image.pixels[..., 0].any()) == ([False, True], False)
    said = "warning: data.train: no sample that was looked at has the channel 'dapy'; did you mean 'dapi'?\n"
    assert capsys.readouterr().err == said
    with pytest.raises(ConfigError, match=r"data.train: has none of the channels a, b; it has er, rna, dapi"):
        opened(data(arrays(tmp_path), channels=["a", "b"]))


def test_sources_with_other_channels_are_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [arrays(tmp_path, "one"), arrays(tmp_path, "two", ("agp", "er", "mito"))]
    config = data([{"source": part, "weight": 1} for part in parts], channels=["er", "dapi", "agp"])
    source = opened(config)
    first, second = source.read(0)[0], source.read(6)[0]
    assert isinstance(first, Partial)
    assert isinstance(second, Partial)
    assert (first.present.tolist(), second.present.tolist()) == ([True, True, False], [True, False, True])
    np.testing.assert_array_equal(first.pixels[..., :2], PIXELS[0][..., [0, 2]])
    np.testing.assert_array_equal(second.pixels[..., [0, 2]], PIXELS[0][..., [1, 0]])
    assert source.partial
    assert not capsys.readouterr().err  # each is in one of them


def test_a_batch_says_which_channels_its_images_have(tmp_path: Path) -> None:
    config = data(arrays(tmp_path, present="present"), channels=["dapi", "er", "rna"], views=2)
    source = opened(config)
    ((batch,),) = loaded(source, View(config, train=True), Order(6, 6, 0)).steps(0, 1)
    samples = Order(6, 6, 0).slots(0).samples
    assert batch.present is not None
    np.testing.assert_array_equal(batch.present, np.tile(PRESENT[samples][:, [2, 0, 1]], (2, 1)))
    batches = evaluated(source, View(config, train=False), 4)
    present = np.concatenate([each.present[each.valid] for each in batches])  # type: ignore[index]
    np.testing.assert_array_equal(present, PRESENT[:, [2, 0, 1]])


@pytest.mark.parametrize(("kind", "mean"), [("uint8", 0.3), ("uint16", 0.3), ("float32", 3.5)])
def test_a_missing_channel_is_the_mean_already_in_the_image(tmp_path: Path, kind: str, mean: float) -> None:
    np.savez(tmp_path / "x.npz", images=PIXELS.astype(kind), present=PRESENT)
    config = data({"name": "arrays", "path": str(tmp_path / "x.npz"), "present": "present"}, mean=mean)
    for train in (True, False):
        (image,) = View(config, train=train).decoded(opened(config).read(1)[0], [5])
        scale = {"uint8": 255, "uint16": 65535}.get(kind, 1)
        value = scale * mean if kind == "float32" else round(scale * mean)
        assert (image[1].float() == value).all()
        np.testing.assert_array_equal(image[[0, 2]].permute(1, 2, 0), PIXELS[1][..., [0, 2]].astype(kind))


def test_a_missing_channel_need_not_hold_numbers() -> None:
    pixels = np.array([[[1.0, np.nan, np.inf]]], np.float32)
    image = decode(Partial(pixels, np.array([True, False, False])), 3)
    assert (image.dtype, image.flatten().tolist()) == (torch.float32, [1.0, 0.0, 0.0])
    with pytest.raises(DecodeError, match="not finite"):
        decode(Partial(pixels, np.array([True, True, False])), 3)


def test_the_run_names_the_channels_of_an_array_without_names(tmp_path: Path) -> None:
    section = arrays(tmp_path, channels=())
    np.testing.assert_array_equal(opened(data(section, channels=["a", "b", "c"])).read(1)[0], PIXELS[1])
    assert opened(data(section["path"], channels=["a", "b", "c"])).channels == ("a", "b", "c")
    with pytest.raises(ConfigError, match="has 3 channels, and 'channels' names 2"):
        opened(data(section, channels=["a", "b"]))


def test_data_that_lack_nothing_have_no_such_tensor(tmp_path: Path) -> None:
    assert batches(data(arrays(tmp_path), channels=3))[0].present is None


def test_a_sample_without_any_wanted_channel_is_refused(tmp_path: Path) -> None:
    source = opened(data(arrays(tmp_path, present="present"), channels=["er", "rna"]))
    with pytest.raises(DecodeError, match="has none of the channels er, rna"):
        source.read(4)
    with pytest.raises(ConfigError, match=r"cells\.npz: images: image 4: has none of the channels er, rna; mend it"):
        batches(data(arrays(tmp_path, present="present"), channels=["er", "rna"]))


def test_what_arrays_say_of_channels_has_to_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 3 channels, and 'channels' names 2"):
        opened(data(arrays(tmp_path, channels=["a", "b"])))
    with pytest.raises(ConfigError, match="has no array 'presnt' for its present; did you mean 'present'"):
        opened(data(arrays(tmp_path, present="presnt")))
    with pytest.raises(ConfigError, match=r"is int64 of shape \(6,\); bools of shape \(6, 3\) are needed"):
        opened(data(arrays(tmp_path, present="labels")))


def test_a_source_of_ones_own_names_its_channels(tmp_path: Path) -> None:
    text = STRIPES.replace('classes = ("across"', 'channels = ("a", "b")\n    classes = ("across"').replace(
        "ascontiguousarray(image[..., None])", "stack([image, image + 1], -1)"
    )
    (tmp_path / "two.py").write_text(text)
    source = opened(data({"name": str(tmp_path / "two.py")}, channels=["b", "a"]))
    pixels, _ = source.read(3)
    assert isinstance(pixels, np.ndarray)
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 1] + 1)
