"""MAE: encode the visible patches, decode the hidden ones, compare their pixels (He et al., 2022)."""

from __future__ import annotations

from typing import Literal

from einops import rearrange
from pydantic import Field
from torch import Tensor

from mrp.batch import Batch, Output
from mrp.methodkit import (
    NO_UNIFORMITY,
    Masked,
    MaskedConfig,
    Reconstruction,
    UniformityConfig,
    collapse_loss,
    count_visible,
    patch_statistics,
    patchify,
    unpatchify,
)
from mrp.models.decoder import Transformer, TransformerConfig
from mrp.models.masking import gather_tokens, random_mask, visible_places
from mrp.models.vit import VisionTransformer, embed, encode, grid, norm_eps


class Config(MaskedConfig):
    """Options of MAE, and of U-MAE where `uniformity` has a weight."""

    name: Literal["mae"] = "mae"
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    masks: int = Field(1, gt=0)  # per image and step
    target: Literal["pixels_norm", "pixels"] = "pixels_norm"
    decoder: TransformerConfig = TransformerConfig()
    uniformity: UniformityConfig = NO_UNIFORMITY


class Objective(Masked):
    """Masked autoencoding: the encoder sees the visible patches only, a small decoder predicts the hidden ones."""

    paints = True

    def __init__(self, config: Config, backbone: VisionTransformer) -> None:
        super().__init__(backbone, config.masks, config.uniformity)
        self.config = config
        embedding = backbone.patch_embed
        self.patch: tuple[int, int] = embedding.patch_size
        self.num_patches: int = embedding.num_patches
        self.num_visible = count_visible(self.num_patches, config.mask_ratio)
        outputs = self.patch[0] * self.patch[1] * embedding.proj.in_channels
        self.decoder = Transformer(
            config.decoder, backbone.embed_dim, grid(backbone), backbone.num_prefix_tokens, outputs, norm_eps(backbone)
        )

    def forward(self, batch: Batch, mask: Tensor | None = None) -> Output:
        """Returns the mean squared error of the hidden patches; `mask` replaces the masks that the keys give."""
        mask = self.mask(batch.keys) if mask is None else mask  # BM N
        latent, prediction = self.predict(batch.images, mask, self.view_keys(batch.keys))
        target = patchify(batch.images, self.patch)  # B N PQC
        if self.config.target == "pixels_norm":
            mean, deviation = patch_statistics(target)
            target = (target - mean) / deviation
        error = rearrange(prediction.float(), "(b m) n d -> b m n d", m=self.num_masks) - target[:, None]
        per_patch = error.square().mean(-1).flatten(0, 1)  # BM N
        per_view = (per_patch * mask).sum(1) / mask.sum(1)
        return self.build_output(per_view, latent, collapse_loss(target, mask))

    def draw_mask(self, keys: Tensor, draws: Tensor) -> Tensor:
        """Hides patches at random."""
        return random_mask(keys, self.num_patches, self.num_patches - self.num_visible, draws)

    def predict(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the encoder's tokens of the visible patches and the decoder's prediction of every patch, per view."""
        visible = visible_places(mask, self.num_visible)
        tokens = gather_tokens(embed(self.backbone, images), visible)
        latent = encode(self.backbone, tokens, visible, keys).tokens  # BM P+V D
        return latent, self.decoder(latent, visible)  # BM N PQC

    def reconstruct(self, batch: Batch) -> Reconstruction:
        """Returns the predicted pixels; normalised ones get the mean and deviation of the true patch back."""
        mask = self.first_mask(batch.keys)
        prediction = self.predict(batch.images, mask)[1].float()
        if self.config.target == "pixels_norm":
            mean, deviation = patch_statistics(patchify(batch.images, self.patch))
            prediction = prediction * deviation + mean
        return Reconstruction(mask, unpatchify(prediction, self.patch, grid(self.backbone)))
