"""The uniformity penalty, which keeps the features of a masked method from collapsing (U-MAE; Zhang et al., 2022)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from mrp.config import ConfigError, Node
from mrp.methodkit.processes import mean_over_processes
from mrp.models.vit import VisionTransformer
from mrp.schedules import NonNegative


class UniformityConfig(Node):
    """`uniformity:` in a method's options, or its weight alone; weight 0 leaves the penalty out."""

    short: ClassVar[type | None] = float

    weight: NonNegative  # of the uniformity loss beside the method's own
    feature: Literal["cls", "mean"] = "cls"  # what is spread out: the class token, or the mean of the patch tokens
    renormalise: bool = False  # apply the encoder's last norm a second time, as the released code does

    @model_validator(mode="before")
    @classmethod
    def _weight_alone(cls, value: Any) -> Any:
        return {"weight": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    def check(self, backbone: VisionTransformer) -> None:
        """Refuses a feature that the backbone does not have."""
        if self.weight and self.feature == "cls" and not backbone.has_class_token:
            raise ConfigError("objective.uniformity.feature: cls needs backbone.class_token; take mean")
        if self.weight and self.renormalise and isinstance(backbone.norm, nn.Identity):
            raise ConfigError("objective.uniformity.renormalise: the backbone has no last norm; leave it out")


NO_UNIFORMITY = UniformityConfig(weight=0)


def uniformity_penalty(config: UniformityConfig, backbone: VisionTransformer, latent: Tensor, num_masks: int) -> Tensor:
    """Returns the penalty on the encoder's output, averaged over the masks.

    Each mask of the images has a penalty of its own, because two masks of one image must not be pushed apart.
    """
    features = uniformity_feature(config, backbone, latent)
    return gram_penalty(rearrange(features, "(b m) d -> m b d", m=num_masks))


def uniformity_feature(config: UniformityConfig, backbone: VisionTransformer, latent: Tensor) -> Tensor:
    """Returns the vector of each view that the penalty acts on: its class token, or the mean of its patch tokens."""
    pooled = latent[:, 0] if config.feature == "cls" else latent[:, backbone.num_prefix_tokens :].mean(1)
    return backbone.norm(pooled) if config.renormalise else pooled  # BM D


def gram_penalty(features: Tensor) -> Tensor:
    """Returns the mean squared cosine over all pairs of samples of all processes, averaged over the first axis.

    It is 1 when all features point the same way. It is computed as ||Z^T Z / n||^2, so that the processes exchange
    D x D numbers however large the batch is.
    """
    with torch.autocast(features.device.type, enabled=False):
        directions = functional.normalize(features.float(), dim=-1)  # M B D
        moment = mean_over_processes(directions.mT @ directions / directions.shape[1])
        return moment.square().sum((1, 2)).mean()
