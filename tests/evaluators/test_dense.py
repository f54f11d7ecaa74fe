"""Segmentation and depth on miniature data: what is learned, how it is counted, and what is refused in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.metrics import confusion_matrix, jaccard_score

from mrp.build import build_step
from mrp.config import ConfigError
from mrp.data.open import open_source
from mrp.evaluate import dense, pairs
from mrp.evaluate.config import Masks
from mrp.evaluate.contract import Setting, never
from mrp.evaluate.heads import Schedule
from mrp.evaluate.pairs import Pair, find, read_mask
from mrp.evaluators import depth, segmentation
from mrp.run import load
from mrp.step import Step
from tests.evaluators.miniature import as_depth, as_mask, as_metres, blocks, write
from tests.evaluators.settings import setting


@pytest.fixture(scope="module")
def step() -> Step:
    return build_step(load("demo", ["backbone.width=24", "backbone.depth=1", "backbone.heads=2"])).eval()


@pytest.fixture
def at() -> Setting:
    digits = open_source("digits", "test")
    return setting(load("demo").data, digits, digits)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "_SCHEDULE", Schedule((16, 16), 1, 60))
    monkeypatch.setattr(dense, "_DRAWS", 100)


@pytest.fixture
def masks(tmp_path: Path) -> dict[str, dict[str, Any]]:
    return {
        "train": write(tmp_path / "train", 24, 1, "masks", as_mask),
        "test": write(tmp_path / "test", 8, 2, "masks", as_mask),
    }


def test_a_head_learns_the_classes_and_every_pixel_counts(
    masks: dict[str, Any], at: Setting, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = segmentation.Evaluator(segmentation.Config.model_validate(masks), at)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    answer = segmentation.best_class

    def watched(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        seen.append((scores, answer(scores, size)))
        return seen[-1][1]

    monkeypatch.setattr(segmentation, "best_class", watched)
    result = evaluator.measure(step, 0, never)
    details = result.details
    assert (details["num_train"], details["num_test"], len(details["classes"])) == (24, 8, 3)
    assert details["lr"] == float(max(details["held_out"], key=details["held_out"].get))
    truth = np.concatenate([read_mask(pair, (255,)).ravel() for pair in evaluator._pairs[1]])
    answers = torch.cat([found for _, found in seen[-8:]]).numpy().ravel()
    known = truth >= 0
    confusion = confusion_matrix(truth[known], answers[known], labels=range(3))
    ious = jaccard_score(truth[known], answers[known], labels=range(3), average=None)
    assert [one["iou"] for one in details["classes"]] == pytest.approx(ious)
    assert result.values["mean_iou"] == pytest.approx(ious.mean(), abs=1e-12)
    assert result.values["pixel_accuracy"] == pytest.approx(confusion.trace() / confusion.sum(), abs=1e-12)
    shares = confusion.diagonal() / confusion.sum(1)
    assert result.values["mean_accuracy"] == pytest.approx(shares.mean(), abs=1e-12)
    assert result.values["mean_iou"] > 0.6  # always the most frequent class: 0.11
    told = details["measures"]["mean_iou"]
    assert told["low"] <= told["value"] <= told["high"]
    assert evaluator.measure(step, 0, never).values == result.values


def test_fewer_images_are_evenly_spaced(masks: dict[str, Any], at: Setting, step: Step) -> None:
    config = segmentation.Config.model_validate(masks | {"images": 5})
    details = segmentation.Evaluator(config, at).measure(step, 0, never).details
    assert (details["num_train"], details["num_test"]) == (5, 5)
    numbered = [Pair(Path(str(n)), Path(str(n))) for n in range(10)]
    assert [pair.image.name for pair in dense.evenly_spaced(numbered, 4)] == ["0", "2", "5", "7"]


def test_a_class_that_occurs_nowhere_counts_nowhere(masks: dict[str, Any], at: Setting, step: Step) -> None:
    few, many = (
        segmentation.Evaluator(segmentation.Config.model_validate(masks | {"classes": classes}), at).measure(
            step, 0, never
        )
        for classes in (3, 40)
    )
    assert many.details["classes"][30] == {"class": 30, "pixels": 0, "iou": None, "accuracy": None}
    assert many.values["mean_accuracy"] == pytest.approx(few.values["mean_accuracy"], abs=0.1)


def edit(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with Image.open(path) as image:
        changed = change(np.array(image))
    Image.fromarray(changed).save(path)


MASK = "masks/a/03.png"


@pytest.mark.parametrize(
    ("split", "damage", "line"),
    [
        ("train", lambda root: (root / MASK).unlink(), r"segmentation.train: 1 of 24 images have no target; that of .*"
         r"images/a/03.png should be .*masks/a/03.png; add them, or name the images that count in a file"),
        ("test", lambda root: edit(root / MASK, lambda mask: mask[:5]),
         r"test/masks/a/03.png: has 24 x 5 pixels, but its image .*test/images/a/03.png has 24 x 24; give targets of"),
        ("test", lambda root: edit(root / MASK, lambda mask: mask + 7),
         r"test/masks/a/03.png: has the class 9, and 3 classes have the numbers 0 to 2; mend the mask, set classes"),
        ("train", lambda root: edit(root / MASK, lambda mask: np.stack([mask] * 3, -1)),
         r"train/masks/a/03.png: not a PNG with one number per pixel \(grey of 8 or 16 bits, or a palette\); mend it"),
        ("train", lambda root: (root / MASK).write_bytes((root / MASK).read_bytes()[:60]), "a/03.png: damaged image"),
        ("train", lambda root: (root / MASK).write_bytes(b""), "a/03.png: a file without content; mend it"),
        ("test", lambda root: (root / "images/a/03.png").write_bytes(b"no"), "images/a/03.png: not an image that can"),
        ("train", lambda root: [edit(path, lambda mask: mask * 0 + 255) for path in root.glob("masks/a/*")],
         "segmentation.train: no pixel with a class in its masks; look at segmentation.ignore, or set classes"),
        ("train", lambda root: [edit(path, lambda mask: mask * 0) for path in root.glob("masks/a/*")],
         "segmentation.train: only the class 0 in its masks"),
        ("test", lambda root: [edit(path, lambda mask: mask * 0 + 255) for path in root.glob("masks/a/*")],
         "segmentation.test: no pixel of its masks has a class"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(
    split: str, damage: Callable[[Path], Any], line: str, masks: dict[str, Any], tmp_path: Path, at: Setting, step: Step
) -> None:
    damage(tmp_path / split)
    with pytest.raises(ConfigError, match=line) as error:
        segmentation.Evaluator(segmentation.Config.model_validate(masks), at).measure(step, 0, never)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"images": "nowhere"}, "segmentation.train: there is no folder nowhere"),
        ({"list": "nowhere.txt"}, "segmentation.train: nowhere.txt: cannot be read: No such file"),
        ({"list": "{root}/list.txt"}, r"list.txt: there is no image 'a/99' in .*train/images"),
        ({"images": "{root}/empty"}, "segmentation.train: .*/empty holds no images; files that count end in .jpg"),
    ],
)
def test_folders_that_are_not_there(
    changes: dict[str, str], line: str, masks: dict[str, Any], tmp_path: Path, at: Setting
) -> None:
    (tmp_path / "list.txt").write_text("a/01\na/99\n")
    (tmp_path / "empty").mkdir()
    changes = {key: value.format(root=tmp_path) for key, value in changes.items()}
    config = segmentation.Config.model_validate(masks | {"train": masks["train"] | changes})
    with pytest.raises(ConfigError, match=line):
        segmentation.Evaluator(config, at)


def test_names_may_differ_and_a_list_may_choose(masks: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "train"
    for path in sorted(root.glob("*/a/*.png")):
        path.rename(path.with_stem(f"{path.stem}_{'left' if 'images' in path.parts else 'ids'}"))
    (tmp_path / "list.txt").write_text("a/05_left\n\na/02_left.png\n")
    section = Masks.model_validate(masks["train"] | {"rename": ["_left", "_ids"], "list": str(tmp_path / "list.txt")})
    found = find(section, "train", pairs.MASKS)
    assert [pair.target.name for pair in found] == ["05_ids.png", "02_ids.png"]


def test_a_palette_and_sixteen_bits_keep_their_numbers(tmp_path: Path) -> None:
    numbers = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.fromarray(numbers, "P")
    image.putpalette([255 - value // 3 for value in range(768)])
    image.save(tmp_path / "palette.png")
    Image.fromarray(numbers.astype(np.uint16) * 100).save(tmp_path / "deep.png")
    Image.fromarray(numbers).save(tmp_path / "image.png")
    found = [read_mask(Pair(tmp_path / "image.png", tmp_path / f"{name}.png"), (3,)) for name in ("palette", "deep")]
    expected = np.where(numbers == 3, -1, numbers.astype(int))
    assert found[0].tolist() == expected.tolist()
    assert found[1].tolist() == (numbers.astype(int) * 100).tolist()


def test_an_image_that_its_exif_turns_has_the_turned_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (30, 20)).save(tmp_path / "image.jpg", exif=exif)
    for size, fits in (((20, 30), True), ((30, 20), False)):
        Image.new("L", size).save(tmp_path / "mask.png")
        pair = Pair(tmp_path / "image.jpg", tmp_path / "mask.png")
        if fits:
            assert read_mask(pair, ()).shape == (30, 20)
        else:
            with pytest.raises(ConfigError, match=r"has 30 x 20 pixels, but its image .* has 20 x 30"):
                read_mask(pair, ())


def test_results_are_kept_by_the_content_of_the_masks(masks: dict[str, Any], tmp_path: Path) -> None:
    config = segmentation.Config.model_validate(masks)
    before = config.content()
    assert config.content() == before
    os.utime(tmp_path / "test" / MASK, ns=(1, 1))
    assert config.content() != before


def test_a_patch_is_sampled_evenly() -> None:
    values = np.arange(6 * 9).reshape(6, 9)
    found = pairs.sampled(values, (2, 3), 2)
    assert found.shape == (6, 4)
    assert found[0].tolist() == [values[0, 0], values[0, 2], values[2, 0], values[2, 2]]
    assert pairs.sampled(values, (6, 9), 1)[:, 0].tolist() == values.ravel().tolist()


@pytest.mark.parametrize("classes", [1, 16, 37])
def test_the_best_class_is_that_of_all_scores_at_once(classes: int) -> None:
    scores = torch.randn(classes, 3, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(scores[None], size=(20, 31), mode="bilinear")[0].argmax(0)
    assert torch.equal(dense.best_class(scores, (20, 31)), expected)


def test_the_bootstrap_of_a_mean_is_about_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_DRAWS", 2000)
    values = np.random.default_rng(1).normal(size=(400, 1))
    low, high = dense.bootstrap(values, lambda sums: sums[:, 0] / 400)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


@pytest.fixture
def depths(tmp_path: Path) -> dict[str, dict[str, str]]:
    return {
        "train": write(tmp_path / "train", 24, 1, "depths", as_depth),
        "test": write(tmp_path / "test", 8, 2, "depths", as_depth),
    }


def test_depth_is_learned_and_measured_per_image(
    depths: dict[str, Any], at: Setting, step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = depth.Evaluator(depth.Config.model_validate(depths), at)
    seen: list[np.ndarray] = []
    whole = depth.enlarged

    def watched(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        seen.append(whole(scores, size)[0].numpy())
        return whole(scores, size)

    monkeypatch.setattr(depth, "enlarged", watched)
    result = evaluator.measure(step, 0, never)
    truths = 1.0 + blocks(8, 2)
    errors, relative, right = [], [], []
    for found, truth in zip(np.clip(seen[-8:], 0.001, 10), truths, strict=True):
        found, truth = found[1:], truth[1:]  # the first row was not measured
        errors.append(np.sqrt(np.mean((found - truth) ** 2)))
        relative.append(np.mean(np.abs(found - truth) / truth))
        right.append(np.mean(np.maximum(found / truth, truth / found) < 1.25))
    assert result.values["rmse"] == pytest.approx(np.mean(errors), abs=1e-9)
    assert result.values["abs_rel"] == pytest.approx(np.mean(relative), abs=1e-9)
    assert result.values["delta1"] == pytest.approx(np.mean(right), abs=1e-9)
    assert result.values["rmse"] < 0.6 * truths.std()
    assert result.details["measures"]["rmse"]["better"] == "lower"
    assert result.details["penalty"] == float(min(result.details["held_out"], key=result.details["held_out"].get))

    metres = {
        name: write(tmp_path / f"{name}-metres", count, seed, "depths", as_metres)
        for name, count, seed in (("train", 24, 1), ("test", 8, 2))
    }
    assert depth.Evaluator(depth.Config.model_validate(metres), at).measure(step, 0, never).values == result.values


def test_the_map_is_scikit_learns_ridge(at: Setting, step: Step) -> None:
    generator = np.random.default_rng(0)
    flat = generator.normal(size=(6, 4 * 5)).astype(np.float32)

    class Rows:
        def rows(self, names: Any, rows: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(flat[rows])

    tokens = dense.Tokens(Rows(), "1.tokens", (2, 2), torch.device("cpu"), torch.zeros(5), torch.ones(5))  # type: ignore[arg-type]
    targets = generator.normal(size=(6, 4))
    targets[2, 1] = np.nan
    (weight,) = object.__new__(depth.Evaluator).fit(tokens, targets, np.arange(6), [0.3])
    known = ~np.isnan(targets.ravel())
    theirs = Ridge(alpha=0.3 * known.sum()).fit(flat.reshape(-1, 5)[known].astype(np.float64), targets.ravel()[known])
    np.testing.assert_allclose(weight.numpy(), [*theirs.coef_, theirs.intercept_], atol=1e-9)


class Malicious:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (np.array([Malicious()], object), "is not a .npy file with one number per pixel; mend it"),
        (np.zeros((3, 4, 2)), "is not a .npy file with one number per pixel"),
        (np.zeros((3, 4)), "has 4 x 3 pixels, but its image"),
        (np.array([["a"]]), "is not a .npy file with one number per pixel"),
        (None, "is not a .npy file with one number per pixel"),
    ],
)
def test_depth_maps_execute_nothing(
    content: Any,
    line: str,
    depths: dict[str, Any],
    tmp_path: Path,
    at: Setting,
    step: Step,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train" / "depths" / "a" / "03.png"
    path.unlink()
    if content is None:
        path.with_suffix(".npy").write_bytes(b"\x93NUMPY\x01\x00")
    else:
        np.save(path.with_suffix(".npy"), content, allow_pickle=True)
    with pytest.raises(ConfigError, match=line) as error:
        depth.Evaluator(depth.Config.model_validate(depths), at).measure(step, 0, never)
    assert "\n" not in str(error.value)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"scale": 1e7}, "depth.train: no pixel lies within 0.001 to 10 metres; look at depth.scale and depth.range"),
        ({"range": [0.5, 3.5], "test": "far"}, "depth.test: no pixel lies within depth.range; look at it"),
    ],
)
def test_depths_out_of_range(
    options: dict[str, Any], line: str, depths: dict[str, Any], tmp_path: Path, at: Setting, step: Step
) -> None:
    if options.pop("test", None):
        for path in (tmp_path / "test" / "depths").rglob("*.png"):
            edit(path, lambda depths: depths * 9)
    with pytest.raises(ConfigError, match=line):
        depth.Evaluator(depth.Config.model_validate(depths | options), at).measure(step, 0, never)


def test_a_range_that_is_none() -> None:
    with pytest.raises(ValueError, match="allowed: two numbers of metres, 0 <= low < high"):
        depth.Config.model_validate({"train": {}, "test": {}, "range": [2, 1]})
