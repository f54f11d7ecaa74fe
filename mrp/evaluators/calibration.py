"""Whether a classifier is as often right as it says: the linear probe, or the whole model if it is a classifier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mrp.batch import Batch
from mrp.config import ConfigError
from mrp.data.order import Ints, fold
from mrp.evaluate import sweep
from mrp.evaluate.answering import refuse_classifier_of_tags, test_batches
from mrp.evaluate.config import Heads
from mrp.evaluate.contract import Pause, Result
from mrp.evaluate.gathering import Columns, evaluating, gathered, in_order
from mrp.evaluate.measures import Number, share_of, told
from mrp.evaluate.probe import Probe, linear_head
from mrp.evaluate.readout import Readout, features_of, objective_of
from mrp.evaluate.sealed import Decision
from mrp.evaluate.split import split
from mrp.evaluate.table import Table

BINS = 15
_TEMPERATURES = 1e-3, 1e3  # between which one is looked for
_HALF = 0x68616C66  # the purpose of a hash, which sets it apart from others
_VALUES = ("ece", "ece_equal_mass", "nll", "brier")
_SHOWN = ("ece", "nll", "temperature", "scaled_ece")  # in tables


class Config(Heads):
    """Options of calibration, which uses the head that the sweep of `linear` chooses."""


class Scores(NamedTuple):
    """What was said of each image, in double precision, and what it is."""

    logits: Tensor  # N classes
    labels: Tensor  # N

    def at(self, temperature: Tensor | float) -> Scores:
        """Returns the same at a temperature, or at one for each image."""
        return self._replace(logits=self.logits / torch.as_tensor(temperature, dtype=self.logits.dtype).view(-1, 1))


@dataclass(frozen=True, slots=True)
class Learned(Decision):
    """The head that `linear` counts, and the temperature of one that never saw the held-out images."""

    head: sweep.Head
    temperature: float


class Evaluator(Probe[Learned]):
    """Measures the answers as they are, and at a temperature that is fitted on other images than it is measured on.

    For the linear probe these are held-out training images. A classifier has been trained on all training images, so
    half of the test images, chosen by a hash of their keys, tell the temperature of the other half, and the other way
    round.
    """

    values = "accuracy", *_VALUES, "temperature", *(f"scaled_{name}" for name in _VALUES)

    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Measures the whole model if it is a classifier, and a linear probe otherwise."""
        refuse_classifier_of_tags(model, "calibration")
        objective: Any = objective_of(model)
        classes = getattr(getattr(objective, "config", None), "classes", 0) if hasattr(objective, "predict") else 0
        return self._of_classifier(model, classes, pause) if classes else super().measure(model, step, pause)

    def learn(self, train: Table, readout: Readout) -> Learned:
        """Trains the chosen head on all images, and one without the held-out ones, which tell the temperature."""
        head = linear_head(self.setting, train, readout, self.config)
        products = sweep.products_of(self.config, self.device)
        parts = split(train.labels, train.groups)
        fitted = sweep.fit(head.choice, train, self.device, products=products, rows=parts.fitting)
        logits, labels = fitted.scores(train, parts.held_out), train.labels[torch.from_numpy(parts.held_out)]
        temperature = best_temperature(Scores(logits.double(), labels))
        return Learned(head, temperature)

    def count(self, learned: Learned, train: Table, test: Table, readout: Readout) -> Result:
        """Measures the answers about the test images."""
        logits, temperature = learned.head.scores(test).double(), Number(learned.temperature, None, None, False, "")
        result = self._result(Scores(logits, test.labels), learned.temperature, temperature, test.group_numbers)
        result.details.update(num_train=len(train), num_test=len(test), of="linear probe")
        return result

    def _of_classifier(self, model: nn.Module, classes: int, pause: Pause) -> Result:
        setting, processes = self.setting, self.setting.processes
        test = setting.labelled()
        if classes != len(setting.train.classes):
            raise ConfigError(
                f"calibration: the model tells {classes} classes apart, but data.train has "
                f"{len(setting.train.classes)}; take the data of the run"
            )
        loader, here = test_batches(setting), processes.is_main_process
        with evaluating(model):
            said = partial(_said, model)
            parts = [*gathered(loader, len(test), processes, pause, "batches of test images", said, here)]
        if not here:
            return Result()
        logits, labels, keys = in_order(parts)
        scores = Scores(logits.double(), setting.class_numbers[labels])
        groups = setting.groups(test)
        first = torch.from_numpy(
            (fold(_HALF, keys.numpy()) & 1).astype(bool) if groups is None else _every_second(groups)
        )
        if not 0 < int(first.sum()) < len(first):
            raise ConfigError(f"calibration: {len(first)} test images cannot be halved to fit a temperature; give more")
        of_first, of_second = (best_temperature(Scores(*(x[half] for x in scores))) for half in (first, ~first))
        each = torch.where(first, of_second, of_first)
        result = self._result(scores, each, Number((of_first + of_second) / 2, None, None, False, ""), groups)
        result.details.update(num_test=len(first), of="classifier")
        return result

    def _result(self, scores: Scores, temperature: Tensor | float, shown: Number, groups: Ints | None) -> Result:
        names, possible = self.setting.train.classes, self.setting.possible
        if (highest := int(scores.labels.max())) >= scores.logits.shape[1]:
            raise ConfigError(
                f"calibration: no training image that was learned from is of the class '{names[highest]}' of a test "
                "image, whose likelihood is 0 then; take training images of it, or leave the class out of the test data"
            )
        if possible is not None:  # answers are limited to the classes of the test data
            possible = possible[possible < scores.logits.shape[1]]
            scores = Scores(scores.logits[:, possible], torch.searchsorted(possible, scores.labels))
            names = tuple(names[number] for number in possible.tolist())
        right = scores.logits.argmax(1) == scores.labels
        plain, scaled = of(scores), of(scores.at(temperature))
        numbers = {"accuracy": share_of(right, groups)}
        numbers |= {name: _lower(name, plain[name]) for name in _VALUES}
        numbers["temperature"] = shown
        numbers |= {f"scaled_{name}": _lower(name, scaled[name]) for name in _VALUES}
        values, details = told(numbers, _SHOWN)
        details |= {"classes": by_class(scores, names), "bins": reliability(scores)}
        return Result(values, details, right=right)


