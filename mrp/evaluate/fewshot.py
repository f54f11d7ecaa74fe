"""Few-shot classification: what a handful of labelled images a class is enough for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mrp.evaluate.heads import Scale
from mrp.evaluate.split import few
from mrp.evaluate.table import Table

SHOTS = (1, 5, 10)
DRAWS = 10
_PENALTY = 1.0  # of the ridge, in units of the mean variance of a column times the number of images
_QUANTILE = {5: 2.776445, 10: 2.262157, 20: 2.093024}  # two-sided 95 %, of Student's t for so many draws


@dataclass(frozen=True, slots=True)
class FewShot:
    """The mean accuracy over draws, the 95 % interval of that mean, and each draw's."""

    shots: int
    accuracy: float
    low: float
    high: float
    draws: tuple[float, ...]


def measure(
    train: Table, test: Table, block: str, device: torch.device, shots: Sequence[int] = SHOTS, draws: int = DRAWS
) -> list[FewShot]:
    """A ridge classifier on each draw of so many images a class, counted on the whole test set.

    Columns are standardised by the statistics of all training images, which takes no label. The penalty is fixed: with
    one image a class nothing is left to choose it on.
    """
    scale = Scale.of(train, [block], np.arange(len(train)), device)
    classes = int(train.labels.max()) + 1
    found = []
    for count in shots:
        chosen = [few(train.labels, train.keys, count, draw) for draw in range(draws)]
        weights = torch.stack(
            [_ridge(scale(train, [block], rows)[block], train.labels[rows].to(device), classes) for rows in chosen]
        )
        correct = torch.zeros(draws, dtype=torch.int64)
        for rows in test.chunks(4096):
            inputs = scale(test, [block], rows)[block]
            answers = torch.einsum("bw,dwc->dbc", inputs, weights[:, :-1]) + weights[:, -1:]
            correct += (answers.argmax(2).cpu() == test.labels[rows]).sum(1)
        found.append(_summary(count, correct.double() / len(test)))
    return found


def _ridge(inputs: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The weights and, as the last row, the bias that fit one-hot labels best in the least squares, penalised."""
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


def _summary(shots: int, accuracies: Tensor) -> FewShot:
    mean, count = float(accuracies.mean()), len(accuracies)
    half = _QUANTILE[count] * float(accuracies.std()) / math.sqrt(count)
    return FewShot(shots, mean, max(0.0, mean - half), min(1.0, mean + half), tuple(accuracies.tolist()))
