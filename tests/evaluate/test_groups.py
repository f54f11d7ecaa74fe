"""Images that belong together: held out together, and counted as what they are worth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mrp import api
from mrp.adapting import LIST
from mrp.adapting.plan import make as plan
from mrp.cli import main
from mrp.config import ConfigError
from mrp.data.open import open_source
from mrp.evaluate import statistics
from mrp.evaluate.interval import share_of, wilson
from mrp.evaluate.measures import mean_of
from mrp.evaluate.results import read, read_outcomes
from mrp.evaluate.split import split
from mrp.model import load
from mrp.probing import changed_run
from mrp.report.compare import collect
from mrp.report.verdict import measure
from tests.trained import NARROW, pretrained

PATTERN = r"(p\d+)-"


def test_a_group_is_held_out_whole() -> None:
    labels, groups = torch.arange(400) % 3, torch.arange(400) // 8 * 7919
    parts = split(labels, groups)
    assert sorted(np.concatenate(parts).tolist()) == list(range(400))
    assert not {*groups[parts.fitting].tolist()} & {*groups[parts.held_out].tolist()}
    assert 40 <= len(parts.held_out) <= 80  # a tenth of each class, and what belongs to it
    assert len(split(torch.zeros(400, dtype=torch.int64), groups).held_out) == 40


@pytest.mark.parametrize("draw", range(20))
def test_what_a_group_takes_from_other_classes_leaves_half_of_each(draw: int) -> None:
    """Twelve groups, each of some of ten classes: if every class chose for itself, many would lose all their images."""
    random = np.random.default_rng(draw)
    pairs = [(one, group) for group in range(12) for one in random.choice(10, 3, replace=False)]
    labels, groups = torch.tensor([pair for pair in pairs for _ in range(random.integers(3, 15))]).T
    parts = split(labels, groups)
    counts = labels.bincount(minlength=10)
    assert (2 * labels[parts.fitting].bincount(minlength=10) >= counts).all()
    assert not {*groups[parts.fitting].tolist()} & {*groups[parts.held_out].tolist()}
    assert 0 < len(parts.held_out) < 0.5 * len(labels)


def test_a_class_does_not_give_away_a_group_that_is_most_of_it() -> None:
    """Class 0 has one group, class 1 a large one and two small ones."""
    labels = torch.tensor([0] * 10 + [1] * 20)
    groups = torch.tensor([1] * 10 + [2] * 12 + [3] * 4 + [4] * 4)
    parts = split(labels, groups)
    assert {*groups[parts.held_out].tolist()} in ({3}, {4})
    with pytest.raises(ConfigError, match="in two groups where the data have groups"):
        split(labels[:10], groups[:10])


def test_classes_of_one_image_keep_no_group_from_being_held_out() -> None:
    labels = torch.tensor([0] * 100 + list(range(1, 11)))
    groups = torch.tensor([*(number // 10 for number in range(100)), *range(10)])
    assert len(split(labels, groups).held_out) == 11


def drawn(random: np.random.Generator, of: int = 40, size: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Right answers that groups of images share: of each group nearly all are right, or nearly all are wrong."""
    chance = random.choice([0.95, 0.25], of, p=[0.7, 0.3])
    return (random.random((of, size)) < chance[:, None]).ravel(), np.repeat(np.arange(of), size)


def test_intervals_hold_the_truth_as_often_as_they_say_only_by_groups() -> None:
    random, classes = np.random.default_rng(0), np.arange(400) % 2
    truth, held = 0.7 * 0.95 + 0.3 * 0.25, dict.fromkeys(("share", "mean", "classes", "paired", "none"), 0)
    for _ in range(400):
        (mine, groups), (theirs, _) = drawn(random), drawn(random)
        for name, (_, low, high), value in (
            ("none", share_of(mine), truth),
            ("share", share_of(mine, groups), truth),
            ("mean", statistics.mean_of(mine.astype(np.float64), groups), truth),
            ("classes", statistics.mean_per_class(mine, classes, groups), truth),
            ("paired", statistics.paired(mine, theirs, groups=groups), 0),
        ):
            held[name] += low <= value <= high
    assert held.pop("none") / 400 < 0.75
    assert all(0.91 < count / 400 < 0.99 for count in held.values()), held


def test_a_test_of_two_models_says_as_often_as_it_claims_that_they_differ() -> None:
    random = np.random.default_rng(1)
    by_images = by_groups = 0
    for _ in range(400):
        (mine, groups), (theirs, _) = drawn(random), drawn(random)
        by_images += statistics.mcnemar(mine, theirs) < 0.05
        by_groups += statistics.mcnemar(mine, theirs, groups) < 0.05
    assert by_images / 400 > 0.3
    assert 0.02 < by_groups / 400 < 0.08