def _every_second(groups: Ints) -> NDArray[np.bool_]:
    """Returns which images are of every second group, in the order of their hashes."""
    named, of = np.unique(groups, return_inverse=True)
    place = np.argsort(np.argsort(fold(_HALF, named)))
    return np.asarray((place & 1).astype(bool)[of.reshape(-1)])


def _lower(name: str, value: float) -> Number:
    return Number(value, None, None, share=name.startswith("ece"), better="lower")


def _scores_of(objective: Any, batch: Batch) -> Tensor:
    """Returns the scores of a classifier; it is called inside the forward pass, where sharded parameters are whole."""
    scores: Tensor = objective.predict(batch.images)[1]
    return scores


def _said(model: nn.Module, batch: Batch) -> Columns:
    assert batch.labels is not None
    return features_of(model, batch, _scores_of), batch.labels, batch.keys


def of(scores: Scores) -> dict[str, float]:
    """Returns calibration errors over bins of equal width and of equal mass, log-likelihood and Brier score."""
    shares = scores.logits.softmax(1)
    confidence, answers = shares.max(1)
    right = (answers == scores.labels).double()
    truth = functional.one_hot(scores.labels, shares.shape[1])
    return {
        "ece": _error(confidence, right, (confidence * BINS).ceil().long().clamp(1, BINS) - 1),
        "ece_equal_mass": _error(confidence, right, _by_mass(confidence)),
        "nll": float(functional.cross_entropy(scores.logits, scores.labels)),
        "brier": float((shares - truth).square().sum(1).mean()),
    }


def best_temperature(scores: Scores) -> float:
    """Returns the temperature with the least negative log-likelihood, within wide bounds.

    The loss is convex in 1 / temperature, and its slope there is the mean of the expected logit minus the true one, for
    whose zero is looked.
    """
    from scipy.optimize import brentq

    true = scores.logits.gather(1, scores.labels[:, None])[:, 0]

    def slope(log: float) -> float:
        shares = (scores.logits * math.exp(-log)).softmax(1)
        return float((torch.linalg.vecdot(shares, scores.logits) - true).mean())

    low, high = (math.log(bound) for bound in _TEMPERATURES)
    if slope(low) <= 0:  # no answer is wrong, so the surer the better
        return _TEMPERATURES[0]
    if slope(high) >= 0:  # answers tell nothing, or the contrary
        return _TEMPERATURES[1]
    return math.exp(brentq(slope, low, high, xtol=1e-10))


def by_class(scores: Scores, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns for each class how many images have it, the share of them that was right, and how sure the answers were.

    `precision` is the share of the answers with this class that was right.
    """
    confidence, answers = scores.logits.softmax(1).max(1)
    right = answers == scores.labels
    rows = []
    for number, name in enumerate(names):
        own, given = scores.labels == number, answers == number
        rows.append({
            "name": name, "images": int(own.sum()), "accuracy": _mean(right[own]), "confidence": _mean(confidence[own]),
            "precision": _mean(right[given]),
        })  # fmt: skip
    return rows


def reliability(scores: Scores) -> list[dict[str, Any]]:
    """Returns for each bin of equal width how many images fall in it, how sure they were, and how often right."""
    confidence, answers = scores.logits.softmax(1).max(1)
    right, bins = answers == scores.labels, (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    rows = []
    for number in range(BINS):
        own = bins == number
        rows.append({"images": int(own.sum()), "confidence": _mean(confidence[own]), "accuracy": _mean(right[own])})
    return rows


def _by_mass(confidence: Tensor) -> Tensor:
    """Returns the bin of each image, where every bin holds the same number of images (or one more)."""
    ranks = torch.empty_like(confidence, dtype=torch.int64)
    ranks[confidence.argsort(stable=True)] = torch.arange(len(confidence), device=confidence.device)
    return ranks * BINS // len(confidence)


def _error(confidence: Tensor, right: Tensor, bins: Tensor) -> float:
    """Returns the mean over images of how far accuracy and confidence of their bin are apart."""
    gaps = torch.zeros(BINS, dtype=confidence.dtype, device=confidence.device)
    return float(gaps.index_add_(0, bins, confidence - right).abs().sum() / len(confidence))


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None
