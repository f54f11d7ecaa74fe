"""MAE: encode the visible patches, decode the hidden ones, compare their pixels (He et al., 2022)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from mrp import methodkit as kit
from mrp.batch import Batch, Output
from mrp.models.decoder import Transformer, TransformerConfig
from mrp.models.masking import random_mask
from mrp.models.vit import VisionTransformer, grid, norm_eps
from mrp.schedules import ProperShare


class Config(kit.MaskedConfig):
    """Options of MAE, and of U-MAE where `uniformity` has a weight."""

    name: Literal["mae"] = "mae"
    mask_ratio: ProperShare = 0.75  # the share of the patches that is hidden
    masks: int = Field(1, gt=0)  # per image and step
    target: Literal["pixels_norm", "pixels"] = "pixels_norm"  # pixels, or pixels normalised within each patch
    decoder: TransformerConfig = TransformerConfig()
    uniformity: kit.UniformityConfig = kit.NO_UNIFORMITY


class Objective(kit.Masked):
    """Masked autoencoding: the encoder sees the visible patches only, a small decoder predicts the hidden ones."""

    paints = True

    def __init__(self, config: Config, backbone: VisionTransformer) -> None:
        super().__init__(backbone, config.masks, config.uniformity)
        self.config = config
        embedding = backbone.patch_embed
        self.patch: tuple[int, int] = embedding.patch_size
        self.num_patches: int = embedding.num_patches
        self.visible = kit.ScheduledCount(
            config.mask_ratio, "mask_ratio", lambda ratio: kit.count_visible(self.num_patches, ratio)
        )
        outputs = self.patch[0] * self.patch[1] * embedding.proj.in_channels
        self.decoder = Transformer(
            config.decoder, backbone.embed_dim, grid(backbone), backbone.num_prefix_tokens, outputs, norm_eps(backbone)
        )

    @property
    def num_visible(self) -> int:
        """The number of patches that are not hidden."""
        return self.visible.count

    def forward(self, batch: Batch, mask: Tensor | None = None) -> Output:
        """Returns the mean squared error of the hidden patches; `mask` replaces the masks that the keys give."""
        mask = self.mask(batch.keys) if mask is None else mask  # BM N
        latent, prediction = self.predict(batch.images, mask, self.view_keys(batch.keys))
        target = kit.patchify(batch.images, self.patch)  # B N PQC
        if self.config.target == "pixels_norm":
            mean, deviation = kit.patch_statistics(target)
            target = (target - mean) / deviation
        per_patch = self.difference(prediction, target).square().mean(-1)  # BM N
        per_view = (per_patch * mask).sum(1) / mask.sum(1)
        return self.build_output(per_view, latent, kit.collapse_loss(target, mask), batch.step)

    def draw_mask(self, keys: Tensor, draws: Tensor) -> Tensor:
        """Hides patches at random."""
        return random_mask(keys, self.num_patches, self.num_patches - self.num_visible, draws)

    def predict(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the encoder's tokens of the visible patches and the decoder's prediction of every patch, per view."""
        latent, visible = self.encode_visible(images, mask, self.num_visible, keys)
        return latent, self.decoder(latent, visible)  # BM P+V D, BM N PQC

    def reconstruct(self, batch: Batch) -> kit.Reconstruction:
        """Returns the predicted pixels; normalised ones get the mean and deviation of the true patch back."""
        mask = self.first_mask(batch.keys)
        prediction, bare = self.predict(batch.images, mask)[1].float(), None
        if self.config.target == "pixels_norm":
            bare = kit.unpatchify(prediction, self.patch, grid(self.backbone))
            mean, deviation = kit.patch_statistics(kit.patchify(batch.images, self.patch))
            prediction = prediction * deviation + mean
        return kit.Reconstruction(mask, kit.unpatchify(prediction, self.patch, grid(self.backbone)), bare)
