"""Whether training has made weights better, worse or neither, told from the same measurements before and after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mrp import progress
from mrp.build import open_source
from mrp.config import ConfigError
from mrp.evaluate.interval import Interval
from mrp.judging import carry_out
from mrp.model import load
from mrp.probing import EVALUATORS, TAGGED
from mrp.report.judged import page_of
from mrp.report.page import Page, difference_of
from mrp.run import Run
from mrp.suites import Data, Plan, Task, Test

BETTER, NO_BETTER, WORSE = "better", "no better", "worse"
# Without labels, what tells better from worse; a table of several weights takes no side in these.
DIRECTIONS = {
    "effective_rank": "higher", "rank_me": "higher", "alignment": "lower", "log_uniformity": "lower", "loss": "lower",
}  # fmt: skip

_TITLES = {
    "geometry/effective_rank": "effective rank",
    "geometry/rank_me": "RankMe",
    "geometry/alignment": "alignment of two crops (lower is better)",
    "geometry/log_uniformity": "uniformity (lower is better)",
    "validation/loss": "error of reconstruction (lower is better)",
}
_GEOMETRY = {"groups": 10, "views": 2, "images": 1000}  # without labels


@dataclass(frozen=True)
class Change:
    """One number before and after, and how sure their difference is."""

    name: str  # such as linear, few_shot/5 or geometry/effective_rank
    title: str
    before: float
    after: float
    difference: Interval  # after less before
    lower_is_better: bool
    share: bool  # shown in percent

    @property
    def number(self) -> str:
        """Returns what it is among what its evaluator measures."""
        return self.name.rpartition("/")[2]

    @property
    def word(self) -> str:
        """Returns what the 95 % interval of the difference allows to say."""
        low, high = self.difference.low, self.difference.high
        if not low <= high or low <= 0 <= high:  # also where there is no interval
            return NO_BETTER
        return WORSE if (high < 0) != self.lower_is_better else BETTER

    def text(self, value: float, signed: bool = False) -> str:
        """Returns a value of this number, or a difference, in words."""
        sign = "+" if signed else ""
        return f"{100 * value:{sign}.1f}" if self.share else f"{value:{sign}.4g}"

    @property
    def values(self) -> str:
        """Returns both values."""
        unit = " %" if self.share else ""
        return f"{self.text(self.before)}{unit} before, {self.text(self.after)}{unit} after"

    @property
    def interval(self) -> str:
        """Returns the difference with its bounds."""
        value, low, high = (self.text(bound, signed=True) for bound in self.difference)
        return f"{value} ({low} to {high})"

    def plain(self) -> dict[str, Any]:
        """Returns it for a file."""
        return asdict(self) | {"difference": self.difference._asdict(), "word": self.word}


@dataclass(frozen=True)
class Verdict:
    """All changes, of which the first one decides."""

    changes: tuple[Change, ...]
    images: int  # held-out ones, on which the first was measured
    notes: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """Returns better, no better or worse."""
        return self.changes[0].word if self.changes else NO_BETTER

    @property
    def sentence(self) -> str:
        """Returns what has come of the training, in one sentence."""
        if not self.changes:
            return "no better: nothing could be measured"
        first = self.changes[0]
        why = {BETTER: "excludes 0", WORSE: "excludes 0", NO_BETTER: "contains 0"}[first.word]
        points = " points" if first.share else ""
        worse = [change.title for change in self.changes[1:] if change.word == WORSE and first.word != WORSE]
        return (
            f"{first.word}: {first.title} on {self.images:,} held-out images was {first.values}: "
            f"{first.interval.replace(' (', f'{points} (95 % interval ')}, which {why}"
            + (f"; worse became {', '.join(worse)}" if worse else "")
        )

    def plain(self) -> dict[str, Any]:
        """Returns it for a file."""
        changes = [change.plain() for change in self.changes]
        about = {"word": self.word, "sentence": self.sentence, "images": self.images, "notes": list(self.notes)}
        return about | {"changes": changes}


def measure(run: Run, weights: Sequence[Path], say: Callable[[str], object] = progress.say) -> Verdict:
    """Measures weights on the held-out images; with those after the training and those before it, compares them.

    What has been measured already is taken from the results of each.
    """
    train, test = open_source(run, "train"), open_source(run, "test")
    words = run.data.model_dump(mode="json", include={"train", "test", "labels", "group", "augment"})
    tests = (Test("", words.pop("test")),)
    data = Data("held-out images", {**words, "size": list(run.data.shape)}, tests)
    one_class = len(train.classes) > 1 and bool(test.classes) and {*test.classes} <= {*train.classes}
    several = bool(test.tags) and {*test.tags} <= {*train.tags}
    labelled = one_class or several
    # The first one decides.
    evaluators = _evaluators(run, weights[-1], EVALUATORS if one_class else TAGGED if several else ())
    changes, notes = list[Change](), list[str]()
    for evaluator, options in evaluators.items():
        task = Task(evaluator, options, data.name, "", "", {"": "mrp adapt"})
        plan = Plan("adapt", {data.name: data}, (task,))
        try:
            judged = carry_out(plan, weights, changes={"machine": {"workers": run.machine.workers}}, say=say)
        except ConfigError as error:
            notes.append(f"{evaluator} is left out: {error}")
            continue
        if len(judged) > 1:
            page = page_of(plan, judged)
            changes += filter(None, (_change(page, column) for column in range(len(page.columns))))
    if len(notes) == len(evaluators):
        raise ConfigError(f"nothing can be measured on the held-out images: {'; '.join(notes)}")
    changes.sort(key=lambda change: [*DIRECTIONS].index(change.number) if change.number in DIRECTIONS else 0)
    if not labelled:
        notes.append(
            "There are no labels: how features spread is a sign, and no proof, of what they are good for. For an "
            "accuracy give class folders, in which the images lie."
        )
    return Verdict(tuple(changes), len(test) if labelled else min(_GEOMETRY["images"], len(test)), tuple(notes))


def _evaluators(run: Run, before: Path, by_labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns what is measured, with options; the loss only where it means the same before and after."""
    if by_labels:
        return {name: {} for name in by_labels}
    model, same = load(before), {"mean", "std", "channels", "size"}
    comparable = (
        model.missing_part is None and model.objective.paints and model.run.objective == run.objective
        and model.run.data.model_dump(include=same) == run.data.model_dump(include=same)
    )  # fmt: skip
    return {"geometry": dict(_GEOMETRY)} | ({"validation": {}} if comparable else {})


def _change(page: Page, column: int) -> Change | None:
    """Returns a number of two judged weights, those after the training first; None where they cannot be told apart."""
    after, before = page.cells.get((0, column)), page.cells.get((1, column))
    if after is None or before is None or after.measure is None or before.measure is None:
        return None
    one, difference = after.measure, difference_of(after, before)
    better = one.better or DIRECTIONS.get(one.name.rpartition("/")[2], "")
    if difference is None or not better:
        return None
    title = _TITLES.get(one.name, one.title)
    return Change(one.name, title, before.measure.value, one.value, difference, better == "lower", one.share)
