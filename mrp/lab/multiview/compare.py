"""The multi-view data model of Pan, Zhou and Yan (ICLR 2023): which features MRP captures, and supervised learning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mrp.config import ConfigError, nearest
from mrp.lab.multiview.constants import Settings
from mrp.lab.multiview.data import Samples, draw
from mrp.lab.multiview.measure import Spread, correlations, held, summary
from mrp.lab.multiview.network import (
    Classifier,
    accuracy,
    class_head,
    classify,
    first_kernels,
    pretrain_patches,
    pretrain_teacher,
    zero_head,
)

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
    "steps_scratch": (200, 400, 800, 1600),
}
MAP = {"theta": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), "m": (1.0, 2.0, 4.0, 8.0, 16.0)}
PRETRAINING = {"teacher": pretrain_teacher, "patches": pretrain_patches}
PICTURES = 4  # correlation matrices over training
POINTS = 30  # of the curve of captured features


class Trace:
    """What happened on the way; nothing is noted where no steps are given."""

    def __init__(self, settings: Settings, steps: int) -> None:
        self.settings = settings
        self.noted = {round(steps * point / POINTS) for point in range(POINTS + 1)} if steps else set()
        self.pictured = {round(steps * (point / (PICTURES - 1)) ** 2) for point in range(PICTURES)} if steps else set()
        self.captured: dict[int, list[float]] = {}  # the share, by step and seed
        self.pictures: dict[int, Tensor] = {}  # the first seed's kernels against features, by step

    def watch(self, step: int, kernels: Tensor) -> None:
        """Take note of the kernels, at some steps."""
        if step in self.noted:
            self.captured[step] = held(self.settings, kernels).captured.tolist()
        if step in self.pictured:
            self.pictures[step] = correlations(self.settings, kernels)[0].clone()


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one method."""

    kernels: dict[str, Spread]  # after pretraining, or after supervised training
    accuracy: dict[str, Spread]  # multi, single, training, and the error on the mixture
    trace: Trace


@dataclass(frozen=True, slots=True)
class Problem:
    """Data, and the first kernels, which every method starts from."""

    training: Samples
    multi: Samples
    single: Samples
    kernels: Tensor

    @classmethod
    def of(cls, settings: Settings) -> Problem:
        """All of it follows from the seed."""
        kinds = ((settings.samples, settings.mu), (settings.tests, 0.0), (settings.tests, 1.0))
        training, multi, single = (
            draw(settings, num, settings.seeds, kind, _generator(settings, part))
            for part, (num, kind) in enumerate(kinds)
        )
        return cls(training, multi, single, first_kernels(settings, _generator(settings, 3)))


def compare(settings: Settings, methods: Iterable[str] = tuple(METHODS), traced: bool = True) -> dict[str, Result]:
    """Train by each method on the same data from the same first kernels."""
    problem = Problem.of(settings)
    return {method: _train(settings, problem, method, traced) for method in methods}


def varied(settings: Settings, **values: float) -> Settings:
    """Other constants, checked as those of the command line are."""
    kinds = {name: int(value) if isinstance(getattr(settings, name), int) else value for name, value in values.items()}
    try:
        return Settings.model_validate(settings.model_dump() | kinds)
    except ValueError as error:
        raise ConfigError(f"{values}: {error}") from None


def sweep_values(name: str) -> tuple[float, ...]:
    """The values at which a constant is looked at."""
    if name not in SWEEPS:
        hint = nearest(name, SWEEPS) or f"; there are {', '.join(SWEEPS)}"
        raise ConfigError(f"--sweep: there is no sweep over '{name}'{hint}")
    return SWEEPS[name]


def sweep(settings: Settings, name: str, tell: Callable[[str], None]) -> dict[float, dict[str, Result]]:
    """Every method at each value of one constant."""
    results = {}
    for value in sweep_values(name):
        results[value] = compare(varied(settings, **{name: value}), traced=False)
        tell(f"{name} = {value:g}")
    return results


def map_pretraining(settings: Settings, tell: Callable[[str], None]) -> list[list[Result]]:
    """The teacher's setting over mask ratio and kernels a class: a row for each ratio."""
    rows = []
    for theta in MAP["theta"]:
        cells = [varied(settings, theta=theta, m=m) for m in MAP["m"]]
        rows.append([compare(cell, ["teacher"], traced=False)["teacher"] for cell in cells])
        tell(f"theta = {theta:g}")
    return rows


def largest_ratio(settings: Settings) -> float:
    """The mask ratio above which small kernels shrink in the teacher's setting, by the expected gradient.

    Averaged over masks, a patch that answers a pulls its kernel by (tau^q - 1) A - theta / (1 - theta) a, where A is
    the sum of answers, C a for a feature spread evenly over C patches: theta / (1 - theta) must be below C (tau^q - 1).
    """
    shares = 1 + settings.uneven * (2 * torch.rand(20_000, settings.spread, generator=_generator(settings, 7)) - 1)
    answers = (shares / shares.sum(dim=-1, keepdim=True)).double() ** settings.q
    patches = answers.sum(dim=-1).square().mean() / answers.square().sum(dim=-1).mean()  # what C comes to
    gain = float(patches) * (settings.tau**settings.q - 1)
    return max(0.0, gain / (1 + gain))


def _generator(settings: Settings, part: int) -> torch.Generator:
    """Draws of their own for each part, so that one part's length does not move another's."""
    return torch.Generator().manual_seed(settings.seed * 16 + part)


def _train(settings: Settings, problem: Problem, method: str, traced: bool) -> Result:
    """One method from beginning to end; pretraining is followed by fine-tuning."""
    steps = settings.steps_scratch if method == "scratch" else settings.steps
    trace = Trace(settings, steps if traced else 0)
    if method == "scratch":
        start, schedule = Classifier(problem.kernels, class_head(settings)), (steps, settings.lr_scratch)
        final = classify(settings, start, problem.training, schedule, _generator(settings, 4), trace.watch)
        kernels = final.kernels
    else:
        unlabelled = problem.training.patches
        kernels = PRETRAINING[method](settings, problem.kernels, unlabelled, _generator(settings, 5), trace.watch)
        start, schedule = Classifier(kernels, zero_head(settings)), (settings.steps_tuned, settings.lr_tuned)
        silent = Trace(settings, 0)
        final = classify(settings, start, problem.training, schedule, _generator(settings, 6), silent.watch)
    return Result(summary(settings, kernels), _accuracies(settings, problem, final), trace)


def _accuracies(settings: Settings, problem: Problem, classifier: Classifier) -> dict[str, Spread]:
    parts = {"training": problem.training, "multi-view": problem.multi, "single-view": problem.single}
    found = {name: accuracy(settings, classifier, samples) for name, samples in parts.items()}
    found["total error"] = 1 - torch.lerp(
        found["multi-view"], found["single-view"], torch.tensor(settings.mu, dtype=torch.float64)
    )
    return {name: Spread.of(values) for name, values in found.items()}
