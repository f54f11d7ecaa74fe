"""The head for tags against scikit-learn, what has no influence on it, and when the test images are read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import StandardScaler

from mrp.config import ConfigError
from mrp.data.source import Arrays, Source
from mrp.evaluate import logistic, neighbours, sweep, tag_heads
from mrp.evaluate.contract import Result, never
from mrp.evaluate.readout import Readout
from mrp.evaluate.table import Table
from mrp.evaluate.tagged import Tags
from mrp.evaluators.tags import Config, Evaluator
from mrp.run import load
from mrp.step import Step
from tests import tagged_digits
from tests.evaluators.settings import setting

READOUT = Readout((1, 2), ("mean",), width=12, num_patches=4)
CPU = torch.device("cpu")


def rows(count: int, seed: int = 0, tags: int = 3) -> tuple[Table, Tags]:
    """Two layers, of which the second tells the tags, through noise; the last tag is rare, and some are not known."""
    random = np.random.default_rng(seed)
    layers = random.normal(size=(2, count, 12))
    chance = layers[1][:, :tags] * 2 + random.normal(size=(count, tags))
    known = (chance > [0, 1, 4][:tags]).astype(np.int8)
    known[random.random(known.shape) < 0.2] = -1
    columns = {f"{layer}.mean": one.astype(np.float16) for layer, one in enumerate(layers, start=1)}
    return Table(columns, torch.full((count,), -1), torch.arange(count)), known


def learned(table: Table, tags: Tags, **options: Any) -> tag_heads.Head:
    candidates = sweep.inputs_of(READOUT, "sweep")
    return tag_heads.learn(table, tags, candidates, np.arange(len(table)), CPU, **options)


def test_each_tag_is_a_logistic_regression_on_the_images_of_which_it_is_known() -> None:
    (train, tags), (test, _) = rows(600), rows(200, seed=1)
    head = learned(train, tags)
    assert head.chosen == min(head.tried, key=lambda one: one.loss)
    assert head.chosen.layer in ("2", "1-2")
    scaler = StandardScaler().fit(train.rows(head.input.blocks, slice(None)).numpy())
    inputs, others = (scaler.transform(one.rows(head.input.blocks, slice(None)).numpy()) for one in (train, test))
    for tag in range(3):
        known = tags[:, tag] >= 0
        theirs = LogisticRegression(C=1 / (known.sum() * head.chosen.l2), tol=1e-9, max_iter=10_000)
        theirs.fit(inputs[known], tags[known, tag])
        np.testing.assert_allclose(head.scores(test)[:, tag], theirs.decision_function(others), atol=2e-3)


def test_an_image_of_which_a_tag_is_not_known_has_no_influence_on_it() -> None:
    """The weights are those that are fitted without the image."""
    table, tags = rows(300)
    inputs = logistic.Coordinates.of(table.rows(["2.mean"], slice(None)))(table.rows(["2.mean"], slice(None)))
    known, start = tags[:, 1] >= 0, torch.zeros(13, 1, dtype=torch.float64)
    targets = torch.from_numpy(np.where(known, tags[:, 1], np.nan))[:, None]
    kept = torch.from_numpy(known)
    one = logistic.fit(inputs, targets, 1e-2, start, loss=logistic.TAGS, chunk=70)
    other = logistic.fit(inputs[kept], targets[kept], 1e-2, start, loss=logistic.TAGS)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_a_tag_has_no_influence_on_another() -> None:
    table, tags = rows(300)
    inputs = logistic.Coordinates.of(table.rows(["2.mean"], slice(None)))(table.rows(["2.mean"], slice(None)))
    targets = torch.from_numpy(np.where(tags < 0, np.nan, tags))
    every = logistic.fit(inputs, targets, 1e-2, torch.zeros(13, 3, dtype=torch.float64), loss=logistic.TAGS)
    for tag in range(3):
        start = torch.zeros(13, 1, dtype=torch.float64)
        alone = logistic.fit(inputs, targets[:, [tag]], 1e-2, start, loss=logistic.TAGS)
        torch.testing.assert_close(every[:, [tag]], alone, atol=5e-4, rtol=0)


def test_a_tag_that_no_training_image_has_is_left_out_and_does_no_harm() -> None:
    table, tags = rows(300)
    never_seen = np.concatenate([np.zeros((300, 1), np.int8), tags], 1)
    one, other = learned(table, tags), learned(table, never_seen)
    assert (one.learned, other.learned) == ((0, 1, 2), (1, 2, 3))
    assert np.abs(other.scores(table)[:, 0]).max() == 0
    np.testing.assert_allclose(other.scores(table)[:, 1:], one.scores(table), atol=1e-3)


def test_what_is_held_out_is_a_tenth_with_some_images_of_a_rare_tag() -> None:
    tags = np.zeros((1000, 3), np.int8)
    tags[:600, 0], tags[100:200, 1], tags[[150, 700, 701], 2] = 1, 1, 1
    tags[300:320, 0] = -1
    assert tag_heads.rarest(tags)[[0, 120, 150, 305, 700, 999]].tolist() == [0, 1, 2, 3, 2, 3]
    parts = tag_heads.held_out(tags, torch.arange(1000))
    assert len(parts.held_out) == pytest.approx(100, abs=2)
    held_out = (tags[parts.held_out] == 1).sum(0)
    assert held_out[2] == 1
    assert 5 <= held_out[1] <= 15
    assert len({*parts.fitting} | {*parts.held_out}) == 1000


def test_images_of_a_group_are_held_out_together() -> None:
    _, tags = rows(400)
    groups = torch.arange(400) // 8
    parts = tag_heads.held_out(tags, groups)
    assert len(parts.held_out) >= 40
    assert not {*groups[parts.fitting].tolist()} & {*groups[parts.held_out].tolist()}


def test_neighbours_vote_where_they_know() -> None:
    (train, tags), (test, _) = rows(90), rows(40, seed=1)
    keys, queries = train.columns["2.mean"], test.columns["2.mean"]
    found = neighbours.tag_scores(keys, torch.from_numpy(tags), queries, 5, query_chunk=16, key_chunk=32)
    cosines = cosine_similarity(np.asarray(queries, np.float64), np.asarray(keys, np.float64))
    for query, row in enumerate(cosines):
        near = np.argsort(-row)[:5]
        weights = np.exp(row[near] / neighbours.TEMPERATURE)
        for tag in range(3):
            known = tags[near, tag] >= 0
            every = (tags[:, tag] == 1).sum() / (tags[:, tag] >= 0).sum()
            share = (weights * (tags[near, tag] == 1)).sum() / weights[known].sum() if known.any() else every
            assert found[query, tag].item() == pytest.approx(share, rel=1e-4)
    assert (neighbours.tag_scores(keys, torch.full((90, 1), -1), queries, 5) == 0).all()


def measured(step: Step, train: Source, test: Source) -> Result:
    return Evaluator(Config(images=400), setting(load("demo").data, train, test)).measure(step, 0, never)


def test_the_numbers_are_those_of_scikit_learn_whatever_the_order_of_the_tags(step: Step) -> None:
    train, test = (tagged_digits.opened(split) for split in ("train", "test"))
    result = measured(step, train, test)
    other = measured(step, train, tagged_digits.opened("test", tags=["large", "with a loop"]))
    by_name = {one["name"]: one for one in result.details["tags"]}
    assert [one["name"] for one in other.details["tags"]] == ["large", "with a loop"]
    assert result.details["not_learned"] == ["unseen"]
    assert [one["name"] for one in result.details["tags"] if not one["learned"]] == ["unseen"]
    assert result.values["mean_ap"] == pytest.approx(
        np.mean([by_name[tag]["ap"]["value"] for tag in ("even", "with a loop", "large")])
    )
    assert json.dumps(result.details)
    assert set(result.values) == set(Evaluator.values)

    at = setting(load("demo").data, train, test)
    evaluator = Evaluator(Config(images=400), at)
    readout = evaluator.readout(step)
    with at.tables.of(None):
        tables = [at.features(source, step, readout, never) for source in (train, test)]
        assert tables[0] is not None
        assert tables[1] is not None
        scores = evaluator.learn(tables[0], readout).scores(tables[1])
    known = test.tagged[:, 2] >= 0
    expected = (
        average_precision_score(test.tagged[known, 2], scores[known, 2]),
        roc_auc_score(test.tagged[known, 2], scores[known, 2]),
    )
    assert (by_name["large"]["ap"]["value"], by_name["large"]["auroc"]["value"]) == pytest.approx(expected)


def test_the_test_images_decide_nothing(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read after the choice, and with other tags of theirs the choice and the head are the same."""
    train, test = (tagged_digits.opened(split) for split in ("train", "test"))
    read, learn = list[str](), tag_heads.learn

    def noted(*arguments: Any) -> tag_heads.Head:
        read.append("learned")
        return learn(*arguments)

    monkeypatch.setattr(tag_heads, "learn", noted)

    def reads(source: Any, index: int) -> Any:
        read.append(source.name)
        return source.images[index], -1

    monkeypatch.setattr(type(test), "read", reads)
    first = measured(step, train, test)
    assert read.index("learned") == len(train)
    assert len(read) == len(train) + 1 + len(test)
    test.tagged = 1 - np.maximum(test.tagged, 0)
    second = measured(step, train, test)
    assert first.details["tried"] == second.details["tried"]
    assert first.values != second.values


