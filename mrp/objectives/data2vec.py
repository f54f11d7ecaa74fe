"""data2vec: predict the features that a slowly moving teacher gives the whole image (Baevski et al., 2022)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from einops import reduce
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mrp import methodkit as kit
from mrp.batch import Batch, Output
from mrp.models.initial import draw_truncated, initialise_truncated
from mrp.models.masking import gather_tokens, visible_places
from mrp.models.vit import Backbone


class Config(kit.MaskedConfig):
    """Options of data2vec for images."""

    small: ClassVar[dict[str, Any]] = {"smallest_block": 4, "layers": 1}
    name: Literal["data2vec"] = "data2vec"
    mask_ratio: float = Field(0.612, gt=0, lt=1)  # the share of the patches that is hidden; 0.612 is 120 of 196 patches
    smallest_block: int = Field(16, gt=0)  # how many patches a block has, at the least
    narrowest_block: float = Field(0.3, gt=0, le=1)  # the shorter side of a block over its longer one, at the least
    # beit: drawn as BEiT's code does; trimmed: drawn as in earlier versions of mrp, with the last block trimmed.
    blocks: Literal["trimmed", "beit"] = "trimmed"
    masks: int = Field(1, gt=0)  # masks per image and step; all share the teacher's one pass
    layers: int = Field(6, gt=0)  # the target is the mean over this many last blocks of the teacher
    beta: float = Field(2.0, gt=0)  # errors below this are squared, larger ones are taken as they are
    teacher: kit.TeacherConfig = kit.TeacherConfig()
    uniformity: kit.UniformityConfig = kit.NO_UNIFORMITY


class Objective(kit.BlockMasked):
    """Self-distillation: the student predicts the teacher's features of hidden patches from the rest of the image."""

    undecayed = frozenset({"cls_token", "pos_embed"})

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.config = config
        self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.embed_dim))
        self.head = nn.Linear(backbone.embed_dim, backbone.embed_dim)
        draw_truncated(self.mask_token)
        initialise_truncated(self.head)
        self.teacher = kit.Teacher(config.teacher, backbone, config.layers, "output")

    def forward(self, batch: Batch, mask: Tensor | None = None) -> Output:
        """Returns the smooth absolute error at the hidden patches; `mask` replaces the masks that the keys give."""
        mask = self.mask(batch.keys) if mask is None else mask  # BM N
        target = self.target(batch.images)  # B N D
        latent, prediction = self.predict(batch.images, mask, self.view_keys(batch.keys))
        hidden = gather_tokens(target, self.hidden_places(mask))  # BM H D
        per_view = reduce(self.error(prediction.float() - hidden), "b h d -> b", "mean")
        return self.build_output(per_view, latent, kit.collapse_loss(target, mask, self.error), batch.step)

    def error(self, difference: Tensor) -> Tensor:
        """Returns the absolute difference, smoothed near zero."""
        zero = torch.zeros_like(difference)
        return functional.smooth_l1_loss(difference, zero, reduction="none", beta=self.config.beta)

    def hidden_places(self, mask: Tensor) -> Tensor:
        """Returns the indices of the hidden patches, ascending."""
        return visible_places(~mask, self.num_hidden)  # BM H

    def target(self, images: Tensor) -> Tensor:
        """Returns the mean of the teacher's last blocks, each of them and then their mean normalised per patch."""
        layers = self.teacher(images)
        mean = torch.stack([functional.layer_norm(layer, layer.shape[-1:]) for layer in layers]).mean(0)
        return functional.layer_norm(mean, mean.shape[-1:])  # B N D

    def predict(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the encoder's tokens and a prediction of the target at the hidden patches, per view."""
        latent = self.encode_replaced(images, mask, self.mask_token, keys)  # BM P+N D
        hidden = gather_tokens(latent[:, self.backbone.num_prefix_tokens :], self.hidden_places(mask))
        return latent, self.head(hidden)  # BM H D

    def after_step(self, step: int, updated: Tensor) -> None:
        """Moves the teacher towards the student."""
        self.teacher.follow(self.backbone, step, updated)
