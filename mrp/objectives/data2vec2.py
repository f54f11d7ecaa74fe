"""data2vec 2: one teacher's view of an image for many masked ones, a small decoder for each (Baevski et al., 2023)."""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from mrp.batch import Batch, Output
from mrp.config import ConfigError, Node
from mrp.models.decoder import Convolution, ConvolutionConfig
from mrp.models.masking import gather_tokens, inverse_block_mask, keyed_noise, noise_table, visible_places
from mrp.models.vit import VisionTransformer, embed, encode, grid
from mrp.objectives import _helpers, _teacher, _uniformity


class Config(Node):
    """Options of data2vec 2 for images; the official backbone has `norm: post`."""

    name: Literal["data2vec2"] = "data2vec2"
    mask_ratio: float = Field(0.8, gt=0, lt=1)
    block: int = Field(3, gt=0)  # patches: the side of the squares that stay visible
    adjustment: float = Field(0.07, ge=0, lt=1)  # so much more is kept at first, since squares overlap
    masks: int = Field(16, gt=0)  # views of each image in a step
    layers: int = Field(10, gt=0)  # the target is the mean of so many last blocks
    class_weight: float = Field(2.56, ge=0)  # of the class token's error, as a multiple of its mean
    noise: float = Field(0.01, ge=0)  # standard deviation of what the decoder finds at hidden patches
    decoder: ConvolutionConfig = ConvolutionConfig()
    teacher: _teacher.Config = _teacher.Config(decay=0.9998, last=0.99999, steps=100_000)
    uniformity: _uniformity.Config = _uniformity.OFF

    @property
    def couples(self) -> bool:
        """Whether a sample's loss depends on the others in its micro-step."""
        return self.uniformity.weight > 0


class Objective(_helpers.Masked):
    """Self-distillation of contextual targets, many masks a teacher's pass."""

    noise: Tensor

    def __init__(self, config: Config, backbone: VisionTransformer) -> None:
        super().__init__(backbone, config.masks, config.uniformity)
        self.config = config
        self.num_patches: int = backbone.patch_embed.num_patches
        kept = 1 - config.mask_ratio
        self.num_visible = int(self.num_patches * kept)
        self.num_blocks = int(self.num_patches * (kept + config.adjustment) / config.block**2)
        if not 0 < self.num_visible < self.num_patches:
            raise ConfigError(
                f"objective.mask_ratio: {config.mask_ratio} of {self.num_patches} patches leaves {self.num_visible} "
                "visible; at least one must be visible and one hidden"
            )
        self.decoder = Convolution(config.decoder, backbone.embed_dim, grid(backbone), backbone.num_prefix_tokens)
        self.register_buffer("noise", noise_table(self.num_patches * backbone.embed_dim), persistent=False)
        self.teacher = _teacher.Teacher(config.teacher, backbone, config.layers, "added")

    def forward(self, batch: Batch, mask: Tensor | None = None) -> Output:
        """The squared error at the hidden patches and of the class token; a mask given replaces the drawn one."""
        mask = self.mask(batch.keys) if mask is None else mask  # BM N
        target = self.target(batch.images)  # B N D
        latent, prediction = self.predict(batch.images, mask, self.path_keys(batch.keys))
        scale = target.shape[-1] ** -0.5
        error = rearrange(prediction.float(), "(b m) n d -> b m n d", m=self.masks) - target[:, None]
        per_patch = error.square().sum(-1).flatten(0, 1) * scale  # BM N
        regression = (per_patch * mask).sum(1) / mask.sum(1)  # BM
        metrics = {"reconstruction": regression.mean().detach()}
        per_view = regression
        if self.backbone.has_class_token and self.config.class_weight:
            whole = target.mean(1).repeat_interleave(self.masks, dim=0)
            of_class = (latent[:, 0].float() - whole).square().sum(-1) * scale  # BM
            per_view = per_view + self.config.class_weight * of_class
            metrics["class"] = self.config.class_weight * of_class.mean().detach()
        output = self.outcome(per_view, latent, _helpers.constant_loss(target, mask) / scale)
        output.metrics |= metrics
        return output

    def draw(self, keys: Tensor, number: Tensor) -> Tensor:
        """All but some squares of patches."""
        num_hidden = self.num_patches - self.num_visible
        return inverse_block_mask(keys, grid(self.backbone), self.config.block, self.num_blocks, num_hidden, number)

    def target(self, images: Tensor) -> Tensor:
        """What the teacher's last feed-forward parts add, each normalised over patches, averaged, normalised."""
        layers = self.teacher(images)
        spread = [functional.instance_norm(layer.mT).mT for layer in layers]
        mean = torch.stack(spread).mean(0)
        return functional.layer_norm(mean, mean.shape[-1:])  # B N D

    def predict(self, images: Tensor, mask: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's tokens of the visible patches, and the decoder's prediction of every patch, view by view."""
        places = visible_places(mask, self.num_visible)
        visible = gather_tokens(embed(self.backbone, images), places)
        latent = encode(self.backbone, visible, places, keys).tokens  # BM P+V D
        if self.config.noise:
            background = self.config.noise * keyed_noise(self.noise, keys, self.num_patches)
        else:
            background = latent.new_zeros(len(latent), self.num_patches, latent.shape[-1])
        return latent, self.decoder(latent, places, background)  # BM N D

    def after_step(self, step: int, moved: Tensor) -> None:
        """The teacher follows."""
        self.teacher.follow(self.backbone, step, moved)
