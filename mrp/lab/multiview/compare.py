"""The experiment: which features pretraining and supervised learning capture, over the constants of the data model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrp.config import ConfigError, nearest
from mrp.lab.estimate import Estimate
from mrp.lab.multiview import network
from mrp.lab.multiview.constants import Constants
from mrp.lab.multiview.data import Samples, draw_splits, random_stream
from mrp.lab.multiview.measure import correlations, held, summary
from mrp.lab.multiview.network import Classifier, classify, correct, first_kernels, pretrain

METHODS = {"teacher": "MRP, teacher", "patches": "MRP, patches", "scratch": "SL from scratch"}
SWEEPS: dict[str, tuple[float, ...]] = {
    "mu": (0.02, 0.05, 0.1, 0.2, 0.4),
    "theta": (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9),
    "tau": (1.0, 1.1, 1.2, 1.3, 1.5),
    "m": (1, 2, 4, 8, 16),
    "q": (2, 3, 4, 5, 6),
    "t": (0.3, 0.6, 1.0, 1.5, 2.0),
    "sigma": (0.0, 0.05, 0.1, 0.2, 0.3),
    "gamma": (0.0, 0.03, 0.1, 0.2),
    "sigma_0": (0.1, 0.15, 0.3, 0.6),
    "steps": (90, 270, 900),
    "steps_scratch": (200, 400, 800, 1600),
}
MAP = {"theta": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), "m": (1.0, 2.0, 4.0, 8.0, 16.0)}
PICTURES = 4  # how often the correlations of kernels and features are kept in a training
POINTS = 30  # how often the share of captured features is measured in a training


class Trace:
    """Measures the kernels at some steps of a training."""

    def __init__(self, constants: Constants, steps: int) -> None:
        self.constants = constants
        self.measured = {round(steps * point / POINTS) for point in range(POINTS + 1)}
        self.pictured = {round(steps * (point / (PICTURES - 1)) ** 2) for point in range(PICTURES)}
        self.captured: dict[int, list[float]] = {}  # by step: the share of captured features of each seed
        self.pictures: dict[int, Tensor] = {}  # by step: the first seed's correlations of kernels and features

    def watch(self, step: int, kernels: Tensor) -> None:
        """Measures the kernels if it is time."""
        if step in self.measured:
            self.captured[step] = held(self.constants, kernels).captured.tolist()
        if step in self.pictured:
            self.pictures[step] = correlations(self.constants, kernels)[0].clone()


@dataclass(frozen=True, slots=True)
class Result:
    """What one method has reached."""

    kernels: dict[str, Estimate]  # measures of the kernels after pretraining, or after supervised training
    accuracy: dict[str, Estimate]  # after fine-tuning, or after supervised training; and the error on the mixture
    trace: Trace

    def as_data(self) -> dict[str, Any]:
        """Returns plain values, but for the trace."""
        return {
            part: {name: {"mean": estimate.value, "half": estimate.error} for name, estimate in estimates.items()}
            for part, estimates in (("kernels", self.kernels), ("accuracy", self.accuracy))
        }


def compare(constants: Constants, methods: Iterable[str] = tuple(METHODS)) -> dict[str, Result]:
    """Trains by each method on the same data from the same first kernels, which follow from the seed."""
    samples, kernels = draw_splits(constants), first_kernels(constants, random_stream(constants, 3))
    objectives = {method: "supervised" if method == "scratch" else method for method in methods}
    return {method: _train(constants, samples, kernels, one)[0] for method, one in objectives.items()}


def train_by(constants: Constants, objective: str, optimizer: str, steps: int) -> tuple[Result, float]:
    """Trains by an objective and an optimizer for so many steps; returns also how far the kernels moved, by their size.

    Fine-tuning uses the same optimizer. "none" is fine-tuning alone, from the first kernels and a head of zeros.
    """
    varied = constants.varied(steps=steps, steps_scratch=steps)
    first = first_kernels(varied, random_stream(varied, 3))
    result, kernels = _train(varied, draw_splits(varied), first, objective, optimizer, optimizer)
    return result, float((kernels - first).norm() / first.norm())


def sweep_values(name: str) -> tuple[float, ...]:
    """Returns the values of a constant in its sweep."""
    if name not in SWEEPS:
        hint = nearest(name, SWEEPS) or f"; there are {', '.join(SWEEPS)}"
        raise ConfigError(f"--sweep: there is no sweep over '{name}'{hint}")
    return SWEEPS[name]


def largest_ratio(constants: Constants) -> float:
    """Returns the mask ratio above which small kernels shrink in the teacher's setting, by the expected gradient.

    Averaged over masks, a patch with activation a pulls its kernel by (tau^q - 1) A - theta / (1 - theta) a. A is the
    sum of activations, C a for a feature spread evenly over C patches, so that growth needs theta / (1 - theta) below
    C (tau^q - 1).
    """
    shares = 1 + constants.uneven * (
        2 * torch.rand(20_000, constants.spread, generator=random_stream(constants, 7)) - 1
    )
    answers = (shares / shares.sum(dim=-1, keepdim=True)).double() ** constants.q
    patches = answers.sum(dim=-1).square().mean() / answers.square().sum(dim=-1).mean()  # C for uneven shares
    gain = float(patches) * (constants.tau**constants.q - 1)
    return max(0.0, gain / (1 + gain))


def _train(
    constants: Constants, samples: dict[str, Samples], first: Tensor, objective: str, pretrained_by: str = "kernel",
    classified_by: str = "sgd",
) -> tuple[Result, Tensor]:  # fmt: skip
    """Trains by an objective from beginning to end; returns also the kernels before fine-tuning, if anything was."""
    supervised, kernels = objective == "supervised", first
    trace = Trace(constants, constants.steps_scratch if supervised else constants.steps)
    if objective not in ("supervised", "none"):
        stream = random_stream(constants, 5)
        patches = samples["train"].patches
        kernels = pretrain(constants, objective, first, patches, stream, trace.watch, pretrained_by)
    if supervised:
        schedule = constants.steps_scratch, constants.lr_scratch
    else:
        schedule = constants.steps_tuned, constants.lr_tuned
    if classified_by != "sgd":
        schedule = schedule[0], constants.lr  # of a clock and of Adam
    start = Classifier(kernels, network.class_head(constants) if supervised else network.zero_head(constants))
    stream, watch = random_stream(constants, 4 if supervised else 6), trace.watch if supervised else network.unwatched
    final = classify(constants, start, samples["train"], schedule, stream, watch, classified_by)
    if objective in ("supervised", "none"):
        kernels = final.kernels
    return _result(constants, samples, kernels, final, trace), kernels


def _result(
    constants: Constants, samples: dict[str, Samples], kernels: Tensor, final: Classifier, trace: Trace
) -> Result:
    titles = {"training": "train", "multi-view": "test_multi", "single-view": "test_single"}
    shares = {title: correct(constants, final, samples[split]).double().mean(dim=-1) for title, split in titles.items()}
    mu = torch.tensor(constants.mu, dtype=torch.float64)
    shares["total error"] = 1 - torch.lerp(shares["multi-view"], shares["single-view"], mu)
    accuracies = {title: Estimate.over_seeds(values) for title, values in shares.items()}
    return Result(summary(constants, kernels), accuracies, trace)
