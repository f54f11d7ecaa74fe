"""Logistic regression by L-BFGS on the features that the sweep has chosen: a check that the sweep was long enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mrp.evaluate import logistic, sweep
from mrp.evaluate.config import Heads
from mrp.evaluate.contract import Result
from mrp.evaluate.probe import Probe
from mrp.evaluate.readout import Readout
from mrp.evaluate.sealed import Decision
from mrp.evaluate.split import split
from mrp.evaluate.table import Table

MOST = 20_000  # training images that it is fitted on, unless the options say which


class Config(Heads):
    """Options of logistic regression, which reads the features that the sweep of `linear` chooses."""


@dataclass(frozen=True, slots=True)
class Learned(Decision):
    """A fitted classifier and the columns that it reads."""

    classifier: logistic.Logistic
    blocks: tuple[str, ...]


class Evaluator(Probe[Learned]):
    """Fits one classifier, whose L2 strength is chosen on a held-out part of the training images."""

    def learn(self, train: Table, readout: Readout) -> Learned:
        """Fits on the features of the best head of the sweep."""
        setting, config = self.setting, self.config
        choice = sweep.choose_once(setting.tables, train, readout, self.device, config, setting.train.content)
        blocks = choice.input.blocks
        most = MOST if config.fraction is None and config.list is None else len(train)
        rows = np.unique(np.linspace(0, len(train) - 1, min(len(train), most)).astype(np.int64))
        labels, groups = train.labels[torch.from_numpy(rows)], train.groups[torch.from_numpy(rows)]
        return Learned(logistic.train(train.rows(blocks, rows), labels, split(labels, groups)), blocks)

    def count(self, learned: Learned, train: Table, test: Table, readout: Readout) -> Result:
        """Counts the right answers."""
        found = learned.classifier.predict(test.rows(learned.blocks, slice(None)), self.setting.possible)
        return Result.of_answers(found == test.labels, groups=test.group_numbers, **learned.classifier.about())
