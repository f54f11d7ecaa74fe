"""What objectives share: their base classes, and images as rows of patches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.config import ConfigError
from mrp.models.masking import fold
from mrp.models.vit import VisionTransformer, embed, encode, pool
from mrp.objectives import _uniformity


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
        """Called after the optimizer: teachers follow here, unless `moved`, on the device, says it was held back."""


class Masked(Objective):
    """A method that hides patches: some views of each image, one mask each, and features kept apart if asked for."""

    def __init__(self, backbone: VisionTransformer, masks: int, uniformity: _uniformity.Config) -> None:
        super().__init__(backbone)
        uniformity.check(backbone)
        self.masks = masks
        self.uniformity = uniformity

    @abstractmethod
    def draw(self, keys: Tensor, number: Tensor) -> Tensor:
        """What is hidden of the image with this key, in the draw of this number."""

    def mask(self, keys: Tensor) -> Tensor:
        """What is hidden in each view, image by image."""
        numbers = torch.arange(self.masks, device=keys.device).repeat(len(keys))
        return self.draw(keys.repeat_interleave(self.masks), numbers)  # BM N

    def first_mask(self, keys: Tensor) -> Tensor:
        """What is hidden in the first view alone."""
        return self.draw(keys, torch.zeros_like(keys))  # B N

    def path_keys(self, keys: Tensor) -> Tensor:
        """The key of each view, from which its stochastic depth is drawn."""
        return fold(keys[:, None], torch.arange(self.masks, device=keys.device)).flatten()  # BM

    def outcome(self, per_view: Tensor, latent: Tensor, variance: Tensor) -> Output:
        """The mean loss of the views, and what uniformity adds to it; `variance` is what a constant would cost."""
        per_sample = rearrange(per_view, "(b m) -> b m", m=self.masks).mean(1)
        loss = per_sample.mean()
        metrics = {"reconstruction": loss.detach(), "target_variance": variance}
        if self.uniformity.weight:
            penalty = _uniformity.penalty(self.uniformity, self.backbone, latent, self.masks)
            loss = loss + self.uniformity.weight * penalty
            metrics["uniformity"] = penalty.detach()
        return Output(
            loss=loss,
            metrics={"loss": loss.detach(), **metrics},
            per_sample={"loss": per_sample.detach()},
            features=pool(self.backbone, latent)[:: self.masks].detach(),
        )


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


def constant_loss(target: Tensor, mask: Tensor, error: Callable[[Tensor], Tensor] = torch.square) -> Tensor:
    """What the mean of all hidden patches would cost as a prediction of each: Theorem 3.6's collapse line."""
    target = target.detach()  # B N D
    times = rearrange(mask, "(b m) n -> b m n", b=len(target)).sum(1)[..., None]  # in how many views each is hidden
    count = times.sum()
    mean = (target * times).sum((0, 1)) / count
    return (error(target - mean) * times).sum() / count / target.shape[-1]
