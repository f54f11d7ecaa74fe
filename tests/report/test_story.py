"""Words that say what is drawn: known curves have known sentences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mrp.report import story
from mrp.report.series import Series

STEPS = np.arange(1, 301)
NOISE = np.random.default_rng(0).normal(size=300)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (1 - STEPS / 600, "Loss fell from 0.998 to 0.507; still falling at the end"),
        (0.4 + 0.6 * np.exp(-STEPS / 10) + 0.002 * NOISE, "Loss fell from 0.943 to 0.4; flat at the end"),
        (np.full(300, 0.5), "Loss stayed at 0.5"),
        (0.3 + STEPS / 300, "Loss rose from 0.303 to 1.29; still rising at the end"),
        (np.abs(STEPS - 150) / 150 + 0.1, "Loss fell from 1.09 to 0.128 at step 150, then rose to 1.07"),
        (1 - np.abs(STEPS - 150) / 200, "Loss rose from 0.255 to 0.979 at step 150, then fell to 0.27"),
        (np.sin(STEPS / 300 * 2 * np.pi), "Loss moved between -0.995 and 0.995, with -0.0836 at the end"),
        (np.array([0.7]), "Loss: 0.7 at step 1, the only log point"),
        (np.array([math.nan]), "Loss: no finite value yet"),
    ],
)
def test_the_course_of_a_curve(values: np.ndarray, said: str) -> None:
    assert story.course("Loss", Series.of("loss", STEPS[: len(values)], values)) == said


def test_a_fall_that_noise_hides_is_not_called_flat() -> None:
    assert story.at_the_end(2 - STEPS / 300 + 0.3 * NOISE) == ""


def test_few_values_say_nothing_of_the_end() -> None:
    assert story.course("Rank", Series.of("", [1, 2, 3], [1, 2, 4])).count(";") == 0


def test_what_fluctuates_is_told_by_its_middle() -> None:
    series = Series.of("", STEPS, np.tile([1.0, 2.0, 3.0], 100))
    assert story.between("Norm", series) == "Norm: 2, mostly 1 to 3"
    assert story.between("Rate", Series.of("", [1, 2], [5, 5]), "images/s") == "Rate: 5 images/s"


@pytest.mark.parametrize(
    ("share", "kind", "gain"),
    [(0.01, "compute-bound", None), (0.1, "mostly compute-bound", "1.1 times"), (0.5, "loader-bound", "2 times")],
)
def test_who_is_waited_for(share: float, kind: str, gain: str | None) -> None:
    waiting = Series.of("", STEPS, np.r_[1.0, np.full(299, share)])  # the workers start before the first log point
    found = story.verdict(waiting, Series.of("", STEPS, np.full(300, 800.0)))
    assert found is not None
    assert (found.kind, found.starves) == (kind, kind == "loader-bound")
    assert f"in {100 * share:.0f} % of their time" in found.text
    assert ("times as fast" in found.text) == (gain is not None)
    assert gain is None or f"{gain} as fast, now 800 images/s" in found.text


def test_without_the_number_there_is_no_verdict() -> None:
    assert story.verdict(None, None) is None


def test_an_accuracy_has_its_interval() -> None:
    low, high = np.array([0.5, 0.7]), np.array([0.6, 0.8])
    assert story.accuracy(Series("knn", np.array([10.0, 20.0]), np.array([0.55, 0.75]), low, high)) == (
        "knn 75.0 % (70.0 to 80.0), from 55.0 % at step 10"
    )
