"""Classes, fractions and mixtures: what is chosen, what it is called, and how often it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrp.config import ConfigError, Tree, build
from mrp.data.augment import View
from mrp.data.batches import Batches, EvaluationPlan
from mrp.data.config import CacheConfig, Config
from mrp.data.lanes import Lanes
from mrp.data.mixtures import Mixed, Mixture, order
from mrp.data.open import open_data
from mrp.data.order import Order, fold
from mrp.data.source import Source
from mrp.data.storage.cache import Cache
from mrp.data.subset import Subset, class_list
from mrp.data.workers import WorkerError
from tests.data.conftest import loaded
from tests.tagged_digits import FILE

NUMBERS = {1: [93, 110, 73, 109, 2, 115, 52, 116], 2: [40, 109, 31, 102, 97, 113, 48, 115]}


def opened(split: Any = "train", **values: Any) -> Source:
    return open_data(config(**values), split, Cache(CacheConfig()))


def config(**values: Any) -> Config:
    values = {"size": 16, **values}
    return build(Config, Tree(values, dict.fromkeys(values, "x.yaml")))


def test_some_classes_get_new_numbers(made: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("c\na\n")
    whole, part = opened(train=str(made)), opened(train=str(made), classes=str(tmp_path / "classes.txt"))
    assert part.classes == ("c", "a")
    assert len(part) == 40
    assert part.shard_sizes.sum() == 40
    assert len(part.shard_sizes) == 8
    names = [(data, whole.classes[label]) for data, label in (whole.read(n) for n in range(60)) if label != 1]
    assert [(data, part.classes[label]) for data, label in (part.read(n) for n in range(40))] == names
    assert part.identity != whole.identity
    for number in range(40):
        other = part.replacement(number)
        assert other is not None
        ends = np.cumsum(part.shard_sizes)
        if number == 39:  # alone in its shard
            assert (part.shard_sizes[-1], other) == (1, 0)
            continue
        assert np.searchsorted(ends, other, side="right") == np.searchsorted(ends, number, side="right")


def test_imagenet100_is_what_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    names = class_list("imagenet100")
    assert names == class_list("imagenet100.txt")
    assert len(names) == 100
    assert (names[0], names[-1]) == ("n01558993", "n13040303")
    assert list(names) == sorted(names)
    (tmp_path / "imagenet100.txt").write_text("mine")  # a user's own file comes first
    assert class_list("imagenet100.txt") == ("mine",)
    monkeypatch.setattr("mrp.data.subset._LISTS", {"imagenet100.txt": "0" * 64})
    with pytest.raises(ConfigError, match="was changed since it was published"):
        class_list("imagenet100")


def test_a_fraction_is_the_same_of_each_class_and_lies_in_the_larger_one(made: Path) -> None:
    parts = {f: opened(train=str(made), fraction=f) for f in (0.01, 0.1, 0.5, 1.0)}
    assert [len(part) for part in parts.values()] == [3, 6, 30, 60]
    for part in parts.values():
        assert len(set(np.bincount(part.labels).tolist())) == 1
    contents = [{part.read(n) for n in range(len(part))} for part in parts.values()]
    assert contents[0] < contents[1] < contents[2] < contents[3]
    assert len(opened("test", train=str(made), test=str(made), fraction=0.1)) == 60, "all are tested on"


def test_of_a_part_of_a_folder_no_image_is_replaced_as_of_the_whole(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    whole, part = opened(train=str(tmp_path)), opened(train=str(tmp_path), fraction=0.5)
    assert isinstance(part, Subset)
    assert [source.replacement(0) for source in (whole, part)] == [None, None]
    batches = Batches(part, View(config(train=str(tmp_path)), train=True), EvaluationPlan(0, 2, 2), part.replacement)
    found = batches[0]
    assert isinstance(found, WorkerError)
    assert "/a/" in str(found)
    assert "mend it under the same name" in str(found)


def test_what_is_chosen_must_be_there(made: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\nbb\n")
    with pytest.raises(ConfigError, match=r"data\.train: there is no class 'bb'"):
        opened(train=str(made), classes=str(tmp_path / "classes.txt"))
    (tmp_path / "classes.txt").write_text("a\na\n")
    with pytest.raises(ConfigError, match="'a' stands twice"):
        opened(train=str(made), classes=str(tmp_path / "classes.txt"))
    with pytest.raises(
        ConfigError, match=r"the list of classes nowhere.txt: cannot be read: No such file .*give a file, or"
    ):
        opened(train=str(made), classes="nowhere.txt")


def mixture(made: Path, weights: tuple[float, ...], **more: Any) -> dict[str, Any]:
    parts = [
        {"source": source, "weight": weight} for source, weight in zip((str(made), "digits"), weights, strict=True)
    ]
    return {"train": parts, **more}


def test_a_mixture_has_its_shares_in_every_batch(made: Path) -> None:
    data = config(**mixture(made, (3, 1)), lanes=2)
    source = opened(**mixture(made, (3, 1)), lanes=2)
    assert isinstance(source, Mixture)
    assert len(source) == 60 + 1437
    assert source.classes == ()
    found = order(source, data, 16, 0)
    assert isinstance(found, Mixed)
    assert found.shares == (0.75, 0.25)
    seen = []
    for step in range(40):
        slots = found.slots(step)
        assert (slots.samples < 60).sum() == 12
        assert len(np.unique(slots.keys)) == 16
        seen.append(slots)
    shards = np.concatenate([slots.samples[slots.samples < 60] for slots in seen])
    epochs = np.concatenate([slots.epochs[slots.samples < 60] for slots in seen])
    for epoch in range(7):
        assert sorted(shards[epochs == epoch].tolist()) == list(range(60))
    digits = np.concatenate([slots.samples[slots.samples >= 60] for slots in seen])
    assert len(set(digits.tolist())) == len(digits), "none again before all were shown"
    for number in (0, 59, 60, 1496):
        one = source.sources[0] if number < 60 else source.sources[1]
        assert source.where(number) == one.where(number if number < 60 else number - 60)
        np.testing.assert_array_equal(source.read(number)[0], one.read(number if number < 60 else number - 60)[0])


def test_a_mixture_is_loaded_alike_by_one_process_and_two(made: Path) -> None:
    values = mixture(made, (3, 1), channels=1, lanes=2, window=2)
    data, source = config(**values), opened(**values)
    found = order(source, data, 16, 0)
    assert [len(shards) for shards in found.shards(0, np.arange(16))] == [2, 2, 2, 2]

    def keys(world: int) -> list[list[int]]:
        options = {"micro_batch": 16 // world, "world": world}
        ranks = [loaded(source, View(data, True), found, rank=rank, **options).steps(0, 3) for rank in range(world)]
        return [[key for (part,) in parts for key in part.keys.tolist()] for parts in zip(*ranks, strict=True)]

    assert keys(1) == keys(2) == [found.slots(step).keys.tolist() for step in range(3)]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_equally_large_sources_have_orders_of_their_own(made: Path, version: int, sharded: bool) -> None:
    """Otherwise sample i of the one always meets sample i of the other; runs that began so go on so."""
    values = {"train": [{"source": str(made) if sharded else "digits", "weight": 1}] * 2}
    source = opened(**values)
    mixed = order(source, config(**values), 20, 7, version=version)
    assert mixed.state(0)["order_version"] == version
    half, first, second = len(source) // 2, [], []
    for step in range(6):
        samples = mixed.slots(step).samples
        first += samples[samples < half].tolist()
        second += (samples[samples >= half] - half).tolist()
    assert len(set(first)) == len(set(second)) == 60
    assert (first == second) == (version == 1)


def test_the_numbers_of_mixtures_stay() -> None:
    """A change here changes every run's data: raise mixtures.VERSION with it."""
    numbers = {}
    for version, fair in ((1, False), (2, True)):
        layout = Lanes(np.full(4, 5), 7, 2, 2, fair=fair)
        seed = int(fold(7, 0x736F7572, 0)[0] >> np.uint64(1)) if fair else 7
        parts = (Order(100, 4, seed, "continuous", None, 4, fair), Order(20, 4, 7, "continuous", layout, 4, fair))
        numbers[version] = Mixed(parts, 8, 7, 2, 8, version).slots(31).samples.tolist()
    assert numbers == NUMBERS


