"""Paired tests and intervals against cases that were worked out by hand, and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from mrp.evaluate import statistics
from mrp.evaluate.geometry import effective_rank
from mrp.evaluate.interval import Interval, wilson


def answers(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers of two, given how many images both, only the first, only the second and neither get right."""
    mine = np.repeat([True, True, False, False], [both, first, second, neither])
    theirs = np.repeat([True, False, True, False], [both, first, second, neither])
    return mine, theirs


def test_mcnemar_by_hand() -> None:
    """Nine images that one alone gets right: 1 of 9 or fewer has the probability (1 + 9) / 512 on either side."""
    assert statistics.mcnemar(*answers(80, 8, 1, 11)) == pytest.approx(2 * 10 / 512)
    assert statistics.mcnemar(*answers(80, 1, 8, 11)) == pytest.approx(2 * 10 / 512)
    assert statistics.mcnemar(*answers(5, 0, 0, 5)) == 1
    assert statistics.mcnemar(*answers(5, 3, 3, 5)) == 1


@pytest.mark.parametrize(("first", "second"), [(8, 1), (40, 3), (2, 7)])
def test_mcnemar_agrees_with_scipy(first: int, second: int) -> None:
    expected = stats.binomtest(first, first + second).pvalue
    assert statistics.mcnemar(*answers(10, first, second, 10)) == pytest.approx(expected, rel=1e-12)


def test_the_paired_interval_by_hand() -> None:
    """100 images, 8 and 1: shares 9/102 and 2/102, so the centre is 7/102."""
    found = statistics.paired(*answers(80, 8, 1, 11))
    win, lose = 9 / 102, 2 / 102
    half = 1.959964 * math.sqrt((win + lose - (win - lose) ** 2) / 102)
    assert found == pytest.approx((0.07, 7 / 102 - half, 7 / 102 + half))
    assert found.low > 0
    assert statistics.paired(*answers(80, 5, 0, 15)).low < 0  # McNemar's p is 0.06
    same = statistics.paired(*answers(50, 0, 0, 50))
    assert same.low < 0 < same.high


def test_the_paired_interval_covers_the_truth() -> None:
    random, truth, covered = np.random.default_rng(0), 0.05, 0
    for _ in range(500):
        cells = random.multinomial(200, [0.6, 0.12, 0.07, 0.21])
        found = statistics.paired(*answers(*cells.tolist()))
        covered += found.low <= truth <= found.high
    assert 0.93 < covered / 500 < 0.98


def test_means_over_classes() -> None:
    """A class of 90 images and one of 10 count the same."""
    classes = np.repeat([3, 7], [90, 10])
    right = np.concatenate([np.ones(90, bool), np.zeros(5, bool), np.ones(5, bool)])
    mean = statistics.mean_per_class(right, classes)
    assert mean.value == pytest.approx(0.75)
    assert mean.low < 0.75 < mean.high
    other = right.copy()
    other[95:] = False  # in the small class
    assert statistics.paired(right, other, classes).value == pytest.approx(0.25)
    assert statistics.paired(right, other).value == pytest.approx(0.05)
    assert statistics.paired(right, other, np.zeros(100, int)) == statistics.paired(right, other)
    order = np.random.default_rng(1).permutation(100)
    assert statistics.paired(right[order], other[order], classes[order]) == statistics.paired(right, other, classes)


def test_draws_and_seeds_agree_with_scipy() -> None:
    first, second = [0.50, 0.53, 0.49, 0.55], [0.48, 0.50, 0.49, 0.51]
    expected = stats.ttest_rel(first, second).confidence_interval()
    value = float(np.mean(first) - np.mean(second))
    assert statistics.over_draws(first, second, value) == pytest.approx((value, expected.low, expected.high))
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert statistics.between_seeds(first, second)[1:] == pytest.approx((expected.low, expected.high))
    expected = stats.ttest_1samp(first, 0).confidence_interval()
    assert statistics.over_seeds(first)[1:] == pytest.approx((expected.low, expected.high))
    assert statistics.between_seeds([0.5, 0.5], [0.5, 0.5]) == (0, 0, 0)


