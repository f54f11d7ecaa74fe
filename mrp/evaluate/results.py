"""What evaluators have measured of a run after its training: `probe.json`, one record for each measurement.

Beside it, `outcomes/` holds for each record which test images were answered rightly, and the class and group of each.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.data.order import Ints
from mrp.files import lock, replacing, write_atomically

FILE = "probe.json"
EARLIER = "probe-earlier.jsonl"  # records whose place others have taken with another result
OUTCOMES = "outcomes"
NOT_COUNTED = -1
TRAINED, UNTRAINED = "trained", "untrained"
_FORMAT = 2
_LOCK = ".probe.lock"


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
    digest: str = ""  # a hash of the whole model; empty in files of earlier versions
    code: str = ""  # a hash of the evaluator's code, where that is a file outside mrp; of one of mrp, its version
    outcomes: str = ""  # the file in `outcomes/` that says which answers were right, and holds this record's hash
    classes: str = ""  # the file in `outcomes/` that holds the class of each test image
    groups: str = ""  # the file in `outcomes/` that holds the group of each test image, where there are groups
    precision: str = ""  # in which it was measured, where that is not the one of the configuration

    @property
    def key(self) -> tuple[Any, ...]:
        """Returns what tells two measurements apart: a later one with the same key takes the earlier one's place."""
        options = json.dumps(self.options, sort_keys=True)
        weights = self.backbone, self.step, self.weights, self.source, self.digest
        precision = (self.precision,) if self.precision else ()  # which earlier records do not have
        return self.evaluator, options, self.code, *weights, self.data["content"], *precision


def read(folder: Path) -> list[Record]:
    """Returns all that has been measured of a run, in the order of its files and then of time."""
    return [record for path in sorted(folder.glob(f"{Path(FILE).stem}*.json")) for record in _read(path)]


def add(folder: Path, records: Iterable[Record]) -> Path:
    """Writes records beside those that a run has already."""
    path = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as file:
        lock(file, fcntl.LOCK_EX)
        kept = {record.key: record for record in (_read(path) if path.exists() else [])}
        for record in records:
            earlier = kept.pop(record.key, None)
            if earlier is not None and earlier.result != record.result:
                with (folder / EARLIER).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(earlier)) + "\n")
            kept[record.key] = record
        content = {"format": _FORMAT, "records": [asdict(record) for record in kept.values()]}
        write_atomically(path, json.dumps(content, indent=1))
    return path


class Outcomes(NamedTuple):
    """Of each test image, in the order of the source: whether the answer was right, its class, and its group."""

    right: NDArray[np.bool_]
    classes: NDArray[np.int32]  # NOT_COUNTED: of an image that was left out
    groups: Ints | None = None  # where the data have groups: that of each image

    def counted(self) -> Outcomes:
        """Returns the outcomes of the images that count."""
        kept = self.classes != NOT_COUNTED
        if kept.all():
            return self
        return Outcomes(self.right[kept], self.classes[kept], None if self.groups is None else self.groups[kept])


def with_outcomes(folder: Path, record: Record, outcomes: Outcomes) -> Record:
    """Returns the record with the names of the files that keep its outcomes, which are written first."""
    bits = np.packbits(outcomes.right)
    files: dict[str, NDArray[Any]] = {
        f"right-{_hash(record, bits)}.npy": bits,
        _named("classes", outcomes.classes): outcomes.classes,
    }
    if outcomes.groups is not None:
        files[_named("groups", outcomes.groups)] = outcomes.groups
    (folder / OUTCOMES).mkdir(parents=True, exist_ok=True)
    for name, kept in files.items():
        with replacing(folder / OUTCOMES / name) as file:
            np.save(file, kept, allow_pickle=False)
    right, classes, *groups = files
    return replace(record, outcomes=right, classes=classes, groups="".join(groups))


def read_outcomes(folder: Path, record: Record) -> Outcomes | None:
    """Returns the outcomes of a record; None where there are none, or where they are not those that were kept."""
    if not record.outcomes:
        return None
    names = [name for name in (record.outcomes, record.classes, record.groups) if name]
    try:
        bits, classes, *groups = (np.load(folder / OUTCOMES / Path(name).name, allow_pickle=False) for name in names)
        right = np.unpackbits(bits, count=len(classes)).astype(bool)
    except (OSError, ValueError, TypeError, EOFError):  # the last one from an empty file
        return None
    kept = record.outcomes == f"right-{_hash(record, bits)}.npy" and len(bits) == -(-len(classes) // 8)
    return Outcomes(right, classes, *groups).counted() if kept else None


def _named(what: str, numbers: NDArray[Any]) -> str:
    return f"{what}-{hashlib.sha256(numbers.tobytes()).hexdigest()[:16]}.npy"


def _hash(record: Record, bits: NDArray[np.uint8]) -> str:
    return hashlib.sha256(repr(record.key).encode() + bits.tobytes()).hexdigest()[:16]


def folder_of_import(path: Path) -> Path:
    """Returns where the results of weights are written that have no run's folder."""
    return Path("runs") / f"probe-{path.name}"


def latest(folder: Path, evaluator: str) -> dict[str, Any]:
    """Returns an evaluator's result for the trained backbone, on the run's own data if measured, at the highest step.

    Of several at that step, one with the default options is taken, and otherwise the last one.
    """
    records = [record for record in read(folder) if (record.evaluator, record.backbone) == (evaluator, TRAINED)]
    if not records:
        raise ConfigError(f"{folder}: '{evaluator}' has not been measured yet; 'mrp probe {folder}' does it")
    order = [(is_own(record), record.step, not record.options) for record in records]
    return records[max(range(len(records)), key=lambda number: (*order[number], number))].result


def is_own(record: Record) -> bool:
    """Returns whether a record is about the run's own data."""
    return bool(record.data.get("own"))


def _read(path: Path) -> list[Record]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [Record(**record) for record in content["records"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: is not what 'mrp probe' writes ({error!r}); move it away and measure again"
        ) from None
