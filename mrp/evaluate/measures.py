"""The numbers that evaluators find, with intervals: as they are kept in a file, and as they stand in tables.

In a table each has a title and a direction too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from mrp.data.order import Ints
from mrp.evaluate import interval
from mrp.evaluate.results import Record

if TYPE_CHECKING:
    from torch import Tensor

MEASURES = "measures"  # in a result: its numbers for tables, by name, each {value, low, high, title, share, better}
ACCURACY, MEAN_PER_CLASS = "accuracy", "mean_per_class"
_TITLES = {
    "linear": "linear probe",
    "knn": "kNN (k = 20)",
    "logistic": "logistic regression",
    "attentive": "attentive probe",
    "validation": "classifier",
    "real": "classifier, ReaL labels",
}
_FIRST = ("linear", "tags", "paper", "attentive", "logistic", "knn", "few_shot", "validation")  # as they are shown


class Number(NamedTuple):
    """A number, the bounds of its 95 % interval where they are known, and what a table has to know of it."""

    value: float
    low: float | None = None
    high: float | None = None
    share: bool = True  # shown in percent
    better: str = "higher"  # or "lower", or "" where neither is
    draws: tuple[float, ...] = ()  # values of the same draws, or groups of images, for every model

    def plain(self) -> dict[str, Any]:
        """Returns it as it is kept in a file."""
        kept = self._asdict()
        return kept if self.draws else {key: value for key, value in kept.items() if key != "draws"}


def share_of(right: Tensor, groups: Ints | None = None) -> Number:
    """Returns the share of true values, of which each image, or each group of them, is independent of the others."""
    return Number(*interval.share_of(right.cpu(), groups))


def mean_of(values: Tensor, share: bool = True, better: str = "higher", groups: Ints | None = None) -> Number:
    """Returns the mean of one value per image, without NaN; the interval is that of the normal distribution."""
    values = values.cpu()
    known = ~values.isnan()
    values, groups = values[known].double(), None if groups is None else groups[known.numpy()]
    if not len(values):
        return Number(math.nan, None, None, share, better)
    mean, half = float(values.mean()), interval.half_width(values.numpy(), groups)
    if math.isinf(half):
        return Number(mean, None, None, share, better)
    low, high = mean - half, mean + half
    return Number(mean, *((max(0.0, low), min(1.0, high)) if share else (low, high)), share, better)


def told(
    numbers: Mapping[str, Number], shown: Collection[str] | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns the values of some numbers, and for a file the same, with what tables have to know of those they show.

    Tables show all numbers unless some are named.
    """
    values = {name: number.value for name, number in numbers.items()}
    measures = {name: number.plain() for name, number in numbers.items() if shown is None or name in shown}
    return values, {**values, MEASURES: measures}


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of a record."""

    name: str
    title: str
    value: float
    low: float | None = None
    high: float | None = None
    share: bool = True  # whether it is a share, which is shown in percent
    better: str = "higher"  # "higher", "lower", or "" where neither is
    draws: tuple[float, ...] = ()  # the values of draws of training images, whose mean this is
    groups: tuple[float, ...] = ()  # beside draws: what their mean comes to for groups of test images
    counted: bool = False  # whether it is the share of the record's right answers


def rank(evaluator: str) -> int:
    """Returns at which place what an evaluator measures is shown, from 0."""
    return _FIRST.index(evaluator) if evaluator in _FIRST else len(_FIRST)


def of(record: Record, score: str | None = None, title: str = "") -> list[Measure]:
    """Returns the numbers of a record; `score` chooses the accuracy (see `mrp.suites`), by default the record's own."""
    score = score or record.data.get("score", ACCURACY)
    name, result = record.evaluator, record.result
    given, title = title, title or _TITLES.get(name, name) + _options(record.options)
    if isinstance(result.get(MEASURES), Mapping):
        return [_declared(record, given, title, key, values) for key, values in result[MEASURES].items()]
    if isinstance(result.get("few_shot"), list):
        return list(_few_shot(name, title, record.options, result["few_shot"]))
    if score == MEAN_PER_CLASS and MEAN_PER_CLASS in result:
        return [_accuracy(name, f"{title}, mean per class", result[MEAN_PER_CLASS])]
    accuracy = result.get("accuracy")
    if accuracy is not None:
        return [_accuracy(name, title, accuracy if isinstance(accuracy, Mapping) else result)]
    return [
        Measure(f"{name}/{key}", f"{title}: {key}", float(value), share=False, better="")
        for key, value in result.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def of_answers(record: Record) -> list[Measure]:
    """Returns all that is known of a classifier's answers."""
    if record.evaluator == "real":
        return [_accuracy("real", "ReaL top-1", record.result["accuracy"])]
    if MEASURES in record.result:  # of tags
        return [*of(record), Measure("loss", "loss", record.result["loss"], share=False, better="lower")]
    result, titles = record.result, {ACCURACY: "top-1", "accuracy5": "top-5", MEAN_PER_CLASS: "mean per class"}
    shares = [
        Measure(key, title, one["accuracy"], one["low"], one["high"], counted=key != "accuracy5")
        for key, title in titles.items()
        if isinstance(one := result.get(key), Mapping)
    ]
    return [*shares, Measure("loss", "loss", result["loss"], share=False, better="lower")]


def of_tags(name: str, title: str, found: Mapping[str, Any], key: str) -> Measure:
    """Returns how well a validation told tags, with the interval where it has one, as after the last step."""
    kept = found.get(MEASURES, {}).get(key, {})
    draws = tuple(kept.get("draws", ()))
    return Measure(f"{name}/{key}", title, float(found[key]), kept.get("low"), kept.get("high"), draws=draws)


def _accuracy(name: str, title: str, found: Mapping[str, Any]) -> Measure:
    return Measure(name, title, found["accuracy"], found.get("low"), found.get("high"), counted=True)


def _few_shot(name: str, title: str, options: Mapping[str, Any], every: list[dict[str, Any]]) -> Iterator[Measure]:
    for one in every:
        label = f"{one['shots']} image{'s' if one['shots'] > 1 else ''} per class{_options(options)}"
        label = label if title.startswith(name) else f"{title}: {label}"
        draws, groups = tuple(one.get("draws", ())), tuple(one.get("groups", ()))
        yield Measure(
            f"{name}/{one['shots']}", label, one["accuracy"], one["low"], one["high"], draws=draws, groups=groups
        )


def _declared(record: Record, given: str, title: str, key: str, values: Mapping[str, Any]) -> Measure:
    """Returns a number that the record declares, under its own title where it has one."""
    title = f"{title}: {key}"
    if own := values.get("title"):
        title = f"{given}: {own}" if given else own + _options(record.options)
    return Measure(
        f"{record.evaluator}/{key}", title, float(values["value"]), values.get("low"), values.get("high"),
        bool(values.get("share", True)), values.get("better", "higher"), tuple(values.get("draws", ())),
    )  # fmt: skip


def _options(options: Mapping[str, Any]) -> str:
    """Returns options in words; files are known by their content, and their paths would fill the line."""
    shown = [f"{key}={value}" for key, value in options.items() if "/" not in str(value)]
    return f" ({', '.join(shown)})" if shown else ""
