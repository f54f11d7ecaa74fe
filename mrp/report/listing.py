"""A list of runs from their folders: what state each is in, how good it is, and in which options they differ."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mrp.config import ConfigError, compose, nearest
from mrp.evaluate import measures, results
from mrp.evaluate.interval import in_percent
from mrp.evaluate.tagged import TITLES
from mrp.folder import CONFIG, flat
from mrp.progress import duration
from mrp.report.page import without_hashes
from mrp.status import Status, find, size_of, status_of

_BEST = "best"
_CONTENT, _NO_OPTIONS = "data.content", ("history", "order_version")
_MOST_OPTIONS = 6  # in which runs differ, as columns; where there are more, these are the first
_NUMBERS = re.compile(r"(\d+(?:\.\d+)?)")
_BETWEEN = 3  # letters between two columns of a table
_MOST_BEST = 2  # measured values in one cell
_CONDITION = re.compile(r"(?P<key>[^=!<>]+)(?P<sign>!=|=|<|>)(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """One run."""

    name: str
    status: Status

    @cached_property
    def measured(self) -> dict[str, tuple[float, int]]:
        """What was measured, by name: what `mrp probe` found last of the trained weights, then the best in training.

        What was found on the run's own data hides what was found on other data.
        """
        found: dict[str, tuple[float, int]] = {}
        with contextlib.suppress(ConfigError):  # a damaged file of results is named by whoever reads it for them
            records = results.read(self.status.folder)
            for record in sorted(records, key=lambda one: (measures.rank(one.evaluator), results.is_own(one))):
                if record.backbone == results.TRAINED and not record.source:
                    found |= {one.title: (one.value, record.step) for one in measures.of(record) if one.share}
        return found | self.status.best

    @cached_property
    def _configuration(self) -> dict[str, Any]:
        """Every option, also those that do not change results."""
        with contextlib.suppress(ConfigError, OSError):
            return flat(compose(self.status.folder / CONFIG).values)
        return {}

    @cached_property
    def _size(self) -> int:
        return size_of(self.status.folder)

    def value(self, key: str) -> Any:
        """Returns what stands in a column, as a number where it is one; None where there is nothing."""
        if key in _COLUMNS:
            return _COLUMNS[key](self)
        if key in self.measured:
            return self.measured[key][0]
        identity = self.status.identity
        return identity[key] if key in identity else self._configuration.get(key)

    def knows(self, key: str) -> bool:
        """Returns whether a key means anything for this run."""
        return any(key in known for known in (_COLUMNS, self.measured, self.status.identity, self._configuration))

    def known(self) -> list[str]:
        """Returns every key."""
        return [*_COLUMNS, *self.measured, *self.status.identity, *self._configuration]

    def plain(self, options: Iterable[str]) -> dict[str, Any]:
        """Returns everything for JSON."""
        columns = {key: self.value(key) for key in _COLUMNS if key != _BEST}
        best = {name: {"value": value, "step": step} for name, (value, step) in self.measured.items()}
        return columns | {
            "folder": str(self.status.folder),
            "best": best,
            "options": {key: self.value(key) for key in options},
        }


def _best(row: Row) -> str:
    """Returns the first accuracies, or else the first other values."""
    names = [name for name in row.measured if _is_share(name, row)] or list(row.measured)
    return ", ".join(f"{name} {text(name, row.measured[name][0], row)}" for name in names[:_MOST_BEST])


def _is_share(name: str, row: Row) -> bool:
    return name not in row.status.best or "accuracy" in name or name.endswith(tuple(TITLES))


_COLUMNS: dict[str, Callable[[Row], Any]] = {
    "run": lambda row: row.name,
    "state": lambda row: row.status.state,
    "why": lambda row: row.status.why,
    "step": lambda row: row.status.step,
    "steps": lambda row: row.status.steps,
    "progress": lambda row: row.status.progress,
    "left": lambda row: row.status.seconds_left,
    "loss": lambda row: row.status.loss,
    "images_per_second": lambda row: row.status.images_per_second,
    _BEST: _best,
    "size": lambda row: row._size,
    "age": lambda row: _ago(row.status.began),
    "seen": lambda row: _ago(row.status.seen),
    "starts": lambda row: row.status.starts,
}
_FOLDED = {"run": 32, "state": 20, "why": 20, _BEST: 20}  # columns that are broken into lines; the letters of a line
SHOWN = ("run", "state", "step", "progress", "left", "loss", _BEST, "size", "age")  # without a choice


def _ago(moment: float | None) -> float | None:
    return None if moment is None else max(0.0, time.time() - moment)


def text(key: str, value: Any, row: Row) -> str:
    """Returns a value as a person reads it."""
    if value is None:
        return ""
    if key in ("left", "age", "seen"):
        return duration(value)
    if key == "size":
        return _bytes(value)
    if key == "step" and row.status.steps:
        return f"{value:,}/{row.status.steps:,}"
    if key == "state" and row.status.why:
        return f"{value}: {row.status.why}" if len(row.status.why) < 60 else f"{value}: {row.status.why[:57]}..."
    if key == "progress":
        return f"{math.floor(100 * value + 1e-9)} %"  # 100 % only where nothing is left to do
    if key in row.measured and _is_share(key, row):
        return f"{in_percent(value)} %"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return without_hashes(value if isinstance(value, str) else json.dumps(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _bytes(size: int) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} B"


@dataclass(frozen=True)
class Listing:
    """The runs that are listed, in their order, and the columns that tell them apart."""

    rows: list[Row]
    columns: list[str]
    options: list[str]  # in which they differ

    def plain(self) -> list[dict[str, Any]]:
        """Returns everything for JSON."""
        return [row.plain(self.options) for row in self.rows]

    def cells(self, row: Row) -> list[str]:
        """Returns what stands in the columns of a run."""
        return [text(key, row.value(key), row) for key in self.columns]

    def width(self, key: str) -> int:
        """Returns how many letters the table needs for a column."""
        widest = max(len(one) for one in (key, *(text(key, row.value(key), row) for row in self.rows)))
        return min(widest, _FOLDED.get(key, widest))

    def fitting(self, letters: int) -> list[str]:
        """Returns the columns that lines of so many letters have room for: the last ones are left out where need be."""
        widths = [self.width(key) + _BETWEEN for key in self.columns]
        return [key for number, key in enumerate(self.columns) if sum(widths[: number + 1]) <= letters or number == 0]


def listing(
    root: Path, conditions: Sequence[str] = (), sort: str = "", reverse: bool = False, columns: Sequence[str] = ()
) -> Listing:
    """Returns the runs below a folder that meet all conditions (`key=value`, also with !=, < and >)."""
    if not root.is_dir():
        raise ConfigError(f"{root}: there is no such folder; give one that holds runs (default: runs)")
    rows = [Row(_name(root, folder), status_of(folder)) for folder in find(root)]
    parsed = [_parsed(condition) for condition in conditions]
    for key in dict.fromkeys([*(key for key, _, _ in parsed), *columns, *([sort] if sort else [])]):
        _refuse_unknown(key, rows)
    rows = [row for row in rows if all(_meets(row, *condition) for condition in parsed)]
    if sort:
        there = sorted((row for row in rows if row.value(sort) is not None), key=lambda row: _rank(row.value(sort)))
        rows = there[:: -1 if reverse else 1] + [row for row in rows if row.value(sort) is None]
    elif reverse:
        rows.reverse()
    options = differing(rows)
    shown = list(columns) or _shown(rows) + options[:_MOST_OPTIONS]
    return Listing(rows, list(dict.fromkeys(shown)), options)


def differing(rows: Sequence[Row]) -> list[str]:
    """Returns the options of the identity in which these runs differ; data are called by their place."""
    identities = [row.status.identity for row in rows if row.status.identity]
    keys = [key for key in dict.fromkeys(key for one in identities for key in one) if key not in _NO_OPTIONS]
    found = [key for key in keys if len({json.dumps(one.get(key)) for one in identities}) > 1]
    return ["data.train" if key == _CONTENT else key for key in found]


def _shown(rows: Sequence[Row]) -> list[str]:
    """Returns the usual columns without those that are empty; of a single run everything."""
    keys = [key for key in _COLUMNS if key not in ("why", "steps")] if len(rows) == 1 else SHOWN
    return [key for key in keys if key in ("run", "state") or any(row.value(key) not in (None, "") for row in rows)]


def _name(root: Path, folder: Path) -> str:
    return folder.resolve().name if folder == root else str(folder.relative_to(root))


def _parsed(condition: str) -> tuple[str, str, str]:
    found = _CONDITION.fullmatch(condition)
    if found is None:
        raise ConfigError(f"--where: '{condition}' was given; allowed: KEY=VALUE, also with !=, < or >")
    return found["key"].strip(), found["sign"], found["value"].strip()


def _refuse_unknown(key: str, rows: Sequence[Row]) -> None:
    if rows and not any(row.knows(key) for row in rows):
        known = dict.fromkeys(name for row in rows for name in row.known())
        raise ConfigError(
            f"'{key}' is no column, no measured value and no option of these runs{nearest(key, known)}; columns: "
            f"{', '.join(_COLUMNS)}"
        )


def _meets(row: Row, key: str, sign: str, wanted: str) -> bool:
    value = row.value(key)
    percent = _number(wanted.removesuffix("%")) if wanted.endswith("%") else None
    number = _number(wanted) if percent is None else percent / 100  # as the list shows it
    if isinstance(value, str) and value.endswith("%"):
        value = float(share) / 100 if (share := _number(value.removesuffix("%"))) is not None else value
    if sign in "<>":
        if number is None:
            raise ConfigError(f"--where: {key}{sign}{wanted} compares with no number; give one, or use = or !=")
        found = _number(value)
        return found is not None and (found < number if sign == "<" else found > number)
    text = "null" if value is None else value if isinstance(value, str) else json.dumps(value)
    same = fnmatch.fnmatchcase(text, wanted) or (number is not None and _number(value) == number)
    return same is (sign == "=")


def _number(value: Any) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        return None if isinstance(value, bool) else float(value)
    return None


def _rank(value: Any) -> tuple[int, float, list[str]]:
    """Orders numbers before texts, and texts by the numbers in them: 20 epochs before 100 epochs."""
    number = _number(value)
    parts = [f"{float(part):055.15f}" if part[:1].isdecimal() else part for part in _NUMBERS.split(str(value))]
    return (1, 0.0, parts) if number is None else (0, number, [])
