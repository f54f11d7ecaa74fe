"""Class-activation maps of any encoder: how much each patch contributes to the score of a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from mrp import api
from mrp.build import open_source
from mrp.config import ConfigError
from mrp.evaluate import logistic
from mrp.evaluate.split import split
from mrp.lab import images
from mrp.models.vit import Backbone, embed, encode, grid, pool
from mrp.objectives import classify
from mrp.report.looks import Score, contributions

CHUNK = 128  # images at once


@dataclass(frozen=True)
class Classifier:
    """An encoder with its own head, or with a head that was fitted to it."""

    model: api.Model
    head: logistic.Logistic | None  # on the mean patch token; None where the encoder has its own

    @property
    def backbone(self) -> Backbone:
        """The encoder."""
        return self.model.backbone

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return grid(self.backbone)

    def _scores(self, tokens: Tensor) -> Tensor:
        if self.head is not None:
            inputs = self.head.coordinates(_mean_token(self.backbone, tokens))
            return (inputs @ self.head.weights[:-1] + self.head.weights[-1]).float()
        objective = cast(classify.Objective, self.model.objective)
        scores: Tensor = objective.head(pool(self.backbone, tokens))
        return scores.float()

    def predict(self, prepared: Tensor) -> Tensor:
        """Returns the most likely class of each image."""
        with torch.no_grad():
            tokens = (encode(self.backbone, embed(self.backbone, part)).tokens for part in prepared.split(CHUNK))
            return torch.cat([self._scores(part).argmax(1) for part in tokens])

    def maps(self, prepared: Tensor, classes: Tensor) -> Tensor:
        """Returns what each patch contributes to the class (B N, at least 0): gradient times activation."""
        parts = zip(prepared.split(CHUNK), classes.split(CHUNK), strict=True)
        return torch.cat([contributions(self.backbone, part, self._score_of(wanted)).relu() for part, wanted in parts])

    def _score_of(self, classes: Tensor) -> Score:
        return lambda tokens: self._scores(tokens).gather(1, classes[:, None])


def classifier(model: api.Model, num_train: int) -> Classifier:
    """Returns a trained classifier as it is; another encoder gets a linear head fitted to so many training images."""
    objective = model.objective
    if isinstance(objective, classify.Objective) and not objective.config.frozen:
        return Classifier(model, None)
    source = open_source(model.run, "train")
    pixels, labels = images.read(source, model.run.data, f"{model.folder}: data.train", num_train)
    missing = set(range(len(source.classes))) - set(labels.tolist())
    if missing:
        raise ConfigError(
            f"{model.folder}: data.train: {len(labels)} images have no class {min(missing)}; raise --train"
        )
    return Classifier(model, logistic.train(_features(model, pixels), labels, split(labels, torch.arange(len(labels)))))


@torch.no_grad()
def _features(model: api.Model, pixels: Tensor) -> Tensor:
    """Returns the mean patch token of each image."""
    prepared = (model.module.prepare(part) for part in pixels.split(CHUNK))
    tokens = (encode(model.backbone, embed(model.backbone, part)).tokens for part in prepared)
    return torch.cat([_mean_token(model.backbone, part) for part in tokens])


def _mean_token(backbone: Backbone, tokens: Tensor) -> Tensor:
    return tokens[:, backbone.num_prefix_tokens :].mean(1)
