"""Average precision and AUROC by their definitions, without each image, and intervals that hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mrp.config import ConfigError
from mrp.evaluate.tagged import Area, auroc, average_precision, number, over_tags, rated, result

AREAS = [average_precision, auroc]


def of_definition(area: Area, scores: np.ndarray, has: np.ndarray) -> float:
    """By thresholds, or by pairs."""
    if area is auroc:
        above = scores[has][:, None] - scores[~has]
        return float(((above > 0) + (above == 0) / 2).mean())
    total, found = 0.0, 0
    for threshold in np.unique(scores)[::-1]:
        shown = scores >= threshold
        hits = int((shown & has).sum())
        total, found = total + (hits - found) * hits / int(shown.sum()), hits
    return total / int(has.sum())


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("images", [3, 6, 25])
def test_areas_are_those_of_their_definitions_also_without_each_image(area: Area, ties: bool, images: int) -> None:
    draw, tried = np.random.default_rng(images), 0
    while tried < 20:
        scores, has = draw.normal(size=images), draw.random(images) < 0.4
        scores = np.round(scores) if ties else scores
        if not has.any() or has.all():
            continue
        tried += 1
        whole = area(scores, has)
        assert whole[0] == pytest.approx(of_definition(area, scores, has), abs=1e-12)
        for one in range(images):
            rest = np.arange(images) != one
            if has[rest].any() and not has[rest].all():
                assert whole[1 + one] == pytest.approx(of_definition(area, scores[rest], has[rest]), abs=1e-12)


def test_means_are_over_tags_that_can_be_judged_and_known_images() -> None:
    draw = np.random.default_rng(0)
    scores, tags = draw.normal(size=(40, 4)), (draw.random((40, 4)) < 0.5).astype(np.int8)
    tags[:, 1], tags[::2, 2], tags[:, 3] = 0, -1, -1
    assert rated(tags) == [0, 2]
    for area in AREAS:
        single = [of_definition(area, scores[:, 0], tags[:, 0] == 1)]
        single += [of_definition(area, scores[1::2, 2], tags[1::2, 2] == 1)]
        assert over_tags(area, scores, tags) == pytest.approx(np.mean(single))
    values, details = result(scores, tags, list("abcd"))
    assert values == {key: details[key] for key in ("mean_ap", "mean_auroc")}
    about = [(one["name"], one["images"], one["having"], "ap" in one) for one in details["tags"]]
    counts = (tags == 1).sum(0)
    assert about == [("a", 40, counts[0], True), ("b", 40, 0, False), ("c", 20, counts[2], True), ("d", 0, 0, False)]
    assert len(details["measures"]["mean_ap"]["draws"]) == 10
    with pytest.raises(ConfigError, match="none can be judged"):
        result(scores[:, 1:2], tags[:, 1:2], ["b"])


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize(("images", "share", "distance"), [(100, 0.2, 1.0), (300, 0.5, 2.3), (60, 0.1, 3.0)])
def test_intervals_hold_the_true_value(area: Area, images: int, share: float, distance: float) -> None:
    draw = np.random.default_rng(5)
    has = draw.random(200_000) < share
    scores = draw.normal(size=len(has)) + distance * has
    true = 0.5 * (1 + math.erf(distance / 2)) if area is auroc else float(average_precision(scores, has)[0])
    held = []
    for part in range(200):
        rows = slice(part * images, (part + 1) * images)
        if has[rows].any():
            found = number(area, scores[rows, None], has[rows, None].astype(np.int8))
            assert found.low is not None
            assert found.high is not None
            held.append(found.low <= true <= found.high)
    assert 0.88 <= np.mean(held) <= 1


def test_intervals_count_groups() -> None:
    draw = np.random.default_rng(6)
    has = np.repeat(draw.random((60, 1)) < 0.4, 10, axis=0).astype(np.int8)  # ten images alike per patient
    scores = np.repeat(draw.normal(size=(60, 1)), 10, axis=0) + has
    groups = np.repeat(np.arange(60), 10)
    for area in AREAS:
        by_image, by_group = number(area, scores, has), number(area, scores, has, groups)
        assert by_image.value == by_group.value
        widths = [(found.high or 0) - (found.low or 0) for found in (by_image, by_group)]
        assert 2 < widths[1] / widths[0] < 4  # the square root of ten
    alone = number(auroc, scores, has, np.zeros(len(has), np.int64))
    assert (alone.low, alone.high) == (0, 1)


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("tags", [1, 3])
@pytest.mark.parametrize(("patients", "images"), [(8, 50), (20, 20)])
def test_intervals_over_few_groups_hold_the_true_value(area: Area, tags: int, patients: int, images: int) -> None:
    draw, distance = np.random.default_rng(8), 1.0
    has = draw.random(300_000) < 0.4
    true = float(area(draw.normal(size=len(has)) + distance * has, has)[0])
    groups, held = np.repeat(np.arange(patients), images), []
    for _ in range(100):
        own = np.repeat(draw.random((patients, tags)) < 0.4, images, axis=0)  # a patient has a tag in all images
        alike = np.repeat(draw.normal(size=(patients, tags)), images, axis=0)
        scores = 0.9 * alike + math.sqrt(1 - 0.81) * draw.normal(size=own.shape) + distance * own
        found = number(area, scores, own.astype(np.int8), groups)
        if found.low is not None and found.high is not None:
            held.append(found.low <= true <= found.high)
    assert np.mean(held) >= 0.9


def test_nothing_is_certain_where_all_is_wrong_or_one_image_has_a_tag() -> None:
    scores = np.arange(40.0)[:, None]
    for has in (scores[::-1] > 30, scores == 0, scores > 30):
        for area in AREAS:
            found = number(area, scores, has.astype(np.int8))
            assert found.low is not None
            assert found.high is not None
            assert found.high - found.low > 0.03


def test_draws_are_given_where_each_part_can_be_judged_and_scores_are_numbers() -> None:
    draw = np.random.default_rng(9)
    scores, tags = draw.normal(size=(60, 2)), (draw.random((60, 2)) < 0.5).astype(np.int8)
    assert "draws" in result(scores, tags, ["a", "b"])[1]["measures"]["mean_ap"]
    tags[:, 1] = np.arange(60) == 5  # without its part nobody has it
    assert "draws" not in result(scores, tags, ["a", "b"])[1]["measures"]["mean_ap"]
    scores[0, 0] = np.nan
    values, details = result(scores, tags, ["a", "b"])
    assert math.isnan(values["mean_ap"])
    assert details["measures"]["mean_auroc"]["low"] is None
