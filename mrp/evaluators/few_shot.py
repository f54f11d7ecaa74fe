"""Few-shot classification: the accuracy of a classifier that learns from a handful of labelled images per class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrp.data.order import Ints
from mrp.evaluate.answers import best_class
from mrp.evaluate.config import Labelled
from mrp.evaluate.contract import Result
from mrp.evaluate.heads import Scale
from mrp.evaluate.probe import Probe
from mrp.evaluate.readout import Readout
from mrp.evaluate.sealed import Decision
from mrp.evaluate.split import few
from mrp.evaluate.statistics import of_draws_and_images, pseudo_values
from mrp.evaluate.table import Table

SHOTS = (1, 5, 10)
DRAWS = 10
_PENALTY = 1.0  # of the ridge, in units of the mean variance of a column times the number of images


class Config(Labelled):
    """Options of few-shot classification; a fraction or a list of images takes the place of the draws."""


@dataclass(frozen=True, slots=True)
class Learned(Decision):
    """The standardisation, and for each number of shots the classifiers of all draws (draws, columns + 1, classes)."""

    scale: Scale
    classifiers: dict[int, Tensor]
    labels: int = 0  # images that the one classifier was fitted on where the options say which


class Evaluator(Probe[Learned]):
    """Fits a ridge classifier on each draw of a few images per class.

    Columns are standardised by the statistics of all training images, which needs no label. The penalty is fixed: with
    one image per class nothing is left to choose it on.
    """

    version = 2  # the interval speaks of other test images too

    def labelled(self, train: Table) -> Table:
        """Returns all images: columns are standardised by all of them, whatever labels are used."""
        return train

    def learn(self, train: Table, readout: Readout) -> Learned:
        """Fits the classifiers of all draws, or the one on the images that the options ask for."""
        (block,) = readout.blocks
        scale = Scale.of(train, [block], np.arange(len(train)), self.device)
        classes = int(train.labels.max()) + 1
        chosen = super().labelled(train)
        if chosen is not train:
            inputs = scale(chosen, [block], slice(None))[block]
            one = ridge(inputs, chosen.labels.to(self.device), classes)
            return Learned(scale, {0: one[None]}, len(chosen))
        classifiers = {}
        for shots in SHOTS:
            fitted = []
            for draw in range(DRAWS):
                rows = few(train.labels, train.keys, shots, draw)
                fitted.append(ridge(scale(train, [block], rows)[block], train.labels[rows].to(self.device), classes))
            classifiers[shots] = torch.stack(fitted)
        return Learned(scale, classifiers)

    def count(self, learned: Learned, train: Table, test: Table, readout: Readout) -> Result:
        """Counts the right answers of each draw on the whole test set."""
        (block,) = readout.blocks
        if learned.labels:
            right = self._right(learned, learned.classifiers[0], test, block)[0]
            return Result.of_answers(right, groups=test.group_numbers, num_train=learned.labels)
        summaries = []
        images = torch.bincount(train.labels)
        for shots, weights in learned.classifiers.items():
            right = self._right(learned, weights, test, block)
            scarce = int((images[images > 0] < shots).sum())  # classes of which all images were taken
            summaries.append(summary(shots, right, test.group_numbers) | ({"scarce": scarce} if scarce else {}))
        values = {str(one["shots"]): one["accuracy"] for one in summaries}
        details = {"few_shot": summaries, "num_train": len(train), "num_test": len(test)}
        return Result(values, details)

    def _right(self, learned: Learned, weights: Tensor, test: Table, block: str) -> Tensor:
        """Returns whether the classifiers of some draws are right (draws, test images)."""
        found = []
        for rows in test.chunks(4096):
            inputs = learned.scale(test, [block], rows)[block]
            scores = torch.einsum("bw,dwc->dbc", inputs, weights[:, :-1]) + weights[:, -1:]
            found.append(best_class(scores, self.setting.possible).cpu() == test.labels[rows])
        return torch.cat(found, dim=1)


def ridge(inputs: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Returns the weights and, as the last row, the bias of a penalised least-squares fit to one-hot labels."""
    exact, targets = inputs.double(), torch.nn.functional.one_hot(labels, classes).double()
    centre, base = exact.mean(0), targets.mean(0)
    exact, targets = exact - centre, targets - base
    penalty = _PENALTY * exact.square().sum(0).mean().clamp_min(1e-12)
    if len(exact) < exact.shape[1]:  # the smaller of the two systems that have the same answer
        gram = exact @ exact.T
        gram.diagonal().add_(penalty)
        weights = exact.T @ torch.linalg.solve(gram, targets)
    else:
        gram = exact.T @ exact
        gram.diagonal().add_(penalty)
        weights = torch.linalg.solve(gram, exact.T @ targets)
    return torch.cat([weights, (base - centre @ weights)[None]]).float()


def summary(shots: int, right: Tensor, groups: Ints | None = None) -> dict[str, Any]:
    """Returns the mean accuracy of right answers (draws, test images) with its 95 % interval.

    By the rest two models are compared: the accuracy of each draw, and the mean over draws of parts of the images.
    """
    answers = right.numpy()
    of_image = answers.mean(0)
    parts = pseudo_values(len(of_image), lambda rows: float(of_image[rows].mean()), groups=groups)
    interval = of_draws_and_images(answers, groups).of_accuracy()
    return {
        "shots": shots,
        **interval,
        "draws": answers.mean(1).tolist(),
        "groups": list(parts),
    }
