"""Images that are held on the device: the batches are, bit for bit, those of the loader that reads each image anew."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mrp.batch import Batch
from mrp.config import ConfigError
from mrp.data import resident
from mrp.data.augment import View, crop_box, interpolate, uniforms, uniforms_of
from mrp.data.config import Config, Crop
from mrp.data.held import Held, Holding, held_size
from mrp.data.mixtures import order as sharded_order
from mrp.data.open import open_source
from mrp.data.order import Order, keys
from mrp.data.quarantine import Quarantine
from mrp.data.resident import ResidentLoader
from mrp.data.source import Arrays, Source
from tests.data.conftest import loaded

CROPS = [
    {"name": "crop", "scale": [0.08, 1.0]},
    {"name": "crop", "scale": [0.5, 0.6], "ratio": [0.2, 5.0]},  # often no attempt fits
    {"name": "crop", "flip": False},
]


def images(count: int = 60, height: int = 20, width: int = 28, channels: int = 3) -> Source:
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)
    pixels[::2] = np.where(pixels[::2] < 128, 0, 255)  # where sums leave the range of a byte
    return Arrays("noise", pixels, np.arange(count) % 5, tuple("abcde"))


def config(**options: Any) -> Config:
    return Config(**{"train": "digits", "size": 16, **options})


def hold(source: Source, data: Config, quarantine: Quarantine | None = None, workers: int = 0) -> Held:
    holding = Holding(source, data, held_size(source, data))
    memory = torch.full((holding.bytes,), 77, dtype=torch.uint8)
    holding.decode(memory, Quarantine() if quarantine is None else quarantine, workers)
    return holding.in_memory(memory)


def assert_same(ours: list[list[Batch]], theirs: list[list[Batch]]) -> None:
    assert len(ours) == len(theirs)
    for left, right in zip(ours, theirs, strict=True):
        for one, other in zip(left, right, strict=True):
            for name in (field.name for field in fields(Batch)):
                a, b = getattr(one, name), getattr(other, name)
                assert (a is b is None) or (a.dtype == b.dtype and torch.equal(a, b)), name


def both(source: Source, data: Config, start: int = 0, stop: int = 4, **options: Any) -> None:
    """Compares every field of every batch of some steps, on one process and on the second of two."""
    shares: list[dict[str, Any]]
    shares = [{"micro_batch": 24, "rank": 0, "world": 1}, {"micro_batch": 6, "rank": 1, "world": 2}]
    for share in shares:
        order = options.get("order") or Order(len(source), 24 // data.views, 3)
        ours = ResidentLoader(hold(source, data), order, data, group=24, **share)
        theirs = loaded(source, View(data, True), order, **share)
        assert_same(list(ours.steps(start, stop)), list(theirs.steps(start, stop)))


@pytest.mark.parametrize("stretched", [resident.stretched_by_torch, resident.stretched_by_weights])
@pytest.mark.parametrize("crop", CROPS)
def test_batches_are_those_of_the_other_loader(crop: Any, stretched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU images are resized by weights, which give the same pixels here."""
    monkeypatch.setattr(resident, "stretched_by_torch", stretched)
    both(images(), config(augment=crop))
    both(images(channels=1), config(augment=crop, channels=1, size=[12, 33]))


@pytest.mark.gpu
def test_batches_on_a_gpu_are_those_of_the_loader() -> None:
    source, data = images(), config(augment=CROPS[0], views=2)
    held = hold(source, data).to(torch.device("cuda"))
    share: dict[str, Any] = {"group": 24, "micro_batch": 12, "rank": 0, "world": 1}
    ours = ResidentLoader(held, Order(60, 12, 3), data, **share)
    theirs = loaded(source, View(data, True), Order(60, 12, 3), **share)
    assert_same([[batch.to("cpu") for batch in step] for step in ours.steps(0, 4)], list(theirs.steps(0, 4)))


@pytest.mark.parametrize("augment", ["resize", {"name": "resize", "flip": True}])
def test_images_that_are_resized_whole_are_held_resized(augment: Any, tmp_path: Path) -> None:
    """So they need not be of one size."""
    rng = np.random.default_rng(1)
    for number in range(48):
        path = tmp_path / f"c{number % 2}" / f"{number}.{'png' if number % 3 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*rng.integers(10, 40, 2), 3), np.uint8)).save(path)
    both(open_source(str(tmp_path), "train"), config(augment=augment))


