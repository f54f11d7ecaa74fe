"""Which numbers of a run are drawn, each with the sentence that it is told by: of one run, or of several together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from mrp.report import story
from mrp.report.history import History
from mrp.report.series import SERIES, SMOOTHED, Chart, Kind, Marks, Series, said, smoothed

_SCHEDULED = ("objective/", "optim/")  # how the names of options begin that change over a run

Words = Callable[[str, Series], str]
Compared = Callable[[Series], tuple[str, float]]  # what of a run's curve is compared with that of others


def _last(series: Series) -> tuple[str, float]:
    return "at the end", float(series.y[-1])


def _smooth(series: Series) -> tuple[str, float]:
    """Returns the end of a curve whose last value is that of a single batch."""
    return "at the end", float((smoothed(series.y) if len(series.y) > SMOOTHED else series.y)[-1])


def _middle(series: Series) -> tuple[str, float]:
    return "median", float(np.median(series.y))


def _most(series: Series) -> tuple[str, float]:
    return "at most", float(series.y.max())


@dataclass(frozen=True)
class Metric:
    """What is drawn in one chart: the metrics by their keys in the file, and what each is called there."""

    what: str
    keys: Mapping[str, str]
    unit: str
    words: Words = story.course
    kind: Kind = "noisy"
    zero: bool = False
    scale: float = 1.0
    note: str = ""
    of_several: Compared = _last

    def series(self, history: History) -> list[Series]:
        """Returns what a run has logged of it."""
        found = (history.curve(key, name) for key, name in self.keys.items())
        return [one.scaled(self.scale) for one in found if one is not None]


@dataclass(frozen=True)
class Group:
    """Metrics that stand under one heading; `command` is what has a run log them."""

    title: str
    metrics: Sequence[Metric]
    command: str = ""


_level, _rate, _percent = (partial(story.between, unit=unit) for unit in ("", "images/s", "%"))


def _gigabytes(what: str, series: Series) -> str:
    return f"{what}: at most {said(float(series.finite().y.max(initial=0.0)))} GiB on the {series.name}"


def _schedule(what: str, series: Series) -> str:
    y, x = series.finite().y, series.finite().x
    peak = int(y.argmax())
    rose = f"rose to {said(float(y[peak]))} until step {x[peak]:,.0f}" if peak else f"began at {said(float(y[0]))}"
    return f"{what} {rose}" + (f", then fell to {said(float(y[-1]))}" if y[-1] < y[peak] else "")


TRAINING = Group("Training", (
    Metric("Loss", {"loss": "loss"}, "loss", of_several=_smooth),
    Metric("Reconstruction error", {"reconstruction": "reconstruction"}, "error without other terms of the loss",
        of_several=_smooth),
    Metric("Test loss", {"validation/loss": "test loss"}, "loss on test data", kind="measured"),
    Metric("Learning rate", {"lr": "learning rate"}, "largest over parameter groups", _schedule, "exact", zero=True,
        of_several=_most),
    Metric("Gradient norm", {"gradient_norm": "gradient norm"}, "norm before clipping", _level, of_several=_middle),
    Metric("Throughput", {"images_per_second": "images/s"}, "images per second", _rate, zero=True, of_several=_middle),
    Metric(
        "Waiting for the loader", {"loader/waiting": "waiting"}, "% of the steps' time", _percent, zero=True, scale=100,
        of_several=_middle,
    ),
    Metric(
        "Memory", {"memory/device_peak_gib": "GPU", "memory/host_gib": "host"}, "GiB, of the largest process",
        _gigabytes, zero=True, of_several=_most,
    ),
))  # fmt: skip
FEATURES = Group("Features over training", (
    Metric(
        "Effective rank (RankMe)", {"features/rank_me": "diagnose", "geometry/rank_me": "geometry"},
        "directions in use", kind="measured", zero=True,
        note="1: collapsed; at most the number of images or of features.",
    ),
    Metric(
        "Participation ratio", {"features/participation_ratio": "diagnose", "geometry/participation_ratio": "geometry"},
        "directions that carry most variance", kind="measured", zero=True,
    ),
    Metric("LiDAR", {"geometry/lidar": "geometry"}, "directions that tell images apart", kind="measured", zero=True),
    Metric(
        "Alignment", {"features/alignment": "two masks", "geometry/alignment": "two crops"},
        "squared distance of two views", kind="measured", zero=True, note="0: both views agree, or all images do.",
    ),
    Metric(
        "Uniformity", {"features/log_uniformity": "one mask", "geometry/log_uniformity": "whole images"},
        "log of the mean kernel", kind="measured", note="0: collapsed; lower: spread more evenly over the sphere.",
    ),
), "mrp pretrain RECIPE diagnose.every='1 epoch' 'evaluate={geometry: {every: 5 epochs}}'")  # fmt: skip

_TAGGED = {"tags/{}": "linear probe", "tags/knn_{}": "kNN", "validation/{}": "classifier"}
TAGS = Group("Tags", tuple(
    Metric(
        what, {name.format(key): of for name, of in _TAGGED.items()}, "%, mean over tags", kind="measured", scale=100
    )
    for key, what in (("mean_ap", "Mean average precision"), ("mean_auroc", "Mean AUROC"))
))  # fmt: skip


def _metrics(group: Group, histories: Sequence[History]) -> Iterator[Metric]:
    """Yields what is drawn of a group; with the training, the options that some run changes over its steps."""
    yield from group.metrics
    if group is TRAINING:
        keys = dict.fromkeys(key for one in histories for key in one.columns if key.startswith(_SCHEDULED))
        yield from (Metric(key.replace("/", "."), {key: key}, "option of the run", kind="exact") for key in keys)


def of_one(group: Group, history: History) -> list[Chart]:
    """Returns the charts of a group for one run, each where the run has logged its numbers."""
    return [
        Chart(
            metric.words(metric.what, series[0]), metric.unit, series,
            history.marks if metric.what == "Loss" else _starts(history), metric.kind, metric.note, zero=metric.zero,
        )
        for metric in _metrics(group, [history])
        if (series := metric.series(history)) and not _repeats(metric, history)
    ]  # fmt: skip


def accuracies(history: History) -> Chart | None:
    """Returns the accuracies that were measured while the run trained."""
    series = list(history.accuracies())
    if not series:
        return None
    title = f"Accuracy: {story.accuracy(max(series, key=lambda one: one.y[-1]))}"
    return Chart(title, "% of test images", [one.scaled(100) for one in series], _starts(history), "measured")


def of_several(group: Group, histories: Sequence[History]) -> Iterator[Chart]:
    """Yields the charts of a group with a line per run."""
    for metric in _metrics(group, histories):
        key = next((key for key in metric.keys if any(one.curve(key) for one in histories)), None)
        if key is None or all(_repeats(metric, one) for one in histories):
            continue
        found = [one.curve(key, one.name) or Series.of(one.name, [], []) for one in histories]
        series = [one.scaled(metric.scale) for one in found]
        yield Chart(
            _compared(metric.what, series, metric.of_several), metric.unit, series[:SERIES], kind=metric.kind,
            note=metric.note, zero=metric.zero,
        )  # fmt: skip


def accuracies_of_several(histories: Sequence[History]) -> Iterator[Chart]:
    """Yields one chart per evaluator with a line per run."""
    found = [{one.name: one for one in history.accuracies()} for history in histories]
    for evaluator in dict.fromkeys(name for one in found for name in one):
        series = [
            replace(one.get(evaluator, Series.of("", [], [])).scaled(100), name=history.name)
            for one, history in zip(found, histories, strict=True)
        ]
        yield Chart(_compared(f"Accuracy ({evaluator})", series), "% of test images", series[:SERIES], kind="measured")


def _compared(what: str, series: Sequence[Series], of: Compared = _last) -> str:
    """Returns one number of each run, from the largest; where runs are not equally far, with the step."""
    finite = [one for one in (one.finite() for one in series) if len(one.y)]
    if not finite:
        return f"{what}: no finite value yet"
    far = len({one.x[-1] for one in finite}) > 1
    found = [(*of(one), f"{one.name}, step {one.x[-1]:,.0f}" if far else one.name) for one in finite]
    found.sort(key=lambda one: -one[1])
    if len(found) > 1 and said(found[0][1]) == said(found[-1][1]):
        return f"{what}, {found[0][0]}: {said(found[0][1])} in each run"
    values = [f"{said(value)} ({name})" for _, value, name in found]
    return f"{what}, {found[0][0]}: " + (story.listed(values) if len(values) < 5 else f"{values[0]} to {values[-1]}")


def _starts(history: History) -> Marks:
    """Returns what is marked in charts other than the loss's: starts and incidents alone."""
    return Marks(history.marks.resumes, history.marks.incidents)


def _repeats(metric: Metric, history: History) -> bool:
    """Returns whether the reconstruction error is the loss itself, which is drawn already."""
    if "reconstruction" not in metric.keys:
        return False
    error, loss = history.curve("reconstruction"), history.curve("loss")
    if error is None or loss is None:
        return error is None
    return np.array_equal(error.y, loss.y[np.isin(loss.x, error.x)], equal_nan=True)
