"""The table of claims: the measured numbers as JSON, and a Markdown page that follows from these numbers alone."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from mrp.config import ConfigError, Node
from mrp.lab.claims import multiview, ours, study, theory
from mrp.lab.claims.claim import Claim, Verdict
from mrp.lab.claims.number import Number, Numbers
from mrp.lab.claims.results import NotCounted, Results, read
from mrp.run import find_recipe

MEASURES: dict[str, Callable[..., Numbers]] = {
    function.__name__: function
    for function in (
        multiview.comparison, multiview.optimizers, multiview.lengths, multiview.same_optimizer, multiview.sweep,
        multiview.over_map, multiview.relative_error, multiview.relative_error_over_mu, multiview.diversity,
        multiview.vit, multiview.vit_maps,
        study.diagnosis, study.probe_gain, study.tuning_gain, study.scratch_gain, study.recipe_gain,
        theory.inequality, theory.alignment, theory.ratio_change, theory.worlds,
        theory.estimator, theory.coverage, ours.predicted_ratio, ours.collapse,
    )
}  # fmt: skip


class Paper(Node):
    """The claims of one paper."""

    title: str
    figure: str
    claims: tuple[Claim, ...]


class Content(Node):
    """`claims.yaml`."""

    title: str
    introduction: str
    papers: tuple[Paper, ...]


CONTENT = Content.model_validate(yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8")))
CLAIMS = [claim for paper in CONTENT.papers for claim in paper.claims]
_COST = re.compile(r"^# Cost \(counted\): (\S+) FLOP, ([\d.,]+) GPU hours", re.MULTILINE)


class Record(NamedTuple):
    """What was measured, by claim, and where."""

    made: str
    numbers: dict[str, Numbers]
    not_counted: dict[str, list[str]]  # results that say nothing about the claim, and why
    kept: dict[str, str]  # when and where the numbers of a claim were collected, if they are of an earlier page

    def completed(self, earlier: Record) -> Record:
        """Returns the record with an earlier page's numbers for the claims that the results say nothing about."""
        missing = [id for id, numbers in self.numbers.items() if not numbers and earlier.numbers.get(id)]
        numbers = self.numbers | {id: earlier.numbers[id] for id in missing}
        return self._replace(numbers=numbers, kept={id: earlier.kept.get(id, earlier.made) for id in missing})

    def verdict(self, claim: Claim) -> tuple[Verdict, str]:
        """Returns the verdict on a claim, and the reasons."""
        verdict, reason = claim.verdict(self.numbers.get(claim.id, {}))
        return verdict, "; ".join(filter(None, [reason, *self.not_counted.get(claim.id, [])]))


