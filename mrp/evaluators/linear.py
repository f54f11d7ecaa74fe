"""The best of many linear heads on frozen features: layer, pooling, rate and decay are chosen on training images."""

from __future__ import annotations

from dataclasses import asdict

from pydantic import Field

from mrp.data.config import Crop
from mrp.evaluate import sweep
from mrp.evaluate.config import Heads
from mrp.evaluate.contract import Result
from mrp.evaluate.probe import Probe, linear_head
from mrp.evaluate.readout import Readout
from mrp.evaluate.table import Table
from mrp.evaluate.views import Changed, Cropped

_AREA = (0.08, 1.0)  # of an image that a crop shows


class Config(Heads):
    """Options of the sweep over linear heads."""

    # Random crops of each training image (8 to 100 % of its area, and mirrored where the run mirrors), from which heads
    # learn beside the whole image; they take as much room on disk, and as much time, as so many more images.
    crops: int = Field(0, ge=0)


class Evaluator(Probe[sweep.Head]):
    """Chooses among all heads on a held-out part of the training images, trains the best one on all, and counts."""

    def views(self) -> list[Changed]:
        """Returns the crops, each a view of its own."""
        data = self.setting.data
        crop = Crop(scale=_AREA, flip=data.mirrors)
        return [Cropped(data, crop, number) for number in range(1, self.config.crops + 1)]

    def learn(self, train: Table, readout: Readout) -> sweep.Head:
        """Chooses, then trains the chosen head."""
        return linear_head(self.setting, train, readout, self.config)

    def count(self, learned: sweep.Head, train: Table, test: Table, readout: Readout) -> Result:
        """Counts the right answers of the chosen head."""
        choice, right = learned.choice, learned.predict(test, self.setting.possible) == test.labels
        best = asdict(choice.best)
        held_out = {name: best.pop(name) for name in ("accuracy", "loss")}
        held_out |= {"low": choice.held_out.low, "high": choice.held_out.high}
        return Result.of_answers(
            right, {"held_out": held_out["accuracy"]}, test.group_numbers, **best, held_out=held_out,
            num_train=train.images, moves=choice.moves(), grid=choice.grid(),
            trials=[asdict(trial) for trial in choice.trials],
        )  # fmt: skip
