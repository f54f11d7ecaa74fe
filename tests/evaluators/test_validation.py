"""Validation: every image counted once, on any number of processes, and what is written of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mrp.build import build_step, check_classes, open_validation
from mrp.config import ConfigError
from mrp.data.config import CacheConfig
from mrp.data.mixtures import Mixture
from mrp.data.source import Arrays, Source
from mrp.data.storage.cache import Cache
from mrp.data.subset import Subset
from mrp.evaluate import answering, tagged
from mrp.evaluate.config import Validation
from mrp.evaluate.contract import never
from mrp.evaluators.validation import Evaluator, of_classes
from mrp.processes.signals import Interrupted
from mrp.run import Run, load
from tests import tagged_digits
from tests.evaluators.settings import setting, some, together

TINY = ["backbone.width=16", "backbone.depth=1", "backbone.heads=2", "objective.head_std=1"]


def make(run: Run, source: Arrays) -> Evaluator:
    return Evaluator(Validation(), setting(run.data, source, source))


@pytest.fixture(scope="module")
def run() -> Run:
    return load("finetune_tiny_digits", TINY)


@pytest.mark.parametrize("count", [1, 17, 37])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_counts_are_exact_however_many_look(run: Run, count: int, world: int) -> None:
    step, source = build_step(run).eval(), some("test", count)
    images = torch.from_numpy(np.ascontiguousarray(source.images)).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = step.objective.predict(step.prepare(images))[1]
    labels = torch.from_numpy(source.labels)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none").double()

    def answers_of(processes: Any) -> dict[str, torch.Tensor]:
        at = setting(run.data, source, source, processes)
        return answering.answered(step, at, answering.test_batches(at), never)

    loss, correct, among_five, answers, numbered = together(world, answers_of).values()
    assert torch.allclose(loss, losses, rtol=1e-5)
    assert torch.equal(answers, logits.argmax(1))
    assert torch.equal(correct.bool(), answers == labels)
    assert torch.equal(among_five.bool(), (logits.topk(5).indices == labels[:, None]).any(1))
    assert torch.equal(numbered, labels)


def test_what_was_answered_is_counted(run: Run) -> None:
    step, source = build_step(run).eval(), some("test", 37)
    found = make(run, source).measure(step, 1, never)
    images = torch.from_numpy(np.ascontiguousarray(source.images)).permute(0, 3, 1, 2)
    with torch.no_grad():
        answers = step.objective.predict(step.prepare(images))[1].argmax(1)
    labels = torch.from_numpy(source.labels)
    confusion = torch.zeros(10, 10, dtype=torch.int64).index_put_((labels, answers), torch.tensor(1), True)
    assert found.details["confusion"] == confusion.tolist()
    assert found.right is not None
    assert torch.equal(found.right, answers == labels)
    share = float((answers == labels).sum()) / 37
    assert found.values["accuracy"] == found.details["accuracy"]["accuracy"] == share
    assert 0 <= found.details["accuracy"]["low"] <= share < found.details["accuracy"]["high"] < 1
    assert found.details["images"] == 37


def test_answers_can_be_limited_to_the_classes_of_the_test_data(run: Run) -> None:
    """Images of three classes, of which the other seven are no possible answers, nor among the first five."""
    step, source = build_step(run).eval(), some("test", 200)
    chosen = np.isin(source.labels, (2, 5, 7))
    three = Arrays("three", source.images[chosen], source.labels[chosen].clip(0, 7), source.classes)
    three.labels = np.searchsorted([2, 5, 7], three.labels)
    three.classes = ("2", "5", "7")
    images = torch.from_numpy(np.ascontiguousarray(three.images)).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = step.objective.predict(step.prepare(images))[1]
    labels = torch.tensor([2, 5, 7])[torch.from_numpy(three.labels)]
    whole = setting(run.data, source, three)
    found = Evaluator(Validation(), whole).measure(step, 1, never).values
    limited = Evaluator(Validation(), replace(whole, limited=True)).measure(step, 1, never).values
    assert found["accuracy"] == float((logits.argmax(1) == labels).double().mean())
    among = torch.tensor([2, 5, 7])[logits[:, [2, 5, 7]].argmax(1)]
    assert limited["accuracy"] == float((among == labels).double().mean())
    assert limited["accuracy"] > found["accuracy"]
    assert limited["accuracy5"] == 1.0  # there are only three
    assert limited["loss"] == found["loss"]


def test_it_can_be_left_between_batches(run: Run) -> None:
    step, calls = build_step(run).train(), []

    def between() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        make(run, some("test", 37)).measure(step, 1, between)
    assert len(calls) == 2
    assert step.training


def test_a_method_without_answers_is_judged_by_its_loss() -> None:
    chosen = load("demo", ["backbone.width=16", "backbone.depth=1", "backbone.heads=2"])
    found = make(chosen, some("test", 9)).measure(build_step(chosen), 1, never)
    assert found.values.keys() == {"loss"}
    assert found.details == {"images": 9, "loss": found.values["loss"]}


def test_every_class_is_counted_also_one_without_images() -> None:
    labels, answers = torch.tensor([0, 0, 0, 2]), torch.tensor([0, 0, 1, 2])
    found = of_classes(labels, answers, ("a", "b", "c"))
    assert found["classes"][0] == {"name": "a", "images": 3, "accuracy": 2 / 3}
    assert found["classes"][1] == {"name": "b", "images": 0, "accuracy": None}
    assert found["confusion"] == [[2, 1, 0], [0, 0, 0], [0, 0, 1]]


def sources(train: tuple[str, ...] | str, test: tuple[str, ...]) -> Any:
    parts = [Arrays(name, np.zeros((2, 8, 8, 1), np.uint8), np.arange(2), (name, "b")) for name in "ac"]
    mixed = Mixture(parts, [1.0, 1.0])
    return {
        "train": mixed if train == "mixed" else SimpleNamespace(classes=train, tags=()),
        "test": SimpleNamespace(classes=test, tags=()),
    }


@pytest.mark.parametrize(
    ("words", "train", "test", "message"),
    [
        ([], ("a", "b"), ("a", "b"), "objective.classes: 10, but data.train has 2 classes; set objective.classes=2"),
        ([], (), (), "data.train: has no labels, which classify needs"),
        ([], "mixed", (), "data.train: mixes sources whose classes differ, so it has no labels, which classify needs"),
        (["objective.classes=2"], ("a", "b"), ("a", "c"), "data.test: has a class 'c' that data.train has not"),
        (["objective.classes=2"], ("a", "b"), (), "data.test: has no labels, so accuracy"),
        (["data.test=null"], tuple("0123456789"), (), "validation.every: data.test is not set"),
    ],
)
def test_classes_have_to_fit(
    words: list[str], train: tuple[str, ...] | str, test: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = load("finetune_tiny_digits", words)
    known = sources(train, test)
    monkeypatch.setattr("mrp.build.open_source", lambda run, split: known[split])

    def check() -> None:
        check_classes(chosen, known["train"])
        open_validation(chosen, known["train"])

    with pytest.raises(ConfigError, match=message):
        check()


def test_the_test_data_need_not_have_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a class has a handful of images, none of them may be a test image; labels are told by name."""
    known = sources(("a", "b", "c"), ("c", "b"))
    monkeypatch.setattr("mrp.build.open_source", lambda run, split: known[split])
    chosen = load("finetune_tiny_digits", ["objective.classes=3"])
    check_classes(chosen, known["train"])
    assert open_validation(chosen, known["train"]) is known["test"]


