"""Images with two features each, and `tools/multiview_vit.py`, which trains real networks on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mrp.config import ConfigError
from mrp.lab.multiview.constants import Constants, read
from mrp.lab.multiview.render import patterns
from tools import multiview_vit
from tools.multiview_vit import planted

WORDS = ("k=2", "P=16", "d=48", "samples=24", "tests=12", "sigma=0.01", "mu=0.5")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of three classes, each in a colour of its own."""
    folder = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 16), ("test", 8)):
        for number in range(3):
            place = folder / split / f"class{number}"
            place.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(np.full((16, 16, 3), 40 * (number + 1), np.uint8)).save(place / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def constants() -> Constants:
    return read(WORDS)


def on_patches(images: planted.Images) -> torch.Tensor:
    """The pixels, by patch (N rows columns 3 side side)."""
    patches: torch.Tensor = images.pixels.double().unflatten(3, (4, 4)).unflatten(2, (4, 4))
    return patches.permute(0, 2, 4, 1, 3, 5)


def test_each_half_carries_what_the_regions_say(data: Path, constants: Constants) -> None:
    images = planted.draw(constants, data)["test_multi"]
    assert images.labels.unique().tolist() == [0, 1], "the first two classes"
    assert 0 < int(images.left.sum()) < len(images.left), "either half"
    pattern, photograph = images.regions["pattern"], images.regions["photograph"]
    assert (pattern.flatten(1).sum(1) == planted.PATCHES**2).all()
    assert (photograph.flatten(1).sum(1) == 8).all()
    assert not (pattern & photograph).any()
    assert torch.equal(photograph[:, 0, 0], images.left)
    assert len({tuple(mask.flatten().tolist()) for mask in pattern}) > 2, "at several places"
    patches = on_patches(images)
    expected = 40.0 * (images.labels + 1)
    for index in range(len(images.labels)):
        assert (patches[index][photograph[index]] == expected[index]).all()
        ground = patches[index][~photograph[index] & ~pattern[index]]
        assert (ground - 127.5).abs().max() < 20, "noise alone"
        shown = patches[index][pattern[index]].view(2, 2, 3, 4, 4).permute(0, 3, 1, 4, 2).reshape(-1) / 255 - 0.5
        strengths = patterns(8)[:2].double() @ shown
        assert strengths.argmax() == images.labels[index]
        assert float(strengths.max()) / 192**0.5 == pytest.approx(planted.CONTRAST, rel=0.1)


def test_blanking_leaves_the_other_half_as_it_is(data: Path, constants: Constants) -> None:
    images = planted.draw(constants, data)
    whole = on_patches(images["test_multi"])
    for part, test in (("pattern", "test_photograph"), ("photograph", "test_pattern")):
        half = images["test_multi"].regions["photograph"]
        half = half if part == "photograph" else ~half
        single = on_patches(images[test])
        assert (single[half] == planted.GREY).all()
        assert torch.equal(single[~half], whole[~half])


def test_a_fraction_of_the_training_images_shows_one_feature(data: Path, constants: Constants) -> None:
    images = planted.draw(constants, data)
    assert all(torch.equal(part.pixels, planted.draw(constants, data)[name].pixels) for name, part in images.items())
    blank = (on_patches(images["train"]) == planted.GREY).flatten(3).all(-1).flatten(1).sum(1) == 8
    assert 0.2 < blank.double().mean() < 0.8
    assert not (on_patches(images["test_multi"]) == planted.GREY).flatten(1).all(1).any()


@pytest.mark.parametrize(
    ("words", "part"),
    [(["P=9", "d=48"], "give P of 16"), (["d=50"], "give P of 16"), (["samples=50"], "32 images are of the first 2")],
)
def test_what_does_not_fit_is_one_line(words: list[str], part: str, data: Path) -> None:
    with pytest.raises(ConfigError, match=part):
        planted.draw(read([*WORDS, *words]), data)


@pytest.mark.slow
def test_networks_are_trained_once_and_measured_on_every_kind_of_image(data: Path, tmp_path: Path) -> None:
    words = [
        "--planted", str(data), "--seeds", "1", "--methods", "mae", "--optimizers", "sgd", "adamw", "--training", "1",
        "--pretraining", "1", "--out", str(tmp_path), *WORDS,
    ]  # fmt: skip
    multiview_vit.main(words)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["images"] == "planted"
    assert set(results["found"]["sgd"]) == {"scratch", "mae", multiview_vit.ALONE}
    assert set(results["found"]["adamw"]) == {"scratch"}, "fine-tuning is by the first optimizer"
    (found,) = results["found"]["sgd"]["mae"]
    assert set(found["accuracy"]) == {"test_multi", "test_pattern", "test_photograph"}
    assert all(0 <= share <= 1 for share in found["accuracy"].values())
    assert 0 <= found["maps"]["features found, of 2"] <= 2
    assert "Eigen-CAM, covered, noise" in found["maps"]
    found = results["found"]
    twice = {name: {start: seeds * 2 for start, seeds in starts.items()} for name, starts in found.items()}
    assert len(multiview_vit.table(twice).splitlines()) == 2 + 4
    title = multiview_vit.draw(twice, read(WORDS)).get_suptitle()
    assert title.startswith("Right of the photographs, shown alone: scratch (sgd) ")
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("classified.json")}
    multiview_vit.main(words)
    assert {path: path.stat().st_mtime_ns for path in trained} == trained


def test_maps_are_held_against_the_regions() -> None:
    pattern, photograph = (torch.zeros(2, 2, 4, dtype=torch.bool) for _ in range(2))
    pattern[:, :, 2], photograph[:, :, :2] = True, True
    maps = torch.zeros(2, 2, 4)
    maps[0, 0, 2], maps[0, 0, 0], maps[0, 1, 3] = 1.0, 0.6, 0.4
    found = multiview_vit.on_regions(maps, {"pattern": pattern, "photograph": photograph})
    assert found == {
        "covered, pattern": 0.25, "covered, photograph": 0.125, "covered, noise": 0.0, "features found, of 2": 1.0,
    }  # fmt: skip
