"""MaskFeat: replace hidden blocks by a token, encode all, predict their oriented gradients (Wei et al., 2022)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange, reduce
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mrp import methodkit as kit
from mrp.batch import Batch, Output
from mrp.config import ConfigError
from mrp.models.initial import initialise_normal
from mrp.models.vit import Backbone


class Config(kit.MaskedConfig):
    """Options of MaskFeat for images; the official backbone has `positions: learned` and `init: normal`."""

    small: ClassVar[dict[str, Any]] = {"smallest_block": 2, "cell": 2}
    name: Literal["maskfeat"] = "maskfeat"
    mask_ratio: float = Field(0.4, gt=0, lt=1)  # the share of the patches that is hidden
    smallest_block: int = Field(15, gt=0)  # how many patches a block has, at the least
    narrowest_block: float = Field(0.3, gt=0, le=1)  # the shorter side of a block over its longer one, at the least
    # beit: drawn as BEiT's code does; trimmed: drawn as in earlier versions of mrp, with the last block trimmed.
    blocks: Literal["trimmed", "beit"] = "trimmed"
    masks: int = Field(1, gt=0)  # masks per image and step
    bins: int = Field(9, gt=0)  # how many directions of gradients are told apart, from 0 to 180 degrees
    cell: int = Field(8, gt=0)  # the side in pixels of the squares whose gradients are counted together
    # The side in pixels of the Gaussian windows, side by side, that weigh gradients; null: all weigh alike.
    window: int | None = Field(None, gt=0)
    uniformity: kit.UniformityConfig = kit.NO_UNIFORMITY


class Objective(kit.BlockMasked):
    """Masked image modelling whose targets are histograms of oriented gradients (HOG) in place of pixels."""

    undecayed = frozenset({"mask_token"})

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.config = config
        embedding = backbone.patch_embed
        self.patch: tuple[int, int] = embedding.patch_size
        for name, side, limit in (("cell", config.cell, self.patch), ("window", config.window, embedding.img_size)):
            if side is not None and any(length % side for length in limit):
                what = "the patch" if name == "cell" else "the image"
                raise ConfigError(f"objective.{name}: {side} pixels do not divide {what} ({limit[0]}x{limit[1]})")
        self.num_cells = self.patch[0] * self.patch[1] // config.cell**2  # of a patch
        self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.embed_dim))
        self.head = nn.Linear(backbone.embed_dim, embedding.proj.in_channels * config.bins * self.num_cells)
        nn.init.normal_(self.mask_token, std=0.02)
        initialise_normal(self.head)

    def forward(self, batch: Batch, mask: Tensor | None = None) -> Output:
        """Returns the mean squared error at the hidden patches; `mask` replaces the masks that the keys give."""
        mask = self.mask(batch.keys) if mask is None else mask  # BM N
        target = self.target(batch.images)  # B N F
        latent, prediction = self.predict(batch.images, mask, self.view_keys(batch.keys))
        weights = kit.pixel_weights(batch.present, (self.config.bins, self.num_cells), channels_first=True)  # B 1 F
        per_patch = self.weighted(self.difference(prediction, target).square(), weights).mean(-1)  # BM N
        per_view = (per_patch * mask).sum(1) / mask.sum(1)
        return self.build_output(per_view, latent, kit.collapse_loss(target, mask, weights=weights), batch.step)

    def target(self, images: Tensor) -> Tensor:
        """Returns the histograms of each patch's cells, side by side."""
        config = self.config
        cells = oriented_gradients(images.float(), config.bins, config.cell, config.window)
        rows, columns = self.patch[0] // config.cell, self.patch[1] // config.cell
        return rearrange(cells, "b c n (h p) (w q) -> b (h w) (c n p q)", p=rows, q=columns)

    def predict(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the encoder's tokens and a prediction of the target of every patch, per view."""
        latent = self.encode_replaced(images, mask, self.mask_token, keys)  # BM P+N D
        return latent, self.head(latent[:, self.backbone.num_prefix_tokens :])  # BM N F


def oriented_gradients(images: Tensor, bins: int, cell: int, window: int | None = None) -> Tensor:
    """Returns a histogram of the directions of gradients per cell and channel, each of length 1 (Dalal, 2005).

    A pixel counts with the size of its gradient, in one bin alone; opposite directions share a bin. Neighbours are
    subtracted before rows are added, so that the gradient across a mirrored border is exactly 0 on every device.
    """
    padded = functional.pad(images, (1, 1, 1, 1), "reflect")
    across, down = padded[..., :-2] - padded[..., 2:], padded[..., :-2, :] - padded[..., 2:, :]
    across = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]  # B C H W
    down = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    size = torch.hypot(across, down)
    if window is not None:
        size = size * _gaussian(window, size)
    number = (torch.atan2(across, down) * (bins / math.pi)).floor() % bins
    counts = [
        reduce(torch.where(number == each, size, 0.0), "b c (h p) (w q) -> b c h w", "sum", p=cell, q=cell)
        for each in range(bins)
    ]
    return functional.normalize(torch.stack(counts, 2), dim=2)  # B C bins h w


def _gaussian(window: int, like: Tensor) -> Tensor:
    """Returns Gaussian weights with half a window as deviation, repeated over images of this size."""
    offset = torch.arange(window, device=like.device) - (window - 1) / 2
    weights = (-offset.square() / (2 * (window // 2) ** 2)).exp()
    return torch.outer(weights, weights).repeat(like.shape[-2] // window, like.shape[-1] // window)