def test_groups_widen_the_intervals(step: Step) -> None:
    train, test = (tagged_digits.opened(split, groups=20) for split in ("train", "test"))
    data = load("demo").data
    grouped = data.model_copy(update={"group": r"group(\d+)_"})
    one, other = (
        Evaluator(Config(images=400), setting(each, train, test)).measure(step, 0, never) for each in (data, grouped)
    )
    assert one.details["tried"] != other.details["tried"]  # whole groups were held out
    assert one.details["measures"]["knn_mean_ap"]["low"] != other.details["measures"]["knn_mean_ap"]["low"]
    assert one.values["knn_mean_ap"] == other.values["knn_mean_ap"]


def test_held_out_images_of_which_nothing_is_known_choose_nothing() -> None:
    table, _ = rows(100)
    tags = np.full((100, 1), -1, np.int8)
    tags[0] = 1
    fitting = tag_heads.held_out(tags, table.groups).fitting
    tags[fitting[fitting > 0][:20]] = 0  # which moves no image to the other part
    with pytest.raises(ConfigError, match="10 of 100 images are held out, and no tag can be learned"):
        learned(table, tags)


def test_too_few_images_to_hold_some_out(step: Step) -> None:
    _, test = (tagged_digits.opened(split) for split in ("train", "test"))
    two = Arrays("two", test.images[:2], np.array([-1, -1]), ())  # type: ignore[attr-defined]
    two.tags, two.tagged = test.tags, np.array([[1, 0, 0, 0], [0, 1, 1, 0]], np.int8)
    with pytest.raises(ConfigError, match=r"needs two training samples of some class \(or tag\)"):
        measured(step, two, test)
