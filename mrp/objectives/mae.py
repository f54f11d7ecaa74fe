"""MAE: encode the visible patches, decode the hidden ones, compare their pixels (He et al., 2022)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from mrp import methodkit as kit
from mrp.batch import Batch, Output
from mrp.models.decoder import Transformer, TransformerConfig
from mrp.models.vit import Backbone, grid, norm_eps
from mrp.schedules import ProperShare


class Config(kit.MaskedConfig):
    """Options of MAE; with a weight of `uniformity` they are U-MAE's, and with a larger `mask_unit` Pixio's."""

    small: ClassVar[dict[str, Any]] = {"decoder": {"width": 32, "depth": 1, "heads": 4}}
    name: Literal["mae"] = "mae"
    mask_ratio: ProperShare = 0.75  # the share of the patches that is hidden
    # The side in pixels of the squares in which patches are hidden; null: patches are hidden one by one.
    mask_unit: int | None = Field(None, gt=0)
    masks: int = Field(1, gt=0)  # masks per image and step
    target: Literal["pixels_norm", "pixels"] = "pixels_norm"  # the pixels, or the pixels normalised within each patch
    decoder: TransformerConfig = TransformerConfig()
    uniformity: kit.UniformityConfig = kit.NO_UNIFORMITY


class Objective(kit.PixelMasked):
    """Masked autoencoding: the encoder sees the visible patches only, a small decoder predicts the hidden ones."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.decoder = Transformer(
            config.decoder, backbone.embed_dim, grid(backbone), backbone.num_prefix_tokens, self.num_outputs,
            norm_eps(backbone),
        )  # fmt: skip

    def forward(self, batch: Batch, mask: Tensor | None = None) -> Output:
        """Returns the mean squared error of the hidden patches; `mask` replaces the masks that the keys give."""
        mask = self.mask(batch.keys) if mask is None else mask  # BM N
        latent, prediction = self.predict(batch.images, mask, self.view_keys(batch.keys))
        weights = kit.pixel_weights(batch.present, self.patch)  # B 1 PQC
        target = self.target(batch.images, weights)  # B N PQC
        per_patch = self.weighted(self.difference(prediction, target).square(), weights).mean(-1)  # BM N
        per_view = (per_patch * mask).sum(1) / mask.sum(1)
        return self.build_output(per_view, latent, kit.collapse_loss(target, mask, weights=weights), batch.step)

    def predict(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the encoder's tokens of the visible patches and the decoder's prediction of every patch, per view."""
        latent, visible = self.encode_visible(images, mask, self.num_visible, keys)
        return latent, self.decoder(latent, visible)  # BM P+V D, BM N PQC

    def reconstruct(self, batch: Batch) -> kit.Reconstruction:
        """Returns the predicted pixels."""
        mask = self.first_mask(batch.keys)
        return self.painted(batch, mask, self.predict(batch.images, mask)[1])
