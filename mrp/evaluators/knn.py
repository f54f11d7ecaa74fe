"""Weighted nearest neighbours (Wu et al., 2018) on the method's own features: nothing is trained."""

from __future__ import annotations

from mrp.evaluate import neighbours
from mrp.evaluate.config import Section
from mrp.evaluate.contract import Result
from mrp.evaluate.probe import Probe
from mrp.evaluate.readout import Readout
from mrp.evaluate.sealed import NothingToChoose
from mrp.evaluate.table import Table

SHOWN = 20  # the k whose accuracy stands for kNN


class Config(Section):
    """Options of nearest neighbours: only how often they are measured."""


class Evaluator(Probe[NothingToChoose]):
    """Has the nearest training images vote on the class of each test image, for several k."""

    def learn(self, train: Table, readout: Readout) -> NothingToChoose:
        """There is nothing to learn."""
        return NothingToChoose("kNN takes the features as the backbone gives them, and reports every k")

    def count(self, learned: NothingToChoose, train: Table, test: Table, readout: Readout) -> Result:
        """Counts the right answers for every k."""
        (block,) = readout.blocks
        keys, queries, possible = train.columns[block], test.columns[block], self.setting.possible
        found = neighbours.predict(keys, train.labels, queries, neighbours.KS, device=self.device, among=possible)
        right = found == test.labels
        every = neighbours.counted(right, len(train), groups=test.group_numbers)
        details = next(one for one in every if one["k"] == SHOWN) | {"neighbours": every}
        values = {"accuracy": details["accuracy"]} | {f"k{one['k']}": one["accuracy"] for one in every}
        return Result(values, details, right=right[neighbours.KS.index(SHOWN)])
