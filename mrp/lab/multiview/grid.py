"""Every objective with every optimizer: whether what is captured depends on what is learned, or on how it descends."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrp.files import write_atomically
from mrp.lab.multiview.compare import train_by
from mrp.lab.multiview.constants import Constants
from mrp.lab.multiview.descent import OPTIMIZERS

OBJECTIVES = {
    "supervised": "supervised, from scratch",
    "teacher": "pretrained, teacher",
    "patches": "pretrained, patches",
    "none": "no pretraining, zero head",
}
LENGTHS = (90, 270, 900)  # steps of supervised training or of pretraining
PLAIN_LENGTHS = (300, 900, 2700)  # of plain gradient descent, whose first steps are short
SETTLED = 0.05  # the largest change of the captured share, from one length to three times it, that is called none
MOVED = 0.5  # how far kernels are from the start, as a share of their size, once they have left it

Row = dict[str, Any]  # of one length: kernels and accuracy, as in the comparison, and how far kernels have moved
Cell = dict[str, Any]


def measure(constants: Constants, objective: str, optimizer: str, folder: Path) -> Cell:
    """Returns a cell of the grid: trained at several lengths, or read from the folder if it is there."""
    file = folder / f"{objective}-{optimizer}.json"
    wanted = {"constants": constants.model_dump(mode="json"), "objective": objective, "optimizer": optimizer}
    if file.exists():
        kept: Cell = json.loads(file.read_text(encoding="utf-8"))
        if all(kept.get(name) == value for name, value in wanted.items()):
            return kept
    rows: list[Row] = []
    for steps in _lengths(constants, objective, optimizer):
        result, moved = train_by(constants, objective, optimizer, steps)
        if not math.isfinite(moved):
            rows.append({"steps": steps, "diverged": True})
            break
        rows.append({"steps": steps, "moved": moved} | result.as_data())
    cell = wanted | {"rows": rows, "settled": settled(rows)}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(cell, indent=1))
    return cell


def settled(rows: Sequence[Row]) -> int | None:
    """Returns the first length from which on nothing more is captured or lost, once kernels have left the start."""
    if diverged(rows):
        return None
    for index, row in enumerate(rows[:-1]):
        shares = [later["kernels"]["captured"]["mean"] for later in rows[index:]]
        if row["moved"] >= MOVED and max(shares) - min(shares) <= SETTLED:
            return int(row["steps"])
    return None


def diverged(rows: Sequence[Row]) -> bool:
    """Returns whether the kernels ran off to infinity, after which no longer training is tried."""
    return bool(rows[-1].get("diverged"))


def shown(cell: Cell) -> Row:
    """Returns the row that the heatmaps show: the longest training, for every cell alike."""
    row: Row = cell["rows"][-1]
    return row


def _lengths(constants: Constants, objective: str, optimizer: str) -> Sequence[int]:
    if objective == "none":
        return (constants.steps_tuned,)
    return PLAIN_LENGTHS if optimizer == "sgd" else LENGTHS


def cells(constants: Constants, folder: Path) -> dict[str, dict[str, Cell]]:
    """Returns all cells, by objective and optimizer; run again, it goes on where it stopped."""
    return {
        objective: {optimizer: measure(constants, objective, optimizer, folder) for optimizer in OPTIMIZERS}
        for objective in OBJECTIVES
    }
