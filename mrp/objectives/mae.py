"""MAE: encode the visible patches, decode the hidden ones, compare their pixels (He et al., 2022)."""

from __future__ import annotations

from typing import Literal

from einops import rearrange
from pydantic import Field
from torch import Tensor

from mrp.batch import Batch, Output
from mrp.config import ConfigError, Node
from mrp.models.decoder import Transformer, TransformerConfig
from mrp.models.masking import gather_tokens, random_mask, visible_places
from mrp.models.vit import VisionTransformer, embed, encode, grid, norm_eps
from mrp.objectives import _helpers, _uniformity


class Config(Node):
    """Options of MAE; of U-MAE with a weight on uniformity."""

    name: Literal["mae"] = "mae"
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    masks: int = Field(1, gt=0)  # views of each image in a step
    target: Literal["pixels_norm", "pixels"] = "pixels_norm"
    decoder: TransformerConfig = TransformerConfig()
    uniformity: _uniformity.Config = _uniformity.OFF

    @property
    def couples(self) -> bool:
        """Whether a sample's loss depends on the others in its micro-step."""
        return self.uniformity.weight > 0


class Objective(_helpers.Masked):
    """Masked autoencoding."""

    paints = True

    def __init__(self, config: Config, backbone: VisionTransformer) -> None:
        super().__init__(backbone, config.masks, config.uniformity)
        self.config = config
        embedding = backbone.patch_embed
        self.patch: tuple[int, int] = embedding.patch_size
        self.num_patches: int = embedding.num_patches
        self.num_visible = int(self.num_patches * (1 - config.mask_ratio))
        if not 0 < self.num_visible < self.num_patches:
            raise ConfigError(
                f"objective.mask_ratio: {config.mask_ratio} of {self.num_patches} patches leaves {self.num_visible} "
                "visible; at least one must be visible and one hidden"
            )
        outputs = self.patch[0] * self.patch[1] * embedding.proj.in_channels
        self.decoder = Transformer(
            config.decoder, backbone.embed_dim, grid(backbone), backbone.num_prefix_tokens, outputs, norm_eps(backbone)
        )

    def forward(self, batch: Batch, mask: Tensor | None = None) -> Output:
        """The mean squared error of the hidden patches; a mask given from outside replaces the drawn one."""
        mask = self.mask(batch.keys) if mask is None else mask  # BM N
        latent, prediction = self.predict(batch.images, mask, self.path_keys(batch.keys))
        target = _helpers.patchify(batch.images, self.patch)  # B N PQC
        if self.config.target == "pixels_norm":
            mean, deviation = _helpers.patch_statistics(target)
            target = (target - mean) / deviation
        error = rearrange(prediction.float(), "(b m) n d -> b m n d", m=self.masks) - target[:, None]
        per_patch = error.square().mean(-1).flatten(0, 1)  # BM N
        per_view = (per_patch * mask).sum(1) / mask.sum(1)
        return self.outcome(per_view, latent, _helpers.constant_loss(target, mask))

    def draw(self, keys: Tensor, number: Tensor) -> Tensor:
        """Patches at random."""
        return random_mask(keys, self.num_patches, self.num_patches - self.num_visible, number)

    def predict(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The encoder's tokens of the visible patches, and the decoder's prediction of every patch, view by view."""
        places = visible_places(mask, self.num_visible)
        visible = gather_tokens(embed(self.backbone, images), places)
        latent = encode(self.backbone, visible, places, keys).tokens  # BM P+V D
        return latent, self.decoder(latent, places)  # BM N PQC

    def reconstruct(self, batch: Batch) -> _helpers.Reconstruction:
        """Predicted pixels; norm-pix predictions get the true patch's mean and spread, since they do not predict it."""
        mask = self.first_mask(batch.keys)
        prediction = self.predict(batch.images, mask)[1].float()
        if self.config.target == "pixels_norm":
            mean, deviation = _helpers.patch_statistics(_helpers.patchify(batch.images, self.patch))
            prediction = prediction * deviation + mean
        return _helpers.Reconstruction(mask, _helpers.unpatchify(prediction, self.patch, grid(self.backbone)))
