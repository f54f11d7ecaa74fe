"""A linear head for tags: which features it reads and how strong its penalty is are chosen on training images.

One logistic regression per tag, all fitted together; images of which nobody knows whether they have a tag do not count
for it. Everything here knows a training set and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrp.config import ConfigError
from mrp.data.batches import known_tags
from mrp.data.order import Ints
from mrp.evaluate.logistic import STRENGTHS, TAGS, Coordinates, fit, logits_of, path
from mrp.evaluate.sealed import Decision
from mrp.evaluate.split import Split, split
from mrp.evaluate.sweep import Input
from mrp.evaluate.table import Table
from mrp.evaluate.tagged import Floats, Tags, rated

_AT_ONCE = 4096  # rows whose scores are computed together


class Tried(NamedTuple):
    """Features and a strength that were tried, and the loss on the held-out images."""

    layer: str
    pooling: str
    l2: float
    loss: float


@dataclass(frozen=True, slots=True)
class Head(Decision):
    """One logistic regression per tag, fitted to all training images, and what was tried before."""

    input: Input
    coordinates: Coordinates
    weights: Tensor  # D+1 tags; zero for those that could not be learned
    learned: tuple[int, ...]  # the numbers of the others
    chosen: Tried
    tried: tuple[Tried, ...]
    num_train: int

    def scores(self, table: Table) -> Floats:
        """Returns how likely each image has each tag, as logits (images, tags)."""
        device, blocks = self.weights.device, self.input.blocks
        parts = (table.rows(blocks, rows).to(device) for rows in table.chunks(_AT_ONCE))
        found: Floats = torch.cat([logits_of(self.coordinates(part), self.weights).cpu() for part in parts]).numpy()
        return found


def learn(
    table: Table, tags: Tags, candidates: Sequence[Input], rows: Ints, device: torch.device,
    strengths: Sequence[float] = STRENGTHS,
) -> Head:  # fmt: skip
    """Chooses features and strength by the loss on held-out images, then fits on all of these rows.

    The loss counts each tag that is known of some held-out image, also where none of them has it, and it is what heads
    are fitted by; average precision would hang on the few images that have a rare tag.
    """
    tags = tags[rows]
    parts = held_out(tags, table.groups[torch.from_numpy(rows)])
    learned = sorted({*rated(tags)} & {*rated(tags[parts.fitting])})
    if not (tags[parts.held_out][:, learned] >= 0).any():
        raise ConfigError(
            f"data.train: {len(parts.held_out):,} of {len(rows):,} images are held out, and no tag can be learned from "
            "the others and judged on these; give more images of which tags are known"
        )
    targets = torch.full(tags.shape, torch.nan, dtype=torch.float64)
    targets[:, learned] = known_tags(tags)[:, learned].double()
    targets = targets.to(device)
    best: tuple[Tried, Input, Coordinates, Tensor] | None = None
    tried = list[Tried]()
    for one in candidates:
        features = table.rows(one.blocks, rows).to(device)
        coordinates = Coordinates.of(features)
        for trial, weights in _tried(one, coordinates(features), targets, parts, strengths):
            tried.append(trial)
            if best is None or trial.loss < best[0].loss:
                best = trial, one, coordinates, weights
    assert best is not None
    chosen, one, coordinates, weights = best
    weights = fit(coordinates(table.rows(one.blocks, rows).to(device)), targets, chosen.l2, weights, loss=TAGS)
    return Head(one, coordinates, weights, tuple(learned), chosen, tuple(tried), len(rows))


def _tried(
    one: Input, inputs: Tensor, targets: Tensor, parts: Split, strengths: Sequence[float]
) -> Iterator[tuple[Tried, Tensor]]:
    """Yields the strengths from strong to weak, to the first that is worse than the one before: weak ones take long."""
    before = np.inf
    for l2, score, weights in path(inputs, targets, parts, targets.shape[1], strengths, TAGS):
        yield Tried(one.layer, one.pooling, l2, -score), weights
        if -score > before:
            return
        before = -score


def held_out(tags: Tags, groups: Tensor) -> Split:
    """Holds out a tenth, by whole groups; an image counts as one of its rarest tag, so that this is in both parts."""
    return split(torch.from_numpy(rarest(tags)), groups)


def rarest(tags: Tags) -> NDArray[np.int64]:
    """Returns the number of each image's rarest tag; the number of tags where it has none."""
    counts = (tags == 1).sum(0)
    order = np.argsort(counts, kind="stable")
    has = np.concatenate([tags[:, order] == 1, np.ones((len(tags), 1), bool)], axis=1)
    found: NDArray[np.int64] = np.append(order, len(order))[has.argmax(1)]
    return found
