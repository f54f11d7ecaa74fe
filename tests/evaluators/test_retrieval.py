"""Retrieval by labels and by lists of landmarks, and copy detection, against other ways to compute them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from mrp.config import ConfigError
from mrp.data.source import Arrays, Source
from mrp.data.subset import Subset
from mrp.evaluate.contract import Setting, never
from mrp.evaluate.images import Images
from mrp.evaluate.readout import Readout
from mrp.evaluate.table import Table
from mrp.evaluators import copy, retrieval
from mrp.run import load
from mrp.step import Step
from tests.evaluators.settings import setting, some

DATA = load("demo").data


@pytest.fixture(scope="module")
def at() -> Setting:
    return setting(DATA, some("train", 300), some("test", 60))


def rows(at: Setting, source: Source, step: Step) -> np.ndarray:
    table = at.features(source, step, Readout.own(step), never)
    assert isinstance(table, Table)
    return np.asarray(table.columns["1.class"], np.float32)


@pytest.mark.parametrize("gallery", ["train", "test"])
def test_it_is_what_scikit_learn_finds(gallery: str, at: Setting, step: Step) -> None:
    result = retrieval.Evaluator(retrieval.Config.model_validate({"gallery": gallery}), at).measure(step, 0, never)
    assert at.test is not None
    test, labels = rows(at, at.test, step), np.asarray(at.test.labels)
    other = at.train if gallery == "train" else at.test
    scores = cosine_similarity(test, rows(at, other, step))
    relevant = labels[:, None] == np.asarray(other.labels)
    kept = np.ones_like(relevant) if gallery == "train" else ~np.eye(60, dtype=bool)
    pairs = [(relevant[i][kept[i]], scores[i][kept[i]]) for i in range(60)]
    assert result.values["map"] == pytest.approx(np.mean([average_precision_score(*pair) for pair in pairs]), abs=1e-6)
    ranked = [hits[np.argsort(-found)] for hits, found in pairs]
    for k in retrieval.KS:
        assert result.values[f"precision{k}"] == pytest.approx(np.mean([hits[:k].mean() for hits in ranked]), abs=1e-9)
        assert result.values[f"recall{k}"] == pytest.approx(np.mean([hits[:k].any() for hits in ranked]), abs=1e-9)
    if gallery == "train":
        assert result.right is not None
        assert float(result.right.double().mean()) == result.values["recall1"]
    told = result.details["measures"]["map"]
    assert told["low"] < told["value"] == result.values["map"] < told["high"]
    assert (result.details["num_queries"], result.details["without"]) == (60, 0)


def test_the_image_itself_is_no_wrong_answer_in_a_small_gallery(at: Setting, step: Step) -> None:
    test = some("test", 60)
    zeros = Subset(test, np.flatnonzero(test.labels == 0)[:3])
    result = retrieval.Evaluator(retrieval.Config(gallery="test"), replace(at, test=zeros)).measure(step, 0, never)
    assert result.values["precision10"] == 1  # both others are of its class


def test_fewer_queries_and_a_smaller_gallery(at: Setting, step: Step) -> None:
    for gallery in ("train", "test"):
        config = retrieval.Config.model_validate({"gallery": gallery, "queries": 7, "images": 40})
        details = retrieval.Evaluator(config, at).measure(step, 0, never).details
        assert (details["num_queries"], details["num_gallery"]) == (7, 40)


def test_a_class_of_one_image_is_passed_over(at: Setting, step: Step) -> None:
    test = some("test", 6)
    labels = np.array([0, 0, 1, 1, 1, 2])
    odd = replace(at, test=Arrays("odd", test.images, labels, test.classes))
    details = retrieval.Evaluator(retrieval.Config(gallery="test"), odd).measure(step, 0, never).details
    assert details["without"] == 1
    alone = replace(at, test=Arrays("alone", test.images, np.arange(6), test.classes))
    with pytest.raises(ConfigError, match="no query has another image of its class in the gallery"):
        retrieval.Evaluator(retrieval.Config(gallery="test"), alone).measure(step, 0, never)


def test_classes_of_the_test_alone_are_looked_up_among_the_test_images(at: Setting, step: Step) -> None:
    test = some("test", 60)
    other = replace(at, test=Arrays("other", test.images, test.labels, tuple("abcdefghij")))
    same, found = (
        retrieval.Evaluator(retrieval.Config(gallery="test"), one).measure(step, 0, never) for one in (at, other)
    )
    assert found.values == same.values
    with pytest.raises(ConfigError, match=r"10 of its 10 classes \('a' and 9 more\) are none of data.train's"):
        retrieval.Evaluator(retrieval.Config(), other)
    bare = Arrays("bare", test.images, np.full(60, -1), ())
    with pytest.raises(ConfigError, match=r"data.test has no labels, by which retrieval is judged"):
        retrieval.Evaluator(retrieval.Config(gallery="test"), replace(at, test=bare))


GND = [{"easy": [0, 1], "hard": [2], "junk": [3]}, {"easy": [], "hard": [4], "junk": [], "bbx": [2, 2, 10, 12]}]


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(8):
        pixels = generator.integers(0, 256, (12, 16)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"image{number}.png")
    content = {"imlist": [f"image{n}" for n in range(6)], "qimlist": ["image6", "image7.png"], "gnd": GND}
    path = tmp_path / "gnd.json"
    path.write_text(json.dumps(content))
    return path


def test_landmarks_are_looked_up(benchmark: Path, at: Setting, step: Step) -> None:
    at = replace(at, test=None)  # no labels are needed
    result = retrieval.Evaluator(retrieval.Config(landmarks=str(benchmark)), at).measure(step, 0, never)
    folder = benchmark.parent
    with Image.open(folder / "image7.png") as image:
        inside = np.asarray(image)[2:12, 2:10]
    Image.fromarray(inside).save(folder / "inside.png")
    every = Images([folder / f"image{n}.png" for n in range(7)] + [folder / "inside.png"], 1)
    features = rows(at, every, step)
    order = np.argsort(-cosine_similarity(features[6:], features[:6]))
    junk = {"easy": ([3, 2], []), "medium": ([3], []), "hard": ([0, 1, 3], [])}
    wanted = {"easy": ([0, 1], []), "medium": ([0, 1, 2], [4]), "hard": ([2], [4])}
    for protocol, queries in wanted.items():
        precisions = []
        for query, found in enumerate(queries):
            kept = [image for image in order[query].tolist() if image not in junk[protocol][query]]
            ranks = [kept.index(image) for image in found]
            parts = [((i / r if r else 1) + (i + 1) / (r + 1)) / 2 for i, r in enumerate(sorted(ranks))]
            precisions += [sum(parts) / len(found)] if found else []
        assert result.values[f"{protocol}_map"] == pytest.approx(np.mean(precisions), abs=1e-6)
    assert (result.details["num_queries"], result.details["num_gallery"]) == (2, 6)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (None, "gnd.json: cannot be read: No such file or directory; give a JSON file"),
        ("\x80\x04pickle", r"gnd.json: is not of the form \{\"imlist\".*a published pickle has to be saved as JSON"),
        ({"gnd": 3}, r"gnd.json: is not of the form"),
        ({"gnd": GND[:1]}, "6 images in imlist, 2 queries in qimlist and 1 entries in gnd; each query needs one"),
        ({"gnd": [GND[0], {"easy": [6]}]}, "gnd 1, easy: is not a list of numbers of images, from 0 to 5"),
        ({"gnd": [GND[0], {"hard": ["image1"]}]}, "gnd 1, hard: is not a list of numbers of images, from 0 to 5"),
        ({"gnd": [{}, {"junk": [1]}]}, "no query has an easy or hard image, so there is nothing to find; mend gnd"),
        ({"gnd": [GND[0], {"easy": [1], "bbx": [1, 2]}]}, "gnd 1, bbx: is not a list of four numbers"),
        ({"qimlist": ["image6", "image9"]}, "qimlist: there is no image 'image9' in .*; add it, or give another"),
        ({"qimlist": ["image6", "../image7"]}, r"qimlist: '../image7' leads out of"),
        ({"qimlist": ["image6", 7]}, "qimlist: 7 is not the name of an image"),
    ],
)
def test_a_wrong_list_is_one_line(changes: Any, line: str, benchmark: Path, at: Setting) -> None:
    if isinstance(changes, dict):
        benchmark.write_text(json.dumps(json.loads(benchmark.read_text()) | changes))
    elif changes is None:
        benchmark.unlink()
    else:
        benchmark.write_bytes(changes.encode("latin-1"))
    with pytest.raises(ConfigError, match=line) as error:
        retrieval.Evaluator(retrieval.Config(landmarks=str(benchmark)), at)
    assert "\n" not in str(error.value)


def test_a_box_outside_of_the_image_is_one_line(benchmark: Path, at: Setting, step: Step) -> None:
    gnd = [GND[0], GND[1] | {"bbx": [16, 0, 30, 5]}]
    benchmark.write_text(json.dumps(json.loads(benchmark.read_text()) | {"gnd": gnd}))
    evaluator = retrieval.Evaluator(retrieval.Config(landmarks=str(benchmark)), at)
    with pytest.raises(ConfigError, match=r"image7.png: the box \[16, 0, 30, 5\] holds nothing of its 16 x 12 pixels"):
        evaluator.measure(step, 0, never)


def test_a_folder_without_a_list() -> None:
    with pytest.raises(ValueError, match="folder is given without landmarks"):
        retrieval.Config(folder="images")


def test_results_are_kept_by_the_content_of_the_list_and_of_its_images(benchmark: Path) -> None:
    config = retrieval.Config(landmarks=str(benchmark))
    seen = {config.content(), config.content()}
    os.utime(benchmark.parent / "image3.png", ns=(1, 1))
    seen.add(config.content())
    benchmark.write_text(benchmark.read_text().replace("[3]", "[5]"))
    seen.add(config.content())
    assert len(seen) == 3
    assert retrieval.Config().content() == ""


def test_files_are_told_apart_by_content(benchmark: Path) -> None:
    path = benchmark.parent / "image0.png"
    before, part = Images([path]).identity, Images([path], boxes=[(0, 0, 4, 4)]).identity
    os.utime(path, ns=(1, 1))
    assert len({before, part, Images([path]).identity}) == 3


def test_copies_are_found_as_scikit_learn_finds_them(step: Step) -> None:
    at = setting(DATA, some("train", 300), some("test", 60))
    evaluator = copy.Evaluator(copy.Config(copies=10, distractors=20, magnitude=3), at)
    result = evaluator.measure(step, 0, never)
    gallery = rows(at, evaluator._gallery, step)
    table = at.features(evaluator._copies, step, Readout.own(step), never, view=evaluator._view)
    assert table is not None
    scores = cosine_similarity(np.asarray(table.columns["1.class"], np.float32), gallery)
    originals = [evaluator._gallery.chosen.tolist().index(int(image)) for image in evaluator._copies.chosen[:10]]
    relevant = np.zeros((20, 30), bool)
    relevant[np.arange(10), originals] = True
    expected = average_precision_score(relevant.ravel(), scores.ravel())
    assert result.values["micro_ap"] == pytest.approx(expected, abs=1e-6)
    nearest = scores[:10].argmax(1)
    assert result.values["recall1"] == np.mean(nearest == originals)
    assert not set(evaluator._copies.chosen[10:]) & set(evaluator._gallery.chosen)
    assert (result.details["copies"], result.details["gallery"]) == (10, 30)


def test_unchanged_copies_are_all_found_first(step: Step) -> None:
    at = setting(DATA, some("train", 300), some("test", 60))
    config = copy.Config(copies=15, distractors=30, scale=(1, 1), jitter=0, magnitude=0)
    evaluator = copy.Evaluator(config, at)
    evaluator._view = None  # type: ignore[assignment]
    assert evaluator.measure(step, 0, never).values == {"micro_ap": 1.0, "recall1": 1.0}


def test_few_images_and_deep_ones(step: Step) -> None:
    few = some("test", 3)
    with pytest.raises(ConfigError, match="copy: needs 4 images or more, and there are 3; give more data"):
        copy.Evaluator(copy.Config(), setting(DATA, few, few))
    test = some("test", 9)
    deep = Arrays("deep", test.images.astype(np.uint16) * 257, test.labels, test.classes)
    result = copy.Evaluator(copy.Config(), setting(DATA, deep, deep)).measure(step, 0, never)
    assert result.details["copies"] == 2
    assert torch.tensor(list(result.values.values())).isfinite().all()