def test_weights_and_lanes_that_cannot_be(made: Path) -> None:
    values = mixture(made, (1000, 1))
    with pytest.raises(ConfigError, match=r"data\.train\.1\.weight: too small to have one sample in 16"):
        order(opened(**values), config(**values), 16, 0)
    values = {"train": str(made), "lanes": 3}
    with pytest.raises(ConfigError, match=r"data\.lanes: 3 does not divide the 16 samples of a batch"):
        order(opened(**values), config(**values), 16, 0)


def test_folders_keep_the_order_they_had(photographs: Path) -> None:
    data = config(train=str(photographs))
    found = order(opened(train=str(photographs)), data, 8, 3)
    assert found.slots(5).samples.tolist() == Order(60, 8, 3).slots(5).samples.tolist()


def test_of_tags_a_fraction_is_of_all_images_and_no_class_can_be_chosen(tmp_path: Path) -> None:
    tagged: Any = {"name": FILE}
    whole, part, less = (opened(train=tagged, **more) for more in ({}, {"fraction": 0.1}, {"fraction": 0.05}))
    assert isinstance(part, Subset)
    assert isinstance(less, Subset)
    assert (len(part), len(less)) == (round(0.1 * len(whole)), round(0.05 * len(whole)))
    assert {*less.chosen.tolist()} < {*part.chosen.tolist()}
    assert part.tags == whole.tags
    assert np.array_equal(part.tagged, whole.tagged[part.chosen])
    (tmp_path / "some.txt").write_text("even\n")
    with pytest.raises(ConfigError, match=r"data\.classes: data\.train has tags and no classes that could be chosen"):
        opened(train=tagged, classes=str(tmp_path / "some.txt"))
