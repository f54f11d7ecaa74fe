"""What the evaluators of frozen features have in common: they learn from training images, then count on test images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from torch import nn

from mrp.evaluate import copies, sweep
from mrp.evaluate.config import Heads
from mrp.evaluate.contract import Evaluator, Pause, Result, Setting
from mrp.evaluate.labelled import chosen_images
from mrp.evaluate.readout import Readout
from mrp.evaluate.sealed import Decision, NothingToChoose
from mrp.evaluate.table import Table, under_views
from mrp.evaluate.views import Changed

D = TypeVar("D", bound=Decision)


class Probe(Evaluator, Generic[D]):
    """Reads the features of a frozen backbone from tables, which the probes of one measurement share.

    The first process learns and counts; the others help to read the features.
    """

    def __init__(self, config: Any, setting: Setting) -> None:
        self.config = config
        self.setting = setting
        self.device = setting.processes.device
        setting.labelled()

    def readout(self, model: nn.Module) -> Readout:
        """Returns which features are read; by default those that the method gives, ordinarily its backbone's."""
        return Readout.own(model)

    @abstractmethod
    def learn(self, train: Table, readout: Readout) -> D:
        """Returns all that is chosen and learned from the training images."""

    @abstractmethod
    def count(self, learned: D, train: Table, test: Table, readout: Readout) -> Result:
        """Returns what was counted on the test images."""

    def most(self, readout: Readout) -> int | None:
        """Returns how many images of each split are read at most; None for all of them."""
        return None

    def views(self) -> Sequence[Changed]:
        """Returns under which views training images are read besides the usual one."""
        return ()

    def labelled(self, train: Table) -> Table:
        """Returns the training images whose labels are used: those that the options ask for, or all."""
        return chosen_images(self.config, train, self.setting.train)

    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Learns, then opens the test set and counts."""
        readout = self.readout(model)
        most = self.most(readout)
        tables = [
            self.setting.features(self.setting.train, model, readout, pause, most, view)
            for view in (None, *self.views())
        ]
        train = self._joined(tables, readout)
        learned = self.setting.alone(train, lambda table: self._learned(table, readout), pause)
        sealed = self.setting.test_features(model, readout, pause, most)
        test = sealed.open(learned or NothingToChoose("the first process has chosen"))
        if learned is None or train is None or test is None:
            return Result()
        result = self.count(learned, train, test, readout)
        if most is None and (count := self._copies(tables[0], test, readout)):
            result.details[copies.COPIES] = count
        return result

    def _joined(self, tables: Sequence[Table | None], readout: Readout) -> Table | None:
        """Returns the training images as they are learned from, on the first process."""
        here = [table for table in tables if table is not None]
        if not here:
            return None
        return self.labelled(here[0] if len(here) == 1 else under_views(here, readout.blocks))

    def _copies(self, train: Table | None, test: Table, readout: Readout) -> int:
        """Returns how many test images are training images too, looked for once for all evaluators of both."""
        source, asked = self.setting.train, self.setting.labelled()

        def look() -> int:
            assert train is not None
            return copies.told(copies.find(train, test, readout.blocks[0]), source, asked)

        return self.setting.tables.shared((copies.find, source.content, asked.content), look)

    def _learned(self, train: Table, readout: Readout) -> D:
        """Learns once for all test sets that are counted in one block of tables."""
        key = (type(self), self.config.model_dump_json(), readout, self.setting.train.content)
        return self.setting.tables.shared(key, lambda: self.learn(train, readout))


def linear_head(setting: Setting, train: Table, readout: Readout, config: Heads) -> sweep.Head:
    """Returns the linear head that is chosen among all, trained on all training images."""
    device = setting.processes.device
    choice = sweep.choose_once(setting.tables, train, readout, device, config, setting.train.content)
    return sweep.fit(choice, train, device, products=sweep.products_of(config, device))
