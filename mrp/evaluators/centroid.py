"""The nearest class mean by cosine, on the backbone's own features: the simplest classifier, and nothing is tuned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mrp.evaluate.answers import best_class
from mrp.evaluate.config import Labelled
from mrp.evaluate.contract import Result
from mrp.evaluate.probe import Probe
from mrp.evaluate.readout import Readout
from mrp.evaluate.sealed import Decision
from mrp.evaluate.table import Table

_CHUNK = 4096  # rows that are read at once


class Config(Labelled):
    """Options of the nearest class mean."""


@dataclass(frozen=True, slots=True)
class Learned(Decision):
    """The mean direction of each class (classes, columns); zero for a class without an image."""

    directions: Tensor


class Evaluator(Probe[Learned]):
    """Puts features on the unit sphere, and answers with the class whose mean is nearest by cosine."""

    def learn(self, train: Table, readout: Readout) -> Learned:
        """Returns the means of the classes."""
        (block,) = readout.blocks
        count = int(train.labels.max()) + 1
        totals = torch.zeros(count, train.columns[block].shape[1], dtype=torch.float64, device=self.device)
        for rows in train.chunks(_CHUNK):
            totals.index_add_(0, train.labels[rows].to(self.device), self._unit(train, block, rows))
        return Learned(functional.normalize(totals, dim=1))

    def count(self, learned: Learned, train: Table, test: Table, readout: Readout) -> Result:
        """Counts the right answers."""
        (block,) = readout.blocks
        right = torch.cat([
            best_class(self._unit(test, block, rows) @ learned.directions.T, self.setting.possible).cpu()
            == test.labels[rows]
            for rows in test.chunks(_CHUNK)
        ])  # fmt: skip
        return Result.of_answers(right, groups=test.group_numbers, num_train=len(train))

    def _unit(self, table: Table, block: str, rows: slice) -> Tensor:
        return functional.normalize(table.rows([block], rows).to(self.device).double(), dim=1)
