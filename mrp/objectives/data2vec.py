"""data2vec: predict what a slowly moving average of the model says of the whole image (Baevski et al., 2022)."""

from __future__ import annotations

from typing import Literal

import torch
from einops import reduce
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mrp.batch import Batch, Output
from mrp.config import ConfigError, Node
from mrp.models.masking import block_mask, block_shapes, gather_tokens, visible_places
from mrp.models.vit import VisionTransformer, embed, encode, grid, initialise
from mrp.objectives import _helpers, _teacher, _uniformity


class Config(Node):
    """Options of data2vec for images."""

    name: Literal["data2vec"] = "data2vec"
    mask_ratio: float = Field(0.612, gt=0, lt=1)  # 120 of 196 patches
    smallest_block: int = Field(16, gt=0)  # patches
    narrowest_block: float = Field(0.3, gt=0, le=1)  # its height over its width, or the other way round
    masks: int = Field(1, gt=0)  # views of each image in a step, which share the teacher's
    layers: int = Field(6, gt=0)  # the target is the mean of so many last blocks
    beta: float = Field(2.0, gt=0)  # up to here the error is squared
    teacher: _teacher.Config = _teacher.Config()
    uniformity: _uniformity.Config = _uniformity.OFF

    @property
    def couples(self) -> bool:
        """Whether a sample's loss depends on the others in its micro-step."""
        return self.uniformity.weight > 0


class Objective(_helpers.Masked):
    """Self-distillation of contextual targets."""

    shapes: Tensor

    def __init__(self, config: Config, backbone: VisionTransformer) -> None:
        super().__init__(backbone, config.masks, config.uniformity)
        self.config = config
        num_patches = backbone.patch_embed.num_patches
        self.num_hidden = round(num_patches * config.mask_ratio)
        shapes = block_shapes(grid(backbone), config.smallest_block, self.num_hidden, config.narrowest_block)
        if self.num_hidden == num_patches or not len(shapes):
            raise ConfigError(
                f"objective.mask_ratio: {config.mask_ratio} hides {self.num_hidden} of {num_patches} patches; at least "
                f"one must be visible, and one block of objective.smallest_block {config.smallest_block} fit in"
            )
        self.register_buffer("shapes", shapes, persistent=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.embed_dim))
        self.head = nn.Linear(backbone.embed_dim, backbone.embed_dim)
        nn.init.normal_(self.mask_token, std=0.02)
        initialise(self.head)
        self.teacher = _teacher.Teacher(config.teacher, backbone, config.layers, "output")

    def forward(self, batch: Batch, mask: Tensor | None = None) -> Output:
        """The smooth absolute error at the hidden patches; a mask given from outside replaces the drawn one."""
        mask = self.mask(batch.keys) if mask is None else mask  # BM N
        target = self.target(batch.images)  # B N D
        latent, prediction = self.predict(batch.images, mask, self.path_keys(batch.keys))
        hidden = gather_tokens(target, self.hidden_places(mask))  # BM H D
        per_view = reduce(self.error(prediction.float() - hidden), "b h d -> b", "mean")
        return self.outcome(per_view, latent, _helpers.constant_loss(target, mask, self.error))

    def error(self, difference: Tensor) -> Tensor:
        """Its absolute value, smoothed near zero."""
        zero = torch.zeros_like(difference)
        return functional.smooth_l1_loss(difference, zero, reduction="none", beta=self.config.beta)

    def draw(self, keys: Tensor, number: Tensor) -> Tensor:
        """Blocks of patches."""
        return block_mask(keys, grid(self.backbone), self.shapes, self.num_hidden, number)

    def hidden_places(self, mask: Tensor) -> Tensor:
        """Indices of the hidden patches, ascending."""
        return visible_places(~mask, self.num_hidden)  # BM H

    def target(self, images: Tensor) -> Tensor:
        """What the teacher says of every patch: its last blocks, each normalised, their mean normalised again."""
        layers = self.teacher(images)
        mean = torch.stack([functional.layer_norm(layer, layer.shape[-1:]) for layer in layers]).mean(0)
        return functional.layer_norm(mean, mean.shape[-1:])  # B N D

    def predict(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The encoder's tokens, and a prediction of the target at the hidden patches, view by view."""
        tokens = embed(self.backbone, images, self.mask_token, mask)
        latent = encode(self.backbone, tokens, keys=keys).tokens  # BM P+N D
        hidden = gather_tokens(latent[:, self.backbone.num_prefix_tokens :], self.hidden_places(mask))
        return latent, self.head(hidden)  # BM H D

    def after_step(self, step: int, moved: Tensor) -> None:
        """The teacher follows."""
        self.teacher.follow(self.backbone, step, moved)
