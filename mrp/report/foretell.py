"""How well numbers without labels foretell accuracies: their rank correlation over the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrp.config import ConfigError
from mrp.evaluate import measures, results
from mrp.evaluate.results import Record
from mrp.evaluate.statistics import Difference, spearman
from mrp.report.compare import Measured
from mrp.report.page import short_names

LABEL_FREE = "geometry"
FEWEST = 4  # checkpoints, with which an interval can be given


@dataclass(frozen=True)
class Foretold:
    """The rank correlation of a number without labels with what labels measured, over some checkpoints."""

    run: str
    number: str
    measure: str
    correlation: Difference
    checkpoints: int


def correlations(paths: Sequence[Path]) -> list[Foretold]:
    """Returns the correlations within each run, for every pair of a number and a measure with enough checkpoints."""
    found = [
        one
        for path, name in zip(paths, short_names(paths), strict=True)
        for one in _within(Measured.of(path, name))
    ]  # fmt: skip
    if not found:
        raise ConfigError(
            f"--foretell: needs '{LABEL_FREE}' and an accuracy at {FEWEST} checkpoints of a run; measure them by "
            f"'mrp probe RUN --step N --evaluator {LABEL_FREE} --evaluator linear', and keep them by checkpoint.keep"
        )
    return found


def _within(measured: Measured) -> Iterator[Foretold]:
    numbers, accuracies = dict[str, dict[int, float]](), dict[str, dict[int, float]]()
    for record in results.read(measured.folder):
        if record.backbone == results.TRAINED and record.source == measured.source:
            own = record.evaluator == LABEL_FREE
            for name, value in _values(record, own):
                (numbers if own else accuracies).setdefault(name, {})[record.step] = value
    for number, before in numbers.items():
        for measure, after in accuracies.items():
            steps = sorted(before.keys() & after.keys())
            if len(steps) >= FEWEST:
                pair = [before[step] for step in steps], [after[step] for step in steps]
                yield Foretold(measured.name, number, measure, spearman(*pair), len(steps))


def _values(record: Record, own: bool) -> Iterator[tuple[str, float]]:
    """Yields numbers by name; those of other weights, data or options have other names."""
    for one in measures.of(record):
        if own or (one.share and one.better == "higher"):
            weights = "" if record.weights == "student" else f" ({record.weights})"
            data = "" if record.data.get("own") else f" on {record.data.get('label') or record.data.get('test')}"
            yield f"{one.name.partition('/')[2] if own else one.title}{weights}{data if not own else ''}", one.value
