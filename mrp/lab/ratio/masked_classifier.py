"""A classifier of what a mask leaves visible, one network for all mask ratios: a method for `mrp lab ratio`."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mrp import methodkit as kit
from mrp.batch import Batch, Output
from mrp.config import ConfigError, Node
from mrp.models.masking import below, random_mask
from mrp.models.vit import Backbone
from mrp.schedules import Length

_DRAW = 0x7261  # sets the number of visible patches of a step apart from all else that is random


class Config(Node):
    """Options of the masked classifier."""

    name: Literal["masked_classifier"] = "masked_classifier"
    classes: int = Field(gt=1)  # of the data


class Objective(kit.Masked):
    """Cross-entropy of a linear head on the mean of the visible patches' tokens, encoded as MAE's encoder does.

    Each step shows as many patches as a uniform draw says, from one to all of them.
    """

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(backbone, masks=1, uniformity=kit.NO_UNIFORMITY)
        self.num_patches: int = backbone.patch_embed.num_patches
        self.num_visible = self.num_patches
        self.head = nn.Linear(backbone.embed_dim, config.classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def before_step(self, step: int, length: Length) -> None:
        """Draws how many patches are visible: from the step's number alone, so that a resumed run draws the same."""
        super().before_step(step, length)
        self.num_visible = 1 + int(below(self.num_patches, torch.tensor(step), _DRAW))

    def draw_mask(self, keys: Tensor, draws: Tensor) -> Tensor:
        """Hides patches at random, as MAE does."""
        return random_mask(keys, self.num_patches, self.num_patches - self.num_visible, draws)

    def forward(self, batch: Batch) -> Output:
        """Returns the cross-entropy, and how many answers are right."""
        if batch.labels is None:
            raise ConfigError("objective: the masked classifier needs labels, and the data has none; take other data")
        logits = self.predict(batch.images, self.mask(batch.keys), self.num_visible, self.view_keys(batch.keys))
        per_sample = functional.cross_entropy(logits, batch.labels, reduction="none")
        loss, right = per_sample.mean(), (logits.argmax(1) == batch.labels).float()
        return Output(
            loss=loss,
            metrics={"loss": loss.detach(), "accuracy": right.mean()},
            per_sample={"loss": per_sample.detach()},
        )

    def predict(self, images: Tensor, mask: Tensor, num_visible: int, keys: Tensor | None = None) -> Tensor:
        """Returns a score for each class (B C) from so many patches, which the masks (B N) leave visible."""
        latent, _ = self.encode_visible(images, mask, num_visible, keys)
        scores: Tensor = self.head(latent[:, self.backbone.num_prefix_tokens :].mean(1))
        return scores.float()
