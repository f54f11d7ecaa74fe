"""SimMIM: encode all patches, a token for the hidden ones, and predict their pixels linearly (Xie et al., 2022)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.config import ConfigError, Node
from mrp.models.masking import unit_mask
from mrp.models.vit import VisionTransformer, embed, encode, grid, initialise
from mrp.objectives import _helpers, _uniformity


class Config(Node):
    """Options of SimMIM; of U-SimMIM with a weight on uniformity."""

    name: Literal["simmim"] = "simmim"
    mask_ratio: float = Field(0.6, gt=0, lt=1)
    mask_unit: int = Field(32, gt=0)  # pixels: what is hidden is hidden in squares of this side
    masks: int = Field(1, gt=0)  # views of each image in a step
    uniformity: _uniformity.Config = _uniformity.OFF

    @property
    def couples(self) -> bool:
        """Whether a sample's loss depends on the others in its micro-step."""
        return self.uniformity.weight > 0


class Objective(_helpers.Masked):
    """Masked image modelling of raw pixels."""

    paints = True

    def __init__(self, config: Config, backbone: VisionTransformer) -> None:
        super().__init__(backbone, config.masks, config.uniformity)
        embedding = backbone.patch_embed
        self.patch: tuple[int, int] = embedding.patch_size
        self.channels: int = embedding.proj.in_channels
        self.unit = _unit(config.mask_unit, self.patch, grid(backbone))
        num_units = embedding.num_patches // (self.unit[0] * self.unit[1])
        self.num_hidden = math.ceil(num_units * config.mask_ratio)
        if self.num_hidden == num_units:
            raise ConfigError(
                f"objective.mask_ratio: {config.mask_ratio} of {num_units} units leaves none visible; lower it"
            )
        self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.embed_dim))
        self.head = nn.Linear(backbone.embed_dim, self.patch[0] * self.patch[1] * self.channels)
        nn.init.normal_(self.mask_token, std=0.02)
        initialise(self.head)

    def forward(self, batch: Batch, mask: Tensor | None = None) -> Output:
        """The mean absolute error of the hidden pixels; a mask given from outside replaces the drawn one."""
        mask = self.mask(batch.keys) if mask is None else mask  # BM N
        latent, prediction = self.predict(batch.images, mask, self.path_keys(batch.keys))
        target = self.patchify(batch.images)  # B N CPQ
        error = rearrange(prediction.float(), "(b m) n d -> b m n d", m=self.masks) - target[:, None]
        per_patch = error.abs().sum(-1).flatten(0, 1)  # BM N
        num_pixels = mask.sum(1) * self.patch[0] * self.patch[1]
        per_view = (per_patch * mask).sum(1) / (num_pixels + 1e-5) / self.channels
        return self.outcome(per_view, latent, _helpers.constant_loss(target, mask, torch.abs))

    def draw(self, keys: Tensor, number: Tensor) -> Tensor:
        """Units at random."""
        return unit_mask(keys, grid(self.backbone), self.unit, self.num_hidden, number)

    def predict(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The encoder's tokens, and a prediction of the pixels of every patch, view by view."""
        tokens = embed(self.backbone, images, self.mask_token, mask)
        latent = encode(self.backbone, tokens, keys=keys).tokens  # BM P+N D
        return latent, self.head(latent[:, self.backbone.num_prefix_tokens :])  # BM N CPQ

    def patchify(self, images: Tensor) -> Tensor:
        """Patches in the official order of their pixels: by channel, row, column."""
        return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch[0], q=self.patch[1])

    def unpatchify(self, patches: Tensor) -> Tensor:
        """The images that these patches were cut from."""
        rows, (p, q) = grid(self.backbone)[0], self.patch
        return rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=p, q=q)

    def reconstruct(self, batch: Batch) -> _helpers.Reconstruction:
        """The predicted pixels."""
        mask = self.first_mask(batch.keys)
        return _helpers.Reconstruction(mask, self.unpatchify(self.predict(batch.images, mask)[1].float()))


def _unit(side: int, patch: tuple[int, int], grid_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches in a unit of this many pixels."""
    image = grid_size[0] * patch[0], grid_size[1] * patch[1]
    if side % patch[0] or side % patch[1] or image[0] % side or image[1] % side:
        raise ConfigError(
            f"objective.mask_unit: {side} pixels must be a multiple of the patch ({patch[0]}x{patch[1]}) "
            f"and divide the image ({image[0]}x{image[1]})"
        )
    return side // patch[0], side // patch[1]