def tagged_source(split: Any, *tags: str, **options: Any) -> Source:
    config = tagged_digits.Config(tags=tags or tagged_digits.TAGS, **options)
    return tagged_digits.Source(config, split, Cache(CacheConfig()))


@pytest.fixture(scope="module")
def run_of_tags() -> Run:
    return load("finetune_tiny_digits", [*TINY, "objective.loss=tags", "objective.classes=4"])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_tags_are_judged_as_by_hand_however_many_look(run_of_tags: Run, world: int) -> None:
    """The test data name the tags in another order, and know nothing of one."""
    step, train = build_step(run_of_tags).eval(), tagged_source("train")
    whole = tagged_source("test")
    few = Subset(tagged_source("test", "seven", "with a loop", "even"), np.arange(61))

    def measured(processes: Any) -> Any:
        at = setting(run_of_tags.data, train, few, processes)
        return Evaluator(Validation(), at).measure(step, 0, never)

    found = together(world, measured)
    images = torch.from_numpy(np.ascontiguousarray(whole.images[:61])).permute(0, 3, 1, 2)  # type: ignore[attr-defined]
    with torch.no_grad():
        logits = step.objective.predict(step.prepare(images))[1].double()
    tags = few.tagged[:, [2, 0, 1, 0]].copy()
    tags[:, 1] = -1
    tags[:, 3] = few.tagged[:, 0]
    known = torch.from_numpy(tags >= 0)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.from_numpy(tags).double(), known.double(), reduction="none"
    )
    loss = (losses.sum(1) / known.sum(1).clamp_min(1)).mean()
    values, details = tagged.result(logits.numpy(), tags, tagged_digits.TAGS)
    assert found.values["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert found.values == {"loss": found.values["loss"]} | {k: pytest.approx(v, rel=1e-6) for k, v in values.items()}
    assert found.details["images"] == 61
    assert [one["having"] for one in found.details["tags"]] == (tags == 1).sum(0).tolist()
    assert "ap" not in found.details["tags"][1]
    assert found.details["measures"]["mean_ap"]["low"] == pytest.approx(details["measures"]["mean_ap"]["low"])


def test_groups_widen_the_intervals_of_tags(run_of_tags: Run) -> None:
    step, train, test = build_step(run_of_tags), tagged_source("train"), tagged_source("test")
    at = setting(run_of_tags.data, train, test)
    grouped = replace(at, data=at.data.model_copy(update={"group": "x"}))
    grouped.known_groups[test.content, "x"] = np.arange(len(test)) // 36
    first, second = (
        Evaluator(Validation(), one).measure(step, 0, never).details["measures"]["mean_ap"] for one in (at, grouped)
    )
    assert first["value"] == second["value"]
    assert first["low"] != second["low"]


def test_a_classifier_of_tags_reports_the_areas_under_their_names() -> None:
    assert Evaluator.value_names({"loss", "known"}) == ["loss", "mean_ap", "mean_auroc"]
    assert Evaluator.value_names({"loss", "correct"}) == ["loss", "accuracy"]


ABOUT_TAGS = ["objective.loss=tags", "objective.classes=4"]


@pytest.mark.parametrize(
    ("words", "train", "test", "message"),
    [
        (
            [], tagged_source("train"), None, "objective.loss: cross_entropy, but data.train has tags, .* several; set "
            "objective.loss=tags objective.classes=4 checkpoint.best=validation/mean_ap",
        ),
        (
            ["objective.loss=binary", "checkpoint.best=loss"], tagged_source("train"), None,
            "objective.loss: binary, but data.train has tags, .* objective.loss=tags objective.classes=4$",
        ),
        (ABOUT_TAGS, some("train", 9), None, "objective.loss: tags, but data.train has classes, one per image; set"),
        (
            ["objective.loss=tags"], tagged_source("train"), None,
            "objective.classes: 10, but data.train has 4 tags; set objective.classes=4",
        ),
        (
            ABOUT_TAGS, Mixture([tagged_source("train"), tagged_source("train", "even", "seven")], [1, 1]), None,
            "data.train: mixes sources whose tags differ, so it has no labels, which classify needs",
        ),
        (ABOUT_TAGS, tagged_source("train"), some("test", 9), "data.test: has no tags, which a classifier of tags"),
        (
            ABOUT_TAGS, tagged_source("train"), tagged_source("test", "even", "odd"),
            r"data.test: has a tag 'odd' that data.train has not, which has the tags 4 \(even, below",
        ),
        (
            ABOUT_TAGS, tagged_source("train"), Subset(tagged_source("test", "seven"), np.arange(2)),
            "data.test: of no tag it is known that some of its images have it and others not",
        ),
    ],
)  # fmt: skip
def test_tags_and_losses_have_to_fit(
    words: list[str], train: Source, test: Source | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrp.build.open_source", lambda run, split: test)
    chosen = load("finetune_tiny_digits", words)
    check = partial(check_classes, chosen, train) if test is None else partial(open_validation, chosen, train)
    with pytest.raises(ConfigError, match=message):
        check()
