"""The table of claims: its numbers as JSON, and a page that follows from these numbers alone."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mrp.config import ConfigError
from mrp.lab.claims import mrp as claims_mrp
from mrp.lab.claims import umae as claims_umae
from mrp.lab.claims.claim import Claim, Number, Numbers, Verdict
from mrp.lab.claims.results import Results, read
from mrp.run import find_recipe

PAPERS = {
    "How mask matters: Zhang, Wang and Wang, NeurIPS 2022 (U-MAE)": claims_umae.CLAIMS,
    "Why pretraining by reconstruction helps: Pan, Zhou and Yan, ICLR 2023": claims_mrp.CLAIMS,
}
CLAIMS = tuple(claim for claims in PAPERS.values() for claim in claims)
_COST = re.compile(r"^# Cost \(counted\): (\S+) FLOP, ([\d.,]+) GPU hours", re.MULTILINE)
_HEAD = """# The claims of the two papers

    mrp lab claims [--results runs] [--out docs/claims.md]

This page is written by that command from the results of the commands in it; no verdict is typed. Its numbers are in
`claims.json` beside it. Directions of the predictions are the papers'; where these give none, the limit is ours and
stands in code (`mrp/lab/claims_umae.py`, `claims_mrp.py`), set when first runs of the labs had been seen and before the
results to come. Intervals (+-) are 95 %. Sources without a number are named by what they are about.

- **holds**: the whole interval is on the predicted side, over enough seeds, also where else it was looked at.
- **holds here only**: so, but with fewer seeds than asked for, or not at other constants; which is said.
- **does not hold**: the whole interval is on the other side, or the one value there is where there is no interval.
- **needs more compute**: the interval allows both, or the experiment needs what the row says.
- **not run**: the command has left no results. **cannot be evaluated**: no experiment of ours decides it.

The experiments are described in [multiview](lab/multiview.md), [maskgraph](lab/maskgraph.md), [bounds](lab/bounds.md)
and [coverage](lab/coverage.md). CIFAR stands for a folder of CIFAR-10's images with train/ and test/. What the labs
find is read from runs/lab/NAME, that of the study from runs/study, that of the ViTs from runs/multiview_vit.
"""


class Record(NamedTuple):
    """What was measured, by claim, and where the page was made."""

    made: str
    numbers: dict[str, Numbers]


def collect(results: Results) -> Record:
    """All that the results have to say of the claims."""
    numbers = {}
    for claim in CLAIMS:
        try:
            numbers[claim.key] = claim.measure(results)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
            raise ConfigError(
                f"{results.folder}: results for the claim '{claim.key}' are not those of this version "
                f"({type(error).__name__}: {error}); run again: {claim.command}"
            ) from None
    today = datetime.datetime.now(datetime.UTC).date()
    where = f"{os.cpu_count()} cores {platform.machine()}, {'a' if torch.cuda.is_available() else 'no'} GPU"
    return Record(f"{today}, {where}, torch {torch.__version__.partition('+')[0]}", numbers)


def as_json(record: Record) -> str:
    """The numbers, rounded to what can be told apart."""
    claims = {
        key: {name: _rounded(number)._asdict() for name, number in numbers.items()}
        for key, numbers in record.numbers.items()
    }
    return json.dumps({"made": record.made, "claims": claims}, indent=1) + "\n"


def from_json(path: Path) -> Record:
    """The numbers of an earlier page."""
    found: dict[str, Any] = read(path)
    numbers = {
        key: {name: Number(**number) for name, number in claim.items()} for key, claim in found["claims"].items()
    }
    return Record(found["made"], numbers)


def verdicts(record: Record) -> dict[str, tuple[Verdict, str]]:
    """That of each claim, and what it rests on."""
    return {claim.key: claim.judge(record.numbers.get(claim.key, {})) for claim in CLAIMS}


def render(record: Record) -> str:
    """The page."""
    judged = verdicts(record)
    count = Counter(verdict for verdict, _ in judged.values())
    total = ", ".join(f"{verdict} {count[verdict]}" for verdict in Verdict if count[verdict])
    lines = [_HEAD, f"Collected {record.made}. {len(CLAIMS)} claims: {total}.", ""]
    number = 0
    for title, claims in PAPERS.items():
        lines += [
            f"## {title}",
            "",
            "| | claim | from | prediction | measured | verdict | experiment |",
            "|---" * 7 + "|",
        ]
        for claim in claims:
            number += 1
            lines.append(_row(number, claim, record.numbers.get(claim.key, {}), judged[claim.key]))
        lines.append("")
    lines += ["## Remarks", ""]
    lines += [f"- **{place}** {claim.note}" for place, claim in enumerate(CLAIMS, start=1) if claim.note]
    return "\n".join(lines) + "\n"


def _row(place: int, claim: Claim, numbers: Numbers, judged: tuple[Verdict, str]) -> str:
    verdict, why = judged
    reasons = [why, _recipes(claim)] if verdict in (Verdict.MORE, Verdict.NOT_RUN) else [why]
    said = "; ".join(reason for reason in reasons if reason)
    cells = [
        str(place),
        claim.statement,
        claim.source,
        "; ".join(map(str, claim.bounds)) or "-",
        _measured(numbers) or "-",
        f"**{verdict}**" + (f" ({said})" if said else ""),
        "<br>".join(f"`{part}`" for part in claim.command.split("; ")) if claim.command != "-" else "-",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _measured(numbers: Numbers) -> str:
    """Each number, and behind those that share it what they are over."""
    groups: dict[str, list[str]] = {}
    for name, number in numbers.items():
        groups.setdefault(number.over, []).append(f"{name}: {number}")
    return "; ".join(f"{', '.join(parts)} ({over})" for over, parts in groups.items())


def _recipes(claim: Claim) -> str:
    """What training costs, by the heads of the recipes."""
    counted = []
    for name in claim.recipes:
        match = _COST.search(find_recipe(name).read_text(encoding="utf-8"))
        if match:
            counted.append(f"`{name}` {match[1]} FLOP, {match[2]} GPU hours at 300 TFLOP/s")
    return ", ".join(counted)


def _rounded(number: Number) -> Number:
    half = None if number.half is None else float(f"{number.half:.6g}")
    return number._replace(value=float(f"{number.value:.6g}"), half=half)
