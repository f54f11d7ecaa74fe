"""What evaluators have measured of a run after its training: `probe.json`, one record for each measurement."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mrp.config import ConfigError
from mrp.files import write_atomically

FILE = "probe.json"
TRAINED, UNTRAINED = "trained", "untrained"
_FORMAT = 2
_LOCK = ".probe.lock"
_NOT_RECORDED: dict[str, Any] = {"train": None, "test": None, "content": None}  # the data of files of format 1
# Format 1 held all evaluators side by side; which of its keys belong to which evaluator.
_PARTS = {
    "linear": ("moves", "grid", "trials"),
    "knn": ("neighbours",),
    "logistic": (),
    "attentive": (),
}


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement, and everything that it depends on."""

    evaluator: str
    options: dict[str, Any]
    backbone: str  # TRAINED or UNTRAINED
    step: int
    weights: str
    data: dict[str, Any]  # what it is called, and under "content" a hash of what it is
    result: dict[str, Any]
    source: str = ""  # the path of imported weights; empty for those of the run in whose folder this stands

    @property
    def key(self) -> tuple[Any, ...]:
        """Returns what tells two measurements apart: a later one with the same key takes the earlier one's place."""
        options = json.dumps(self.options, sort_keys=True)
        return self.evaluator, options, self.backbone, self.step, self.weights, self.source, self.data["content"]


def read(folder: Path) -> list[Record]:
    """Returns all that has been measured of a run, in the order of its files and then of time."""
    return [record for path in sorted(folder.glob(f"{Path(FILE).stem}*.json")) for record in _read(path)]


def add(folder: Path, records: Iterable[Record]) -> Path:
    """Writes records beside those that a run has already."""
    path = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = {record.key: record for record in (_read(path) if path.exists() else [])}
        for record in records:
            kept.pop(record.key, None)
            kept[record.key] = record
        content = {"format": _FORMAT, "records": [asdict(record) for record in kept.values()]}
        write_atomically(path, json.dumps(content, indent=1))
    return path


def folder_of_import(path: Path) -> Path:
    """Returns where the results of weights are written that have no run's folder."""
    return Path("runs") / f"probe-{path.name}"


def latest(folder: Path, evaluator: str) -> dict[str, Any]:
    """Returns an evaluator's result for the trained backbone at the highest step, on the run's own data if measured."""
    records = [record for record in read(folder) if (record.evaluator, record.backbone) == (evaluator, TRAINED)]
    if not records:
        raise ConfigError(f"{folder}: '{evaluator}' has not been measured yet; 'mrp probe {folder}' does it")
    own = {True: 2, None: 1, False: 0}  # None: a file of format 1 does not say
    return max(reversed(records), key=lambda record: (own[record.data.get("own")], record.step)).result


def _read(path: Path) -> list[Record]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format") == _FORMAT:
            return [Record(**record) for record in content["records"]]
        return [record for backbone, values in content.items() for record in _of_format_1(backbone, values)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: is not what 'mrp probe' writes ({error!r}); remove it") from None


def _of_format_1(backbone: str, values: dict[str, Any]) -> list[Record]:
    def record(evaluator: str, result: dict[str, Any]) -> Record:
        counts = {key: values[key] for key in ("num_train", "num_test") if key in values}
        weights, step = values.get("weights", "student"), int(values.get("step", 0))
        return Record(evaluator, {}, backbone, step, weights, _NOT_RECORDED, counts | result)

    records = [
        record(name, values[name] | {part: values[part] for part in parts if part in values})
        for name, parts in _PARTS.items()
        if name in values
    ]
    return records + ([record("few_shot", {"few_shot": values["few_shot"]})] if "few_shot" in values else [])
