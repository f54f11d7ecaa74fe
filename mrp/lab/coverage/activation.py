"""Class-activation maps of any encoder: which patches speak for a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from mrp import api
from mrp.config import ConfigError
from mrp.evaluate import logistic
from mrp.evaluate.split import split
from mrp.lab import samples
from mrp.models.vit import VisionTransformer, embed, encode, grid, pool
from mrp.objectives import classify

_CHUNK = 128


@dataclass(frozen=True)
class Classifier:
    """An encoder with its own head, or with one that was fitted to it."""

    model: api.Model
    head: logistic.Logistic | None  # on the mean of the patch tokens

    @property
    def backbone(self) -> VisionTransformer:
        """The encoder."""
        return self.model.backbone

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return grid(self.backbone)

    def prepare(self, images: Tensor) -> Tensor:
        """Normalised as this model was trained."""
        prepared: Tensor = self.model.module.prepare(images)
        return prepared

    def logits(self, images: Tensor) -> Tensor:
        """A score for each class, of normalised images."""
        tokens = encode(self.backbone, embed(self.backbone, images)).tokens
        if self.head is not None:
            inputs = self.head.coordinates(_mean_token(self.backbone, tokens))
            return (inputs @ self.head.weights[:-1] + self.head.weights[-1]).float()
        objective = cast(classify.Objective, self.model.objective)
        scores: Tensor = objective.head(pool(self.backbone, tokens))
        return scores.float()

    def predict(self, images: Tensor) -> Tensor:
        """The most likely class of each normalised image."""
        with torch.no_grad():
            return torch.cat([self.logits(part).argmax(1) for part in images.split(_CHUNK)])

    def maps(self, images: Tensor, classes: Tensor) -> Tensor:
        """How much each patch speaks for the class (B N, at least 0): gradient times activation before the last block.

        There and not after it, since patch tokens after the last block do not reach a class token.
        """
        return torch.cat([self._maps(i, c) for i, c in zip(images.split(_CHUNK), classes.split(_CHUNK), strict=True)])

    def _maps(self, images: Tensor, classes: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def catch(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(given[0].detach().requires_grad_())
            return (seen[0], *given[1:])

        blocks: Any = self.backbone.blocks
        hook = blocks[-1].register_forward_pre_hook(catch)
        try:
            with torch.enable_grad():
                score = self.logits(images).gather(1, classes[:, None]).sum()
                (gradient,) = torch.autograd.grad(score, seen)
        finally:
            hook.remove()
        return (gradient * seen[0].detach()).sum(-1)[:, self.backbone.num_prefix_tokens :].relu()


def classifier(model: api.Model, images: int) -> Classifier:
    """A trained classifier as it is; any other encoder frozen, with a linear head fitted to so many training images."""
    objective = model.objective
    if isinstance(objective, classify.Objective) and not objective.config.frozen:
        return Classifier(model, None)
    source = model.run.source("train")
    seen, labels = samples.read(source, model.run.data, f"{model.folder}: data.train", images)
    unseen = set(range(len(source.classes))) - set(labels.tolist())
    if unseen:
        raise ConfigError(
            f"{model.folder}: data.train: {len(labels)} images have no class {min(unseen)}; raise --train"
        )
    features = mean_tokens(model, seen)
    return Classifier(model, logistic.train(features, labels, split(labels, torch.arange(len(labels)))))


@torch.no_grad()
def mean_tokens(model: api.Model, images: Tensor) -> Tensor:
    """The mean patch token of each raw image."""
    parts = []
    for part in images.split(_CHUNK):
        tokens = encode(model.backbone, embed(model.backbone, model.module.prepare(part))).tokens
        parts.append(_mean_token(model.backbone, tokens))
    return torch.cat(parts)


def _mean_token(backbone: VisionTransformer, tokens: Tensor) -> Tensor:
    return tokens[:, backbone.num_prefix_tokens :].mean(1)
