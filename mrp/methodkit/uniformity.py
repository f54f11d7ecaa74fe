"""Penalties that keep the features of a masked method from collapsing: U-MAE's uniformity, and LeJEPA's SIGReg."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mrp.config import ConfigError, Node
from mrp.methodkit.processes import mean_over_processes, num_processes
from mrp.models.masking import normal
from mrp.models.vit import Backbone
from mrp.schedules import NonNegative

FARTHEST, POINTS = 3.0, 17  # where SIGReg compares characteristic functions: evenly from 0 to FARTHEST


class UniformityConfig(Node):
    """`uniformity:`, a penalty that spreads features out; a number alone is its weight, and 0 leaves it out."""

    short: ClassVar[type | None] = float

    weight: NonNegative  # the weight of the uniformity loss beside the method's own loss
    # What is penalised: the squared cosines of pairs (U-MAE), or how far features are from normal numbers (LeJEPA).
    kind: Literal["gram", "sigreg"] = "gram"
    slices: int = Field(256, gt=0)  # of sigreg: along how many random directions per step the features are looked at
    feature: Literal["cls", "mean"] = "cls"  # what is spread out: the class token, or the mean of the patch tokens
    renormalise: bool = False  # apply the encoder's last norm a second time, as the released code does

    @model_validator(mode="before")
    @classmethod
    def _weight_alone(cls, value: Any) -> Any:
        return {"weight": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    def check(self, backbone: Backbone) -> None:
        """Refuses a feature that the backbone does not have."""
        if self.weight and self.feature == "cls" and not backbone.has_class_token:
            raise ConfigError("objective.uniformity.feature: cls needs backbone.class_token; take mean")
        if self.weight and self.renormalise and isinstance(backbone.norm, nn.Identity):
            raise ConfigError("objective.uniformity.renormalise: the backbone has no last norm; leave it out")


NO_UNIFORMITY = UniformityConfig(weight=0)


def uniformity_penalty(
    config: UniformityConfig, backbone: Backbone, latent: Tensor, num_masks: int, step: Tensor
) -> Tensor:
    """Returns the penalty on the encoder's output, averaged over the masks.

    Each mask of the images has a penalty of its own, because two masks of one image must not be pushed apart.
    """
    features = rearrange(uniformity_feature(config, backbone, latent), "(b m) d -> m b d", m=num_masks)
    if config.kind == "gram":
        return gram_penalty(features)
    return sigreg_statistic(features, random_directions(step, config.slices, features.shape[-1])).mean()


def uniformity_feature(config: UniformityConfig, backbone: Backbone, latent: Tensor) -> Tensor:
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


def random_directions(step: Tensor, count: int, width: int) -> Tensor:
    """Returns unit vectors, evenly spread over all directions: the same on all processes, others at each step."""
    dimension = torch.arange(width, device=step.device)[:, None]
    return functional.normalize(normal(step, dimension, torch.arange(count, device=step.device)), dim=0)  # D S


def sigreg_statistic(features: Tensor, directions: Tensor) -> Tensor:
    """Returns, per mask and direction, how far the features of all processes are from N(0, 1) along it.

    This is LeJEPA's statistic (Balestriero and LeCun, 2025), after Epps and Pulley: the squared distance between the
    characteristic functions, times the number of samples. It is near 1 for normal numbers and grows with the number of
    samples where features are anything else, so it keeps them from collapsing and also sets their mean and their size.
    The processes exchange two numbers per direction and point.
    """
    with torch.autocast(features.device.type, enabled=False):
        points = torch.linspace(0, FARTHEST, POINTS, device=features.device)
        wanted = (-points.square() / 2).exp()  # the characteristic function of N(0, 1), which is also the weight
        angles = (features.float() @ directions)[..., None] * points  # M B S T
        real, imaginary = mean_over_processes(torch.stack([angles.cos(), angles.sin()]).mean(2))  # M S T
        distance = ((real - wanted).square() + imaginary.square()) * wanted
        samples = num_processes() * features.shape[1]
        return samples * 2 * torch.trapezoid(distance, points)  # M S
