"""data2vec 2: many masks per pass of the teacher, and a small decoder for each (Baevski et al., 2023)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from mrp import methodkit as kit
from mrp.batch import Batch, Output
from mrp.models.decoder import Convolution, ConvolutionConfig
from mrp.models.masking import inverse_block_mask, keyed_noise, noise_table
from mrp.models.vit import Backbone, grid


class Config(kit.MaskedConfig):
    """Options of data2vec 2 for images; the official backbone has `norm: post`."""

    small: ClassVar[dict[str, Any]] = {"masks": 3, "layers": 1, "decoder": {"width": 32, "depth": 2, "groups": 4}}
    name: Literal["data2vec2"] = "data2vec2"
    mask_ratio: float = Field(0.8, gt=0, lt=1)  # the share of the patches that is hidden
    block: int = Field(3, gt=0)  # the side in patches of the squares that stay visible
    # How much more of the image is put into squares at first, since squares overlap.
    adjustment: float = Field(0.07, ge=0, lt=1)
    masks: int = Field(16, gt=0)  # masks per image and step
    layers: int = Field(10, gt=0)  # the target is the mean over this many last blocks of the teacher
    class_weight: float = Field(2.56, ge=0)  # the weight of the class token's mean error
    noise: float = Field(0.01, ge=0)  # standard deviation of the noise that the decoder gets at hidden patches
    decoder: ConvolutionConfig = ConvolutionConfig()
    teacher: kit.TeacherConfig = kit.TeacherConfig(decay=0.9998, last=0.99999, steps=100_000)
    uniformity: kit.UniformityConfig = kit.NO_UNIFORMITY


class Objective(kit.Masked):
    """Self-distillation: the student sees visible patches only and predicts the teacher's features of the others."""

    noise: Tensor

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(backbone, config.masks, config.uniformity)
        self.config = config
        self.num_patches: int = backbone.patch_embed.num_patches
        self.num_visible = kit.count_visible(self.num_patches, config.mask_ratio)
        self.num_blocks = int(self.num_patches * (1 - config.mask_ratio + config.adjustment) / config.block**2)
        self.decoder = Convolution(config.decoder, backbone.embed_dim, grid(backbone), backbone.num_prefix_tokens)
        self.register_buffer("noise", noise_table(self.num_patches * backbone.embed_dim), persistent=False)
        self.teacher = kit.Teacher(config.teacher, backbone, config.layers, "added")

    def forward(self, batch: Batch, mask: Tensor | None = None) -> Output:
        """Returns the squared error at the hidden patches and of the class token; `mask` replaces the drawn masks."""
        mask = self.mask(batch.keys) if mask is None else mask  # BM N
        target = self.target(batch.images)  # B N D
        latent, prediction = self.predict(batch.images, mask, self.view_keys(batch.keys))
        scale = target.shape[-1] ** -0.5
        per_patch = self.difference(prediction, target).square().sum(-1) * scale  # BM N
        regression = (per_patch * mask).sum(1) / mask.sum(1)  # BM
        metrics = {"reconstruction": regression.mean().detach()}
        per_view = regression
        if self.backbone.has_class_token and self.config.class_weight:
            mean_target = target.mean(1).repeat_interleave(self.num_masks, dim=0)
            class_error = (latent[:, 0].float() - mean_target).square().sum(-1) * scale  # BM
            per_view = per_view + self.config.class_weight * class_error
            metrics["class"] = self.config.class_weight * class_error.mean().detach()
        output = self.build_output(per_view, latent, kit.collapse_loss(target, mask) / scale, batch.step)
        output.metrics |= metrics
        return output

    def draw_mask(self, keys: Tensor, draws: Tensor) -> Tensor:
        """Hides all but some squares of patches."""
        num_hidden = self.num_patches - self.num_visible
        return inverse_block_mask(keys, grid(self.backbone), self.config.block, self.num_blocks, num_hidden, draws)

    def target(self, images: Tensor) -> Tensor:
        """Returns the mean of what the MLPs of the teacher's last blocks add, normalised before and after."""
        layers = self.teacher(images)
        normalised = [functional.instance_norm(layer.mT).mT for layer in layers]  # over the patches of an image
        mean = torch.stack(normalised).mean(0)
        return functional.layer_norm(mean, mean.shape[-1:])  # B N D

    def predict(self, images: Tensor, mask: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the encoder's tokens of the visible patches and the decoder's prediction of every patch, per view."""
        latent, visible = self.encode_visible(images, mask, self.num_visible, keys)  # BM P+V D, BM V
        if self.config.noise:
            background = self.config.noise * keyed_noise(self.noise, keys, self.num_patches)
        else:
            background = latent.new_zeros(len(latent), self.num_patches, latent.shape[-1])
        return latent, self.decoder(latent, visible, background)  # BM N D

    def after_step(self, step: int, updated: Tensor) -> None:
        """Moves the teacher towards the student."""
        self.teacher.follow(self.backbone, step, updated)
