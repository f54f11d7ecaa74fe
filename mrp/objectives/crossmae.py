"""CrossMAE: as MAE, but the decoder looks at visible patches only and predicts a part of the others (Fu, 2024)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mrp import methodkit as kit
from mrp.batch import Batch, Output
from mrp.config import ConfigError
from mrp.models.decoder import CrossAttention, CrossConfig
from mrp.models.masking import gather_tokens, some_hidden, visible_places
from mrp.models.vit import Backbone, embed, encode, grid, norm_eps


class Config(kit.MaskedConfig):
    """Options of CrossMAE."""

    small: ClassVar[dict[str, Any]] = {"decoder": {"width": 32, "depth": 1, "heads": 4}}
    name: Literal["crossmae"] = "crossmae"
    mask_ratio: float = Field(0.75, gt=0, lt=1)  # the share of the patches that is hidden
    # The side in pixels of the squares in which patches are hidden; null: patches are hidden one by one.
    mask_unit: int | None = Field(None, gt=0)
    # The share of all patches that is predicted; these patches are among the hidden ones.
    predicted: float = Field(0.25, gt=0, lt=1)
    masks: int = Field(1, gt=0)  # masks per image and step
    target: Literal["pixels_norm", "pixels"] = "pixels_norm"  # the pixels, or the pixels normalised within each patch
    decoder: CrossConfig = CrossConfig()
    uniformity: kit.UniformityConfig = kit.NO_UNIFORMITY


class Objective(kit.PixelMasked):
    """Masked autoencoding whose decoder reads all layers of the encoder and predicts only a part of what is hidden."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        ignored = int(self.num_patches * (config.mask_ratio - config.predicted))
        self.num_predicted = self.num_patches - self.num_visible - ignored
        if config.predicted > config.mask_ratio:
            raise ConfigError(
                f"objective.predicted: {config.predicted} of the patches, of which mask_ratio hides "
                f"{config.mask_ratio}; lower it"
            )
        self.decoder = CrossAttention(
            config.decoder,
            backbone.embed_dim,
            len(backbone.blocks),
            grid(backbone),
            self.num_outputs,
            norm_eps(backbone),
        )
        # The decoder normalises what it reads, so the last norm stays as it is: it is trained by what follows.
        kit.freeze(backbone.norm)

    def forward(self, batch: Batch, mask: Tensor | None = None, predicted: Tensor | None = None) -> Output:
        """Returns the mean squared error of the predicted patches; `mask` and `predicted` replace what is drawn."""
        mask = self.mask(batch.keys) if mask is None else mask  # BM N
        keys = self.view_keys(batch.keys)
        predicted = some_hidden(mask, keys, self.num_predicted) if predicted is None else predicted  # BM N
        places = visible_places(~predicted, self.num_predicted)  # BM K
        latent, prediction = self.predict(batch.images, mask, places, keys)
        weights = kit.pixel_weights(batch.present, self.patch)  # B 1 PQC
        target = self.target(batch.images, weights)  # B N PQC
        errors = (prediction.float() - gather_tokens(target, places)).square()
        per_view = self.weighted(errors, weights).mean((1, 2))
        collapse = kit.collapse_loss(target, predicted, weights=weights)
        return self.build_output(per_view, latent, collapse, batch.step)

    def predict(
        self, images: Tensor, mask: Tensor, places: Tensor, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the encoder's tokens of the visible patches and predictions of the patches at `places`, per view."""
        latent, maps = self.encode_maps(images, mask, keys)
        return latent, self.decoder(maps, places)  # BM P+V D, BM K PQC

    def encode_maps(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Returns the encoder's tokens of the visible patches, and the feature maps that the decoder reads."""
        visible = visible_places(mask, self.num_visible)
        tokens = gather_tokens(embed(self.backbone, images), visible)
        latent, entering, layers = encode(self.backbone, tokens, visible, keys, "output")
        return latent, [entering, *layers] if self.config.decoder.input_map else layers

    def reconstruct(self, batch: Batch) -> kit.Reconstruction:
        """Returns predictions of all patches."""
        mask = self.first_mask(batch.keys)
        places = torch.arange(self.num_patches, device=mask.device).expand_as(mask)
        return self.painted(batch, mask, self.predict(batch.images, mask, places)[1])
