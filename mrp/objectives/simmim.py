"""SimMIM: replace the hidden patches by a token, encode all, predict pixels linearly (Xie et al., 2022)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mrp import methodkit as kit
from mrp.batch import Batch, Output
from mrp.config import ConfigError
from mrp.models.initial import draw_truncated
from mrp.models.masking import unit_mask
from mrp.models.vit import Backbone, grid
from mrp.schedules import ProperShare


class Config(kit.MaskedConfig):
    """Options of SimMIM, and of U-SimMIM where `uniformity` has a weight."""

    small: ClassVar[dict[str, Any]] = {"mask_unit": 8}
    name: Literal["simmim"] = "simmim"
    mask_ratio: ProperShare = 0.6  # the share of the patches that is hidden
    mask_unit: int = Field(32, gt=0)  # the side in pixels of the squares in which patches are hidden
    masks: int = Field(1, gt=0)  # masks per image and step
    uniformity: kit.UniformityConfig = kit.NO_UNIFORMITY


class Objective(kit.Masked):
    """Masked image modelling: the encoder sees all patches, the hidden ones as a mask token, and a linear head."""

    paints = True
    undecayed = frozenset({"cls_token", "pos_embed"})

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(backbone, config.masks, config.uniformity)
        embedding = backbone.patch_embed
        self.patch: tuple[int, int] = embedding.patch_size
        self.channels: int = embedding.proj.in_channels
        self.unit = kit.mask_unit(config.mask_unit, self.patch, grid(backbone))
        self.num_units: int = embedding.num_patches // (self.unit[0] * self.unit[1])
        self.hidden = kit.ScheduledCount(config.mask_ratio, "mask_ratio", self._count_hidden)
        self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.embed_dim))
        # The head starts as torch draws it, as in the released code.
        self.head = nn.Linear(backbone.embed_dim, self.patch[0] * self.patch[1] * self.channels)
        draw_truncated(self.mask_token)

    def forward(self, batch: Batch, mask: Tensor | None = None) -> Output:
        """Returns the mean absolute error of the hidden pixels; `mask` replaces the masks that the keys give."""
        mask = self.mask(batch.keys) if mask is None else mask  # BM N
        latent, prediction = self.predict(batch.images, mask, self.view_keys(batch.keys))
        target = kit.patchify(batch.images, self.patch, channels_first=True)  # B N CPQ
        weights = kit.pixel_weights(batch.present, self.patch, channels_first=True)  # B 1 CPQ
        per_patch = self.weighted(self.difference(prediction, target).abs(), weights).sum(-1)  # BM N
        num_pixels = mask.sum(1) * self.patch[0] * self.patch[1]
        per_view = (per_patch * mask).sum(1) / (num_pixels + 1e-5) / self.channels
        collapse = kit.collapse_loss(target, mask, torch.abs, weights)
        return self.build_output(per_view, latent, collapse, batch.step)

    def _count_hidden(self, ratio: float) -> int:
        hidden = math.ceil(self.num_units * ratio)
        if not 0 < hidden < self.num_units:
            raise ConfigError(
                f"objective.mask_ratio: {ratio} of {self.num_units} units leaves {self.num_units - hidden} visible; at "
                "least one must be visible and one hidden"
            )
        return hidden

    def draw_mask(self, keys: Tensor, draws: Tensor) -> Tensor:
        """Hides squares of patches at random."""
        return unit_mask(keys, grid(self.backbone), self.unit, self.hidden.count, draws)

    def predict(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the encoder's tokens and a prediction of the pixels of every patch, per view."""
        latent = self.encode_replaced(images, mask, self.mask_token, keys)  # BM P+N D
        return latent, self.head(latent[:, self.backbone.num_prefix_tokens :])  # BM N CPQ

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Returns the images of these predictions, whose pixels lie in the official order: channel, row, column."""
        return kit.unpatchify(patches, self.patch, grid(self.backbone), channels_first=True)

    def reconstruct(self, batch: Batch) -> kit.Reconstruction:
        """Returns the predicted pixels."""
        mask = self.first_mask(batch.keys)
        return kit.Reconstruction(mask, self.unpatchify(self.predict(batch.images, mask)[1].float()))