def collect(results: Results) -> Record:
    """Measures all claims on the results."""
    numbers: dict[str, Numbers] = {claim.id: {} for claim in CLAIMS}
    not_counted: dict[str, list[str]] = {}
    for claim in CLAIMS:
        for measure in claim.measures:
            try:
                numbers[claim.id] |= _evaluate(measure, results)
            except NotCounted as reason:
                not_counted.setdefault(claim.id, []).append(f"{reason}: not counted")
            except (KeyError, IndexError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
                raise ConfigError(
                    f"{results.folder}: results for the claim '{claim.id}' are not those of this version "
                    f"({type(error).__name__}: {error}); run again: {'; '.join(claim.commands)}"
                ) from None
    today = datetime.datetime.now(datetime.UTC).date()
    machine = f"{os.cpu_count()} cores {platform.machine()}, {'a' if torch.cuda.is_available() else 'no'} GPU"
    return Record(f"{today}, {machine}, torch {torch.__version__.partition('+')[0]}", numbers, not_counted, {})


def _evaluate(measure: dict[str, Any], results: Results) -> Numbers:
    """Calls the function of a measure, with the content of its result files, or with all results if it names none."""
    arguments = dict(measure)
    function, file = MEASURES[arguments.pop("measure")], arguments.pop("file", None)
    if file is None:
        return function(results, **arguments)
    paths = [results.folder / name for name in ([file] if isinstance(file, str) else file)]
    contents = [read(path) for path in paths if path.is_file()]
    if not contents:
        return {}
    try:
        return function(contents[0] if isinstance(file, str) else contents, **arguments)
    except NotCounted as reason:
        raise NotCounted(f"{', '.join(map(str, paths))}: {reason}") from None


def as_json(record: Record) -> str:
    """Returns the record as JSON, with numbers rounded to six digits."""
    claims = {
        id: {name: _rounded(number)._asdict() for name, number in numbers.items()}
        for id, numbers in record.numbers.items()
    }
    return json.dumps(record._replace(numbers={})._asdict() | {"claims": claims}, indent=1) + "\n"


def from_json(path: Path) -> Record:
    """Reads the record of an earlier page."""
    data = read(path)
    numbers = {id: {name: Number(**number) for name, number in claim.items()} for id, claim in data["claims"].items()}
    return Record(data["made"], numbers, data["not_counted"], data["kept"])


def render(record: Record) -> str:
    """Returns the page as Markdown."""
    verdicts = Counter(record.verdict(claim)[0] for claim in CLAIMS)
    total = ", ".join(
        f"{verdict.removesuffix('; breaks at')} {verdicts[verdict]}" for verdict in Verdict if verdicts[verdict]
    )
    counted = f"{len(CLAIMS)} claims: {total}. Collected {record.made}."
    board = ["| | claim | paper | here | measured on | verdict |", "|---" * 6 + "|"]
    board += [_score(claim, record) for claim in CLAIMS if claim.board]
    lines = [CONTENT.title, counted, "", *board, ""]
    columns = "| | claim | from | prediction | measured | verdict | experiment |"
    for paper in CONTENT.papers:
        rows = [_row(claim, record) for claim in paper.claims]
        lines += [f"## {paper.title}", "", paper.figure, ""]
        lines += ["<details><summary>Every claim, with intervals and commands</summary>", ""]
        lines += [columns, "|---" * 7 + "|", *rows, "", "</details>", ""]
    notes = [f"- **{number}** {claim.note}" for number, claim in enumerate(CLAIMS, start=1) if claim.note]
    fold = ["<details><summary>Remarks on single claims</summary>", "", *notes, "", "</details>"]
    return "\n".join([*lines, CONTENT.introduction, *fold]) + "\n"


def _score(claim: Claim, record: Record) -> str:
    """Returns the line of the scoreboard: the number that the claim is about, and what it was measured on."""
    assert claim.board
    number = record.numbers.get(claim.id, {}).get(claim.board.number)
    verdict, reason = record.verdict(claim)
    shown = {Verdict.REGIME: reason, Verdict.OURS: reason.partition(":")[0]}.get(verdict, "")
    cells = [
        str(CLAIMS.index(claim) + 1),
        claim.board.title,
        claim.board.paper,
        str(number or "-"),
        number.over if number else "-",
        f"**{verdict}** {shown}".strip(),
    ]
    return _cells(cells)


def _row(claim: Claim, record: Record) -> str:
    verdict, reason = record.verdict(claim)
    if verdict == Verdict.MORE:
        reason = "; ".join(filter(None, [reason, _recipes(claim)]))
    since = f" (kept from {record.kept[claim.id]})" if claim.id in record.kept else ""
    cells = [
        str(CLAIMS.index(claim) + 1),
        claim.claim,
        claim.source,
        "; ".join(map(str, (*claim.predictions, *claim.regime))) or "-",
        (_measured(record.numbers.get(claim.id, {})) or "-") + since,
        f"**{verdict}**" + (f" ({reason})" if reason else ""),
        "<br>".join(f"`{command}`" for command in claim.commands) or "-",
    ]
    return _cells(cells)


def _cells(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _measured(numbers: Numbers) -> str:
    """Returns all numbers; means over the same things share the brackets that say so, and a sweep is one line."""
    groups: dict[str, list[str]] = {}
    sweeps: dict[tuple[str, int], list[str]] = {}
    for name, number in numbers.items():
        if found := re.fullmatch(r"at (.+?) = (.+)", name):
            sweeps.setdefault((found[1], number.seeds), []).append(f"{found[2]}: {number}")
        else:
            groups.setdefault(number.over, []).append(f"{name}: {number}")
    lines = [f"{', '.join(parts)} ({over})" for over, parts in groups.items()]
    lines += [f"over {constant}, {seeds} seeds: {', '.join(parts)}" for (constant, seeds), parts in sweeps.items()]
    return "<br>".join(lines)


def _recipes(claim: Claim) -> str:
    """Returns the cost of training the recipes of a claim, as the heads of the recipes state it."""
    costs = {name: _COST.search(find_recipe(name).read_text(encoding="utf-8")) for name in claim.recipes}
    return ", ".join(
        f"`{name}` {cost[1]} FLOP, {60 * float(cost[2].replace(',', '')):.0f} GPU minutes at 300 TFLOP/s"
        for name, cost in costs.items()
        if cost
    )


def _rounded(number: Number) -> Number:
    half = None if number.half is None else float(f"{number.half:.6g}")
    return number._replace(value=float(f"{number.value:.6g}"), half=half)