def test_intervals_over_draws_and_images_cover_what_other_draws_and_images_give() -> None:
    """Two few-shot classifiers, 300 times: some images are hard for all draws, some draws are worse on all images."""
    random = np.random.default_rng(0)
    spread = {"draw": 0.15, "image": 1.5, "both": 0.8}  # of the evidence for the right class
    true = [float(stats.norm.cdf(mean / math.hypot(*spread.values(), 0.7))) for mean in (0.5, 0.8)]

    def groups(right: np.ndarray) -> tuple[float, ...]:
        return statistics.pseudo_values(right.shape[1], lambda rows: float(right[:, rows].mean()))

    alone, paired, of_draws = 0, 0, 0
    for _ in range(300):
        shared = spread["draw"] * random.normal(size=(10, 1)) + spread["image"] * random.normal(size=100)
        first, second = (
            mean + shared + 0.7 * random.normal(size=100) + spread["both"] * random.normal(size=(10, 100)) > 0
            for mean in (0.5, 0.8)
        )
        one = statistics.of_draws_and_images(first)
        assert one.value == pytest.approx(first.mean())
        alone += one.low <= true[0] <= one.high
        value, draws = float(first.mean() - second.mean()), (first.mean(1), second.mean(1))
        both = statistics.over_draws_and_images((draws[0], groups(first)), (draws[1], groups(second)), value)
        assert both.value == value
        paired += both.low <= true[0] - true[1] <= both.high
        narrow = statistics.over_draws(*draws, value)
        of_draws += narrow.low <= true[0] - true[1] <= narrow.high
    assert 0.91 < alone / 300 < 0.985
    assert 0.91 < paired / 300 < 0.985
    assert of_draws / 300 < 0.85, "the draws alone say nothing of other images"


def test_where_only_intervals_are_known() -> None:
    """Newcombe (1998), method 10, first example: 56/70 and 48/80 differ by 0.0524 to 0.3339."""
    found = statistics.unpaired(wilson(56, 70), wilson(48, 80))
    assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert statistics.unpaired(Interval(0.8, 0.7, 0.9), Interval(0.8, 0.7, 0.9)).low < 0


def test_rank_correlation_is_scipys_and_its_interval_is_worked_out_by_hand() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 6, 20).tolist(), generator.integers(0, 6, 20).tolist()  # with ties
    found = statistics.spearman(first, second)
    assert found.value == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
    half = 1.959964 * math.sqrt((1 + found.value**2 / 2) / 17)
    bounds = math.tanh(math.atanh(found.value) - half), math.tanh(math.atanh(found.value) + half)
    assert (found.low, found.high) == pytest.approx(bounds, abs=1e-6)


def test_ranks_that_agree_throughout_still_have_an_interval() -> None:
    for count, sign in ((4, 1), (5, 1), (40, -1)):
        found = statistics.spearman(range(count), [sign * number for number in range(count)])
        assert found.value == pytest.approx(sign)
        assert found.high - found.low > 0
        assert -1 <= found.low <= found.value <= found.high <= 1
    assert statistics.spearman(range(4), range(4)).low < statistics.spearman(range(40), range(40)).low
    assert math.isnan(statistics.spearman([1, 1, 1, 1], [1, 2, 3, 4]).value)


def test_the_difference_of_means_over_the_same_images() -> None:
    """Four images whose numbers differ by 0, 1, 1 and 2: mean 1, deviation sqrt(2/3), 1.96 sqrt(2/3) / 2 around it."""
    first, second = np.array([1.0, 2.0, 3.0, 5.0]), np.array([1.0, 1.0, 2.0, 3.0])
    half = 1.959963984540054 * math.sqrt(2 / 3) / 2
    assert statistics.mean_of(first - second) == pytest.approx((1.0, 1.0 - half, 1.0 + half))
    assert statistics.mean_of(first).value == 2.75


def test_pseudo_values_of_a_mean_are_the_means_of_groups() -> None:
    values = np.random.default_rng(2).normal(size=100)
    found = statistics.pseudo_values(100, lambda rows: float(values[rows].mean()))
    assert len(found) == 10
    assert np.mean(found) == pytest.approx(values.mean())
    again = statistics.pseudo_values(100, lambda rows: float(values[rows].mean()))
    assert found == again  # the same groups for every model
    square = statistics.pseudo_values(
        100, lambda rows: float(values[rows].mean() ** 2)
    )  # biased upwards by variance / count
    assert np.mean(square) < values.mean() ** 2


@pytest.mark.parametrize("power", [0.3, 0.5], ids=["other", "same"])
def test_the_interval_of_two_ranks_covers_their_difference_and_holds_what_is_reported(power: float) -> None:
    """200 pairs of models on 100 images each, whose true difference is the mean over 600 further sets of images."""
    random, axes = np.random.default_rng(0), np.arange(1, 17)

    def features() -> list[torch.Tensor]:
        shared = random.standard_normal((100, 16))
        noise = 0.1 * random.standard_normal((100, 16))
        return [torch.from_numpy(axes**-power * shared + noise), torch.from_numpy(axes**-0.5 * shared - noise)]

    def ranks(models: list[torch.Tensor]) -> float:
        return effective_rank(models[0]) - effective_rank(models[1])

    truth, covered = np.mean([ranks(features()) for _ in range(600)]), 0
    for _ in range(200):
        models = features()
        draws = [
            statistics.pseudo_values(100, lambda rows, one=one: effective_rank(one[rows]))  # type: ignore[misc]
            for one in models
        ]
        found = statistics.over_draws(draws[0], draws[1], ranks(models))
        assert found.low < found.value == ranks(models) < found.high
        covered += found.low <= truth <= found.high
    assert 0.9 < covered / 200 < 0.99