def test_views_order_and_epochs_are_the_same() -> None:
    both(images(), config(views=3, augment=CROPS[0]), start=1, stop=7)
    both(images(), config(tail="continuous"), start=1, stop=7)
    source, data = images(), config()
    both(source, data, order=sharded_order(source, data, 24, 0, 24))


def test_many_are_cropped_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_AT_ONCE", 5 * 20 * 28 * 3)
    both(images(), config())


def test_workers_decode_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    source, data = images(600), config()
    here = hold(source, data)
    monkeypatch.setattr("mrp.data.held._FEW", 0)
    there = hold(source, data, workers=2)
    assert torch.equal(here.images, there.images)
    assert here.labels is not None
    assert there.labels is not None
    assert torch.equal(here.labels, there.labels)


@pytest.mark.parametrize("crop", CROPS)
def test_draws_and_boxes_are_equal_for_many_keys(crop: Any) -> None:
    parsed, many = Crop(**crop), keys(7, 2, np.arange(3000))
    draws = uniforms_of(many.astype(np.uint64)[:, None])
    assert draws.tolist() == [uniforms(key) for key in many.tolist()]
    boxes = resident.crop_boxes((32, 40), parsed, draws[:, 1:])
    assert boxes.tolist() == [list(crop_box((32, 40), parsed, row)) for row in draws[:, 1:].tolist()]


@pytest.mark.parametrize(
    ("given", "length", "each"), [(32, 32, 1), (96, 32, 1), (40, 64, 1), (64, 7, 1), (17, 224, 1), (500, 224, 41)]
)
def test_weights_resize_every_extent_as_torch_does(given: int, length: int, each: int) -> None:
    extents = np.arange(1, given + 1, each)
    pixels = images(given, given, 3).images[: len(extents)]  # type: ignore[attr-defined]
    ours = resident.stretched_by_weights(torch.from_numpy(pixels), extents, length, 1)
    for number, (extent, one) in enumerate(zip(extents.tolist(), ours, strict=True)):
        whole = torch.from_numpy(pixels[number, :extent]).permute(2, 0, 1)[None]
        assert torch.equal(one.permute(2, 0, 1)[None], interpolate(whole, (length, 3)))


def test_weights_of_large_images_take_little_memory() -> None:
    """A run on photographs meets every extent, and keeps the weights of many."""
    assert sum(resident.band(extent, 224).weights.nbytes for extent in range(1, 501, 10)) < 1 << 20


class Spoilt(Arrays):
    """Some samples are no images, and the next one stands in for them."""

    def read(self, index: int) -> Any:
        return (b"no image", 0) if index in (3, 4, 59) else super().read(index)

    def replacement(self, index: int) -> int:
        return (index + 1) % len(self)


def test_what_is_no_image_is_replaced_and_noted_as_in_training() -> None:
    good, data = images(), config()
    source = Spoilt("noise", good.images, good.labels, good.classes)  # type: ignore[attr-defined]
    noted, met = Quarantine(), Quarantine()
    ours = ResidentLoader(hold(source, data, noted), Order(60, 24, 3), data, group=24, micro_batch=24, rank=0, world=1)
    theirs = loaded(source, View(data, True), Order(60, 24, 3), quarantine=met)
    assert_same(list(ours.steps(0, 6)), list(theirs.steps(0, 6)))
    assert noted.state() == met.state()
    assert [bad.sample for bad in noted.state()] == [3, 4, 59]
    again = Quarantine(100, noted.state())
    assert torch.equal(hold(source, data, again).images, hold(source, data).images)
    with pytest.raises(ConfigError, match=r"data\.damaged: 3 samples are no images, and 2 are allowed"):
        hold(source, data, Quarantine(2))


def test_what_cannot_be_held_is_refused_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, side in enumerate((20, 20, 24)):
        Image.fromarray(np.zeros((side, 20, 3), np.uint8)).save(tmp_path / f"{number}.png")
    source = open_source(str(tmp_path), "train")
    refused = partial(pytest.raises, ConfigError)
    with refused(match=r"2\.png: 24 x 20 pixels, and the first image has 20 x 20: crops need one size"):
        hold(source, config())
    with refused(match=r"only resize, and bicubic crop without jitter and rand"):
        hold(source, config(augment={"name": "crop", "jitter": 0.4}))
    with refused(match=r"only resize, and bicubic crop without jitter and rand"):
        hold(source, config(augment={"name": "crop", "interpolation": "bilinear"}))
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(tmp_path / "0.png")
    with refused(match=r"0\.png: not of 8 bits"):
        hold(source, config(channels=1))
    monkeypatch.setattr(type(source), "partial", True)
    with refused(match="may lack channels"):
        hold(source, config())
