"""What objectives share: their base class, and images as rows of patches."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.config import ConfigError
from mrp.models.vit import VisionTransformer, embed, encode, pool


class Reconstruction(NamedTuple):
    """A picture's worth of an objective: what was hidden, and what it put there."""

    mask: Tensor  # B N bool
    images: Tensor  # B C H W, in the objective's (normalised) units, every patch predicted


class Objective(nn.Module):
    """One way to train a backbone; `backbone.state_dict()` is what is exported."""

    paints = False  # whether it predicts pixels, so that there is something to draw

    def __init__(self, backbone: VisionTransformer) -> None:
        super().__init__()
        self.backbone = backbone

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """The loss of one micro-batch."""

    def features(self, batch: Batch) -> Tensor:
        """One vector an image, from the whole image."""
        return pool(self.backbone, encode(self.backbone, embed(self.backbone, batch.images)).tokens)  # B D

    def reconstruct(self, batch: Batch) -> Reconstruction:
        """What the objective would paint over the hidden patches."""
        raise ConfigError("this objective predicts no pixels, so there is nothing to draw")

    def after_step(self, step: int, moved: Tensor) -> None:
        """Called after the optimizer: teachers follow here, unless `moved` (on the device) says that it was held back."""


def patchify(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cut images into patches, one flat row each (row, column, channel)."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch[0], q=patch[1])  # B N PQC


def unpatchify(patches: Tensor, patch: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The images that these patches were cut from."""
    return rearrange(
        patches, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], w=grid[1], p=patch[0], q=patch[1]
    )  # B C H W


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, as norm-pix targets use them (unbiased variance, eps 1e-6)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def hidden_variance(target: Tensor, mask: Tensor) -> Tensor:
    """Var(x2): the loss of the best constant prediction of the hidden patches (the collapse line of Theorem 3.6)."""
    hidden = target.detach() * mask[..., None]
    count = mask.sum()
    mean = hidden.sum((0, 1)) / count
    return hidden.square().sum() / count / target.shape[-1] - mean.square().mean()