@pytest.mark.parametrize("sizes", [[300] + [10] * 30, [100] * 2 + [5] * 40, [910] + [10] * 9])
def test_a_few_large_groups_do_not_make_sure(sizes: list[int]) -> None:
    random, truth, held = (
        np.random.default_rng(2),
        0.7 * 0.95 + 0.3 * 0.25,
        dict.fromkeys(("share", "mean", "paired"), 0),
    )
    groups = np.repeat(np.arange(len(sizes)), sizes)

    def answers() -> np.ndarray:
        return random.random(len(groups)) < random.choice([0.95, 0.25], len(sizes), p=[0.7, 0.3])[groups]

    for _ in range(200):
        mine, theirs = answers(), answers()
        for name, (_, low, high), value in (
            ("share", share_of(mine, groups), truth),
            ("mean", statistics.mean_of(mine.astype(np.float64), groups), truth),
            ("paired", statistics.paired(mine, theirs, groups=groups), 0),
        ):
            held[name] += low <= value <= high
    assert held["mean"] / 200 > 0.8  # of a few large groups alone
    assert min(held["share"], held["paired"]) / 200 > 0.9


def test_classes_that_lie_in_one_group_each_tell_of_groups_all_the_same() -> None:
    random, groups, held = np.random.default_rng(3), np.repeat(np.arange(20), 10), 0
    for _ in range(200):
        right = random.random(200) < random.choice([0.95, 0.25], 20, p=[0.7, 0.3])[groups]
        _, low, high = statistics.mean_per_class(right, groups // 2, groups)
        held += low <= 0.74 <= high
    assert held / 200 > 0.9


def test_where_all_answers_agree_an_interval_is_as_wide_as_for_as_many_groups() -> None:
    right, own, six = np.arange(500) % 4 > 0, np.arange(500), np.repeat(np.arange(6), 10)
    assert share_of(right, own) == pytest.approx(share_of(right), abs=2e-3)  # groups of one image change little
    lows = [share_of(np.arange(60) >= wrong, six).low for wrong in range(0, 40, 5)]
    assert lows == sorted(lows, reverse=True)  # a mistake makes nothing surer
    assert 0.3 < lows[0] < wilson(6, 6).low
    all_right = np.ones(600, bool)
    for low, high in (
        statistics.mean_per_class(all_right, np.arange(600) % 2, np.repeat(np.arange(6), 100))[1:],
        statistics.paired(all_right, all_right, groups=np.repeat(np.arange(6), 100))[1:],
    ):
        assert high - low > 0.3
    assert share_of(np.array([True, False]), np.zeros(2, np.int64))[1:] == (0, 1)  # nothing is known of other groups
    nearly_one = share_of(np.arange(90300) % 4 > 0, np.minimum(np.arange(90300), 300))
    assert nearly_one.low < 0.2
    assert nearly_one.high > 0.99
    assert share_of(np.arange(10**6) % 4 > 0, np.minimum(np.arange(10**6), 1000))[1:] == (0, 1)
    assert mean_of(torch.rand(950), groups=np.minimum(np.arange(950), 20)).low is None
    few = mean_of(torch.tensor([0.0, 1, 1, 1, 1, 1]), groups=np.repeat(np.arange(3), 2))
    assert few == (pytest.approx(5 / 6), pytest.approx(0.1162, abs=1e-3), 1, True, "higher", ())
    two = np.repeat([0, 1], 100)
    assert statistics.mcnemar(np.ones(200, bool), np.zeros(200, bool), two) > 0.05
    assert statistics.mcnemar(np.ones(200, bool), np.zeros(200, bool), np.repeat(np.arange(40), 5)) < 1e-3


def test_no_part_divides_a_group() -> None:
    left = []
    groups = np.arange(120) % 12
    statistics.pseudo_values(120, lambda rows: left.append(rows) or 0.0, groups=groups)  # type: ignore[func-returns-value]
    assert len(left) == 11  # all, and each of ten parts left out
    for rows in left[1:]:
        assert not {*groups[rows]} & {*np.delete(groups, rows)}
    assert len(statistics.pseudo_values(120, lambda rows: 0.0, groups=np.arange(120) % 4)) == 4


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes; each of 24 patients has ten nearly equal images, whose colour tells the class of most patients."""
    root = tmp_path_factory.mktemp("scans")
    for number in range(480):
        split_, patient = ("train", "test")[number // 240], number // 10
        random = np.random.default_rng(patient)
        colour = random.normal(90 + 40 * (patient % 2), 40, 3)
        pixels = np.random.default_rng(number).normal(colour, 4, (8, 8, 3)).clip(0, 255).astype(np.uint8)
        path = root / split_ / "ab"[patient % 2] / f"p{patient}-{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def run(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = [f"data.train={scans}/train", f"data.test={scans}/test", "data.size=8", "data.channels=3"]
    data += ["data.mean=0.4", "data.std=0.2"]
    return pretrained(
        tmp_path_factory.mktemp("run") / "run", *NARROW, *data, "batch=32", "length=2 steps", "optim.warmup=1 step"
    )


def test_every_evaluator_counts_groups(run: Path) -> None:
    names = ("linear", "knn", "centroid", "logistic", "few_shot", "retrieval", "invariance")
    words = ("linear.layers=1", "logistic.layers=1")
    plain = api.probe(run, *words, evaluators=names).results["trained"]
    grouped = api.probe(run, *words, f"data.group={PATTERN}", evaluators=names).results["trained"]

    def width(found: dict[str, object]) -> float:
        for number in (found, *found.get("few_shot", ()), *found.get("measures", {}).values()):  # type: ignore[misc, attr-defined]
            if number.get("low") is not None:
                return float(number["high"]) - float(number["low"])
        raise AssertionError(found)

    for name in names:
        assert width(grouped[name]) > 1.2 * width(plain[name]), name
    records = {record.key: record for record in read(run)}
    assert len(records) == 2 * len(names)  # none has taken the other's place
    (kept,) = (one for one in records.values() if one.evaluator == "centroid" and one.groups)
    outcomes = read_outcomes(run, kept)
    assert outcomes is not None
    assert outcomes.groups is not None
    assert len(np.unique(outcomes.groups)) == 24
    assert kept.data["groups"] == PATTERN
    assert {point.data.name.partition(", ")[2] for point in collect([run], ["run"])} == {"", "by groups"}


def test_groups_of_a_run_are_those_of_its_own_data(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["probe", str(run), "--evaluator", "centroid", "data.group=q"])
    assert "data.group: 'q' finds nothing in 'a/p0-0.png'" in capsys.readouterr().err
    model = load(run)
    model = replace(model, run=model.run.model_copy(update={"data": model.run.data.model_copy(update={"group": "p"})}))
    assert changed_run(model, {}).data.group == "p"
    assert changed_run(model, {"data": {"fraction": 0.5}}).data.group == "p"
    assert changed_run(model, {"data": {"test": "digits"}}).data.group is None
    assert changed_run(model, {"data": {"test": "digits", "group": "d"}}).data.group == "d"
    assert "group" not in model.run.identity(data="")["data"]  # it decides no training


def test_the_verdict_of_adapt_counts_groups(run: Path) -> None:
    words = load(run).run
    grouped = words.model_copy(update={"data": words.data.model_copy(update={"group": PATTERN})})
    assert measure(grouped, [run]).images == 240
    assert any(
        record.data.get("groups") == PATTERN and record.data.get("label") == "held-out images" for record in read(run)
    )


def test_classifiers_are_measured_with_the_groups_that_are_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = ["probe", str(run), "--protocol", "paper", "length=2 steps", "optim.warmup=1 step", "batch=32"]
    main(protocol)
    assert not any("groups of" in line for line in capsys.readouterr().err.splitlines())
    main([*protocol, f"data.group={PATTERN}"])
    assert "data.group: 24 groups of 240 images" in capsys.readouterr().err
    plain, grouped = sorted((path for path in run.glob("paper-*")), key=lambda path: len(path.name))
    widths = []
    for folder in (plain, grouped):
        found = json.loads((folder / "validation.json").read_text())["student"]["accuracy"]
        widths.append(found["high"] - found["low"])
    assert widths[1] > 1.2 * widths[0]
    main(["evaluate", str(plain), f"data.group={PATTERN}"])
    assert "0 groups" not in capsys.readouterr().err  # of the training images, which are not at hand
    assert [record.data["groups"] for record in read(plain)] == [PATTERN]


def test_adapt_holds_out_whole_groups(scans: Path, run: Path, tmp_path: Path) -> None:
    choices = plan(str(run), f"{scans}/train", tmp_path / "out", words=[f"data.group={PATTERN}"])
    assert choices is not None
    assert any("group" in one.yaml and PATTERN in one.yaml for one in choices)
    assert plan(str(run), f"{scans}/train", tmp_path / "out") is None  # goes on with its own groups
    with pytest.raises(ConfigError, match="is a plan for"):
        plan(str(run), f"{scans}/train", tmp_path / "out", words=["data.group=p"])
    with pytest.raises(ConfigError, match=r"data\.group: 5 was given; allowed: a regular expression in quotes"):
        plan(str(run), f"{scans}/train", tmp_path / "other", words=["data.group=5"])
    held_out = json.loads((tmp_path / "out" / LIST).read_text())["held_out"]
    source = open_source(f"{scans}/train", "train")
    patients = [source.name_of(number).partition("-")[0] for number in range(len(source))]
    inside = {patients[number] for number in held_out}
    assert 20 <= len(held_out) <= 40
    assert sum(patient in inside for patient in patients) == len(held_out)
    plan(str(run), f"{scans}/train", tmp_path / "tens", words=[r"data.group=p\d?(\d)-"])
    held_out = json.loads((tmp_path / "tens" / LIST).read_text())["held_out"]
    assert len({patients[number][-1] for number in held_out}) == 2  # of ten: one would tell nothing of others
    with pytest.raises(ConfigError, match="finds 3 groups of images, of which no two can be held out"):
        plan(str(run), f"{scans}/train", tmp_path / "three", words=[r"data.group=p(\d?)\d-"])
