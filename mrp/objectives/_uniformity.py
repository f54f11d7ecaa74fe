"""The penalty that keeps features from collapsing, for every method that hides patches (U-MAE; Zhang et al., 2022)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mrp.config import ConfigError, Node
from mrp.models.vit import VisionTransformer
from mrp.objectives._processes import mean_over_processes


class Config(Node):
    """`uniformity:`, or its weight alone; 0 leaves it out."""

    weight: float = Field(ge=0)
    feature: Literal["cls", "mean"] = "cls"
    renormalise: bool = False  # apply the encoder's last norm a second time, as the released code does

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"weight": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    def check(self, backbone: VisionTransformer) -> None:
        """Refuse a feature that the backbone does not have."""
        if self.weight and self.feature == "cls" and not backbone.has_class_token:
            raise ConfigError("objective.uniformity.feature: cls needs backbone.class_token; take mean")
        if self.weight and self.renormalise and isinstance(backbone.norm, nn.Identity):
            raise ConfigError("objective.uniformity.renormalise: the backbone has no last norm; leave it out")


OFF = Config(weight=0)


def penalty(config: Config, backbone: VisionTransformer, latent: Tensor, draws: int) -> Tensor:
    """The penalty of these views: one moment a draw, for two masks of one image are no negatives."""
    return gram(rearrange(feature(config, backbone, latent), "(b m) d -> m b d", m=draws))


def feature(config: Config, backbone: VisionTransformer, latent: Tensor) -> Tensor:
    """What is kept apart, of each view."""
    pooled = latent[:, 0] if config.feature == "cls" else latent[:, backbone.num_prefix_tokens :].mean(1)
    return backbone.norm(pooled) if config.renormalise else pooled  # BM D


def gram(features: Tensor) -> Tensor:
    """The mean squared cosine between samples, over all processes and with themselves: 1 where all are alike.

    It is written as ||Z^T Z / n||^2, so that processes exchange D x D numbers whatever the batch.
    """
    with torch.autocast(features.device.type, enabled=False):
        directions = functional.normalize(features.float(), dim=-1)  # M B D
        moment = mean_over_processes(directions.mT @ directions / directions.shape[1])
        return moment.square().sum((1, 2)).mean()
