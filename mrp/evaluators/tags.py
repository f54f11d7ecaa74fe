"""How well frozen features tell which tags an image has: a linear head, and the nearest training images."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from mrp.data.source import Source
from mrp.evaluate import neighbours, sweep, tag_heads
from mrp.evaluate.config import Section
from mrp.evaluate.contract import Result
from mrp.evaluate.measures import MEASURES
from mrp.evaluate.probe import Probe
from mrp.evaluate.readout import Readout
from mrp.evaluate.table import Table
from mrp.evaluate.tag_heads import Head
from mrp.evaluate.tagged import Floats, result

_K = 20  # neighbours
_TITLES = {"mean_ap": "mean AP", "mean_auroc": "mean AUROC"}


class Config(Section):
    """Options of a linear head for tags."""

    layers: int | None = Field(None, ge=1)  # how many of the last blocks are read; null: four, or all of fewer
    inputs: Literal["sweep", "dinov2", "all"] = "sweep"  # what heads read, as for `linear`
    images: int = Field(20_000, ge=2)  # the most training images that heads are fitted on, evenly spaced


class Evaluator(Probe[Head]):
    """Chooses features and strength on held-out training images, fits on all, and judges the scores of test images."""

    values = ("mean_ap", "mean_auroc", "knn_mean_ap", "knn_mean_auroc")

    def asked(self) -> Source:
        """Returns the test data, after a check that both have tags."""
        return self.setting.tagged()

    def readout(self, model: nn.Module) -> Readout:
        """Returns the last blocks, among which are the method's own features, that neighbours are found by."""
        (self._own,) = Readout.own(model).blocks
        return Readout.last(model, self.config.layers)

    def learn(self, train: Table, readout: Readout) -> Head:
        """Fits one head for all tags."""
        rows = np.unique(np.linspace(0, len(train) - 1, min(len(train), self.config.images)).astype(np.int64))
        tags, candidates = np.asarray(self.setting.train.tagged), sweep.inputs_of(readout, self.config.inputs)
        return tag_heads.learn(train, tags, candidates, rows, self.device)

    def count(self, learned: Head, train: Table, test: Table, readout: Readout) -> Result:
        """Judges the head's scores, and those of the nearest training images."""
        not_learned = [tag for n, tag in enumerate(self.setting.train.tags) if n not in learned.learned]
        train_tags = torch.from_numpy(np.asarray(self.setting.train.tagged))
        keys, queries = train.columns[self._own], test.columns[self._own]
        near = neighbours.tag_scores(keys, train_tags, queries, _K, device=self.device)
        values, details = self._judged("linear probe", learned.scores(test), test)
        knn_values, knn = self._judged(f"kNN (k = {_K})", near.numpy(), test)
        for number, tag in enumerate(details["tags"]):
            tag["learned"] = tag["name"] not in not_learned
            tag |= {f"knn_{key}": value for key, value in knn["tags"][number].items() if key in ("ap", "auroc")}
        details[MEASURES] |= {f"knn_{key}": measure for key, measure in knn[MEASURES].items()}
        knn_values = {f"knn_{key}": value for key, value in knn_values.items()}
        about = {
            "num_train": learned.num_train,
            "not_learned": not_learned,
            "chosen": learned.chosen._asdict(),
            "tried": [one._asdict() for one in learned.tried],
        }
        return Result(values | knn_values, details | knn_values | about)

    def _judged(self, title: str, scores: Floats, test: Table) -> tuple[dict[str, float], dict[str, Any]]:
        """Returns both areas of scores of the training data's tags, in the order in which the test data have these."""
        asked = self.asked()
        columns = [self.setting.train.tags.index(tag) for tag in asked.tags]
        values, details = result(scores[:, columns], np.asarray(asked.tagged), asked.tags, test.group_numbers)
        for key, measure in details[MEASURES].items():
            measure["title"] = f"{title}, {_TITLES[key]}"
        return values, details
