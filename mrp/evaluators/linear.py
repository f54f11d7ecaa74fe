"""The best of many linear heads on frozen features: layer, pooling, rate and decay are chosen on training images."""

from __future__ import annotations

from dataclasses import asdict

from pydantic import Field
from torch import nn

from mrp.evaluate import sweep
from mrp.evaluate.config import Section
from mrp.evaluate.contract import Result
from mrp.evaluate.interval import wilson
from mrp.evaluate.probe import Probe
from mrp.evaluate.readout import Readout
from mrp.evaluate.table import Table


class Config(Section):
    """Options of the sweep over linear heads."""

    layers: int | None = Field(None, ge=1)  # of the last blocks; null: four, or all of fewer


class Evaluator(Probe[sweep.Head]):
    """Chooses among all heads on a held-out part of the training images, trains the best one on all, and counts."""

    def readout(self, model: nn.Module) -> Readout:
        """Returns the last blocks under every pooling, and what the method defines itself."""
        return Readout.last(model, self.config.layers)

    def learn(self, train: Table, readout: Readout) -> sweep.Head:
        """Chooses, then trains the chosen head."""
        choice = sweep.choose_once(self.setting.tables, train, readout, self.device)
        return sweep.fit(choice, train, self.device)

    def count(self, learned: sweep.Head, train: Table, test: Table, readout: Readout) -> Result:
        """Counts the right answers of the chosen head."""
        choice, right = learned.choice, learned.predict(test, self.setting.possible) == test.labels
        interval = wilson(int(right.sum()), len(test))
        best = asdict(choice.best)
        held_out = {
            "accuracy": best.pop("accuracy"),
            "loss": best.pop("loss"),
            "low": choice.held_out.low,
            "high": choice.held_out.high,
        }
        details = interval._asdict() | best | {"held_out": held_out, "num_train": len(train), "num_test": len(test)}
        details |= {
            "moves": choice.moves(), "grid": choice.grid(), "trials": [asdict(trial) for trial in choice.trials]
        }  # fmt: skip
        return Result({"accuracy": interval.accuracy, "held_out": held_out["accuracy"]}, details, right=right)
