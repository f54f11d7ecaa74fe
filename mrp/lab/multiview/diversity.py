"""Diversity of the pretraining set: pretrained on some of the classes and fine-tuned on all, what is learned of which.

The number of images, of their pretraining steps, and all of fine-tuning are the same for every number of classes, so
that diversity alone varies. Images of a class show features of other classes too, faintly; that is the world "open". In
the world "closed" they show none of the classes that pretraining leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mrp.lab.estimate import Estimate
from mrp.lab.multiview.constants import Constants
from mrp.lab.multiview.data import Samples, draw, draw_splits, random_stream
from mrp.lab.multiview.measure import held
from mrp.lab.multiview.network import Classifier, classify, correct, first_kernels, pretrain, unwatched, zero_head

SHARES = (0.0, 0.1, 0.2, 0.5, 1.0)  # of the classes, in pretraining; 0: no pretraining
WORLDS = ("open", "closed")
METHODS = ("teacher", "patches")
TUNED = (20, 60, 180)  # steps of fine-tuning


@dataclass(frozen=True, slots=True)
class Row:
    """Pretrained on so many classes by one method in one world, and fine-tuned for so many steps."""

    world: str
    method: str
    classes: int
    tuned: int
    captured: dict[str, Estimate]  # by pretraining: the share of the features of seen and of unseen classes
    captured_tuned: dict[str, Estimate]  # the same after fine-tuning
    single_view: dict[str, Estimate]  # accuracy on test samples of seen and of unseen classes
    multi_view: dict[str, Estimate]


def run(constants: Constants) -> list[Row]:
    """Returns all rows; the test sets and those of fine-tuning are the same in all of them."""
    samples, rows = draw_splits(constants), []
    numbers = sorted({round(share * constants.k) for share in SHARES})
    for method in METHODS:
        for world in WORLDS:
            for classes in numbers:
                if classes in (0, constants.k) and world != WORLDS[0]:
                    continue  # the worlds are the same then
                rows += _rows(constants, samples, world, method, classes)
                print(f"{method}, {world} world, {classes} of {constants.k} classes", flush=True)
    return rows


def _rows(constants: Constants, samples: dict[str, Samples], world: str, method: str, classes: int) -> list[Row]:
    kernels = first_kernels(constants, random_stream(constants, 3))
    if classes:
        seen = draw(
            constants, constants.samples, constants.seeds, constants.mu, random_stream(constants, 0), classes,
            open_world=world == "open",
        )  # fmt: skip
        kernels = pretrain(constants, method, kernels, seen.patches, random_stream(constants, 5), unwatched)
    captured = _captured(constants, kernels, classes)
    stream, tuned, done, rows = random_stream(constants, 6), Classifier(kernels, zero_head(constants)), 0, []
    for steps in TUNED:  # plain descent has no memory, so it can be stopped and go on
        tuned = classify(constants, tuned, samples["train"], (steps - done, constants.lr_tuned), stream)
        done = steps
        single, multi = (_accuracy(constants, tuned, samples[f"test_{kind}"], classes) for kind in ("single", "multi"))
        after = _captured(constants, tuned.kernels, classes)
        rows.append(Row(world, method, classes, steps, captured, after, single, multi))
    return rows


def _captured(constants: Constants, kernels: Tensor, classes: int) -> dict[str, Estimate]:
    """Returns the share of the features of seen and of unseen classes that a kernel holds."""
    found = held(constants, kernels).pairs.any(dim=1).double()  # seeds F
    return _apart(found, torch.arange(constants.features).expand_as(found) < 2 * classes)


def _accuracy(constants: Constants, classifier: Classifier, samples: Samples, classes: int) -> dict[str, Estimate]:
    return _apart(correct(constants, classifier, samples).double(), samples.labels < classes)


def _apart(values: Tensor, seen: Tensor) -> dict[str, Estimate]:
    """Returns the means over seen and over unseen classes, as far as there are any, from one row per seed."""
    parts = {"seen": seen, "unseen": ~seen}
    return {
        name: Estimate.over_seeds((values * part).sum(1) / part.sum(1)) for name, part in parts.items() if part.any()
    }
