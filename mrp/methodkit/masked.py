"""What methods that hide patches have in common: several masks per image, the mean of their losses, uniformity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from mrp.batch import Batch, Output
from mrp.config import ConfigError, Node
from mrp.methodkit.objective import Objective, Reconstruction
from mrp.methodkit.patches import patch_statistics, patchify, pixel_weights, unpatchify
from mrp.methodkit.scheduled import Scheduled, ScheduledCount
from mrp.methodkit.uniformity import UniformityConfig, uniformity_penalty
from mrp.models.masking import (
    beit_mask,
    block_aspects,
    block_mask,
    block_shapes,
    fold,
    gather_tokens,
    unit_mask,
    visible_places,
)
from mrp.models.vit import Backbone, embed, encode, grid, pool


class MaskedConfig(Node):
    """Base of the options of a masked method, which declares `masks` (an int) and `uniformity` among its own."""

    @property
    def couples_samples(self) -> bool:
        """Whether the loss of a sample depends on the other samples of its micro-step."""
        options: Any = self
        return bool(options.uniformity.weight)


class Masked(Objective):
    """Base class of methods that hide patches.

    Every image is seen in `num_masks` views, each with a mask of its own. Tensors of views have num_masks rows per
    image (the "BM" of shape comments), those of the first image first.
    """

    def __init__(self, backbone: Backbone, masks: int, uniformity: UniformityConfig) -> None:
        super().__init__(backbone)
        uniformity.check(backbone)
        self.num_masks = masks
        self.uniformity = uniformity
        self.penalises = bool(uniformity.weight)  # asked in forward, where torch 2.11 cannot compile it of a schedule
        self.uniformity_weight = Scheduled(uniformity.weight, "uniformity.weight")

    @abstractmethod
    def draw_mask(self, keys: Tensor, draws: Tensor) -> Tensor:
        """Returns one mask per key; `draws` are the numbers of the masks among those of the same image."""

    def mask(self, keys: Tensor) -> Tensor:
        """Returns the masks of all views of the images with these keys."""
        return self.draw_mask(*self.draws(keys))  # BM N

    def draws(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Returns, per view, the key of its image and the number of its mask."""
        draws = torch.arange(self.num_masks, device=keys.device).repeat(len(keys))
        return keys.repeat_interleave(self.num_masks), draws  # BM, BM

    def first_mask(self, keys: Tensor) -> Tensor:
        """Returns the mask of each image's first view, for pictures and measurements that need only one."""
        return self.draw_mask(keys, torch.zeros_like(keys))  # B N

    def view_keys(self, keys: Tensor) -> Tensor:
        """Returns one key per view, from which its stochastic depth and its noise are drawn."""
        return fold(keys[:, None], torch.arange(self.num_masks, device=keys.device)).flatten()  # BM

    def encode_visible(
        self, images: Tensor, mask: Tensor, num_visible: int, keys: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the encoder's tokens of the visible patches alone, and which patches these are, per view."""
        places = visible_places(mask, num_visible)
        visible = gather_tokens(embed(self.backbone, images), places)
        return encode(self.backbone, visible, places, keys).tokens, places  # BM P+V D, BM V

    def encode_replaced(self, images: Tensor, mask: Tensor, mask_token: Tensor, keys: Tensor | None) -> Tensor:
        """Returns the encoder's tokens of all patches, per view; the hidden ones enter it as the mask token."""
        return encode(self.backbone, embed(self.backbone, images, mask_token, mask), keys=keys).tokens  # BM P+N D

    def difference(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Returns the views' predictions minus the target of their image, in float32."""
        views = rearrange(prediction.float(), "(b m) n d -> b m n d", m=self.num_masks)
        return (views - target[:, None]).flatten(0, 1)  # BM N D

    def weighted(self, errors: Tensor, weights: Tensor | None) -> Tensor:
        """Returns the views' errors times the weights of their image's pixels (see `pixel_weights`)."""
        return errors if weights is None else errors * weights.repeat_interleave(self.num_masks, 0)  # BM N D

    def build_output(self, per_view: Tensor, latent: Tensor, target_variance: Tensor, step: Tensor) -> Output:
        """Averages the losses of the views and adds the uniformity penalty.

        `latent` is the encoder's output for every view, and `target_variance` the loss of the best constant prediction
        (see `collapse_loss`), and `step` that of the batch, from which a penalty may draw.
        """
        per_sample = rearrange(per_view, "(b m) -> b m", m=self.num_masks).mean(1)
        loss = per_sample.mean()
        metrics = {"reconstruction": loss.detach(), "target_variance": target_variance}
        if self.penalises:
            penalty = uniformity_penalty(self.uniformity, self.backbone, latent, self.num_masks, step)
            loss = loss + self.uniformity_weight() * penalty
            metrics["uniformity"] = penalty.detach()
        return Output(
            loss=loss,
            metrics={"loss": loss.detach(), **metrics},
            per_sample={"loss": per_sample.detach()},
            features=pool(self.backbone, latent)[:: self.num_masks].detach(),
        )


class PixelMasked(Masked):
    """Base class of methods whose encoder sees some patches at random, and which predict pixels of the others.

    Of its options it takes `mask_ratio`, `mask_unit` and `target`.
    """

    paints = True

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(backbone, config.masks, config.uniformity)
        self.config = config
        embedding = backbone.patch_embed
        self.patch: tuple[int, int] = embedding.patch_size
        self.num_patches: int = embedding.num_patches
        self.num_outputs: int = self.patch[0] * self.patch[1] * embedding.proj.in_channels
        self.unit = mask_unit(config.mask_unit, self.patch, grid(backbone))
        self.num_units = self.num_patches // (self.unit[0] * self.unit[1])
        what = "patches" if self.num_units == self.num_patches else "units"
        count = partial(count_visible, self.num_units, what=what)  # no lambda, which cannot be pickled
        self.visible = ScheduledCount(config.mask_ratio, "mask_ratio", count)

    @property
    def num_visible(self) -> int:
        """The number of patches that are not hidden."""
        return self.visible.count * self.unit[0] * self.unit[1]

    def draw_mask(self, keys: Tensor, draws: Tensor) -> Tensor:
        """Hides patches, or squares of them, at random."""
        return unit_mask(keys, grid(self.backbone), self.unit, self.num_units - self.visible.count, draws)

    def target(self, images: Tensor, weights: Tensor | None = None) -> Tensor:
        """Returns what is predicted of every patch: its pixels, normalised where the options say so.

        `weights` are those of pixels, where images lack channels.
        """
        patches = patchify(images, self.patch)
        if self.config.target == "pixels":
            return patches
        mean, deviation = patch_statistics(patches, weights)
        return (patches - mean) / deviation  # B N PQC

    def painted(self, batch: Batch, mask: Tensor, prediction: Tensor) -> Reconstruction:
        """Returns predictions of all patches as images; normalised ones get the true mean and deviation back."""
        prediction, bare = prediction.float(), None
        if self.config.target == "pixels_norm":
            bare = unpatchify(prediction, self.patch, grid(self.backbone))
            weights = pixel_weights(batch.present, self.patch)
            mean, deviation = patch_statistics(patchify(batch.images, self.patch), weights)
            prediction = prediction * deviation + mean
        return Reconstruction(mask, unpatchify(prediction, self.patch, grid(self.backbone)), bare)


class BlockMasked(Masked):
    """Base class of methods that hide patches in blocks, BEiT's: the same number of patches in every image.

    Of its options it takes `mask_ratio`, `smallest_block` (patches), `narrowest_block` (a side over the other) and
    `blocks` (how they are drawn: as BEiT's code does, or with the last one trimmed, which is what it does without).
    """

    shapes: Tensor
    aspects: Tensor

    def __init__(self, config: Any, backbone: Backbone) -> None:
        super().__init__(backbone, config.masks, config.uniformity)
        num_patches = backbone.patch_embed.num_patches
        self.num_hidden = round(num_patches * config.mask_ratio)
        self.smallest_block: int = config.smallest_block
        self.as_beit = getattr(config, "blocks", "trimmed") == "beit"
        rows, columns = grid(backbone)
        room = (max(rows - 1, 1), max(columns - 1, 1)) if self.as_beit else (rows, columns)
        shapes = block_shapes(room, config.smallest_block, self.num_hidden, config.narrowest_block)
        if self.num_hidden == num_patches or not len(shapes):
            raise ConfigError(
                f"objective.mask_ratio: {config.mask_ratio} hides {self.num_hidden} of {num_patches} patches; at least "
                f"one must be visible, and one block of objective.smallest_block {config.smallest_block} fit in"
                + (" beside a free row and column" if self.as_beit else "")
            )
        self.register_buffer("shapes", shapes, persistent=False)
        self.register_buffer("aspects", block_aspects(config.narrowest_block), persistent=False)

    def draw_mask(self, keys: Tensor, draws: Tensor) -> Tensor:
        """Hides patches in blocks."""
        size = grid(self.backbone)
        if self.as_beit:
            mask: Tensor = beit_mask(keys, draws, self.aspects, *size, self.smallest_block, self.num_hidden)
            return mask
        return block_mask(keys, size, self.shapes, self.num_hidden, draws)


def count_visible(number: int, mask_ratio: float, what: str = "patches") -> int:
    """Returns how many patches (or units of them) stay visible at this ratio: at least one, and not all of them."""
    num_visible = int(number * (1 - mask_ratio))
    if not 0 < num_visible < number:
        raise ConfigError(
            f"objective.mask_ratio: {mask_ratio} of {number} {what} leaves {num_visible} visible; "
            "at least one must be visible and one hidden"
        )
    return num_visible


def mask_unit(side: int | None, patch: tuple[int, int], grid_size: tuple[int, int]) -> tuple[int, int]:
    """Returns how many rows and columns of patches a square of `side` pixels covers; by default one patch."""
    if side is None:
        return 1, 1
    image = grid_size[0] * patch[0], grid_size[1] * patch[1]
    if side % patch[0] or side % patch[1] or image[0] % side or image[1] % side:
        raise ConfigError(
            f"objective.mask_unit: {side} pixels must be a multiple of the patch ({patch[0]}x{patch[1]}) "
            f"and divide the image ({image[0]}x{image[1]})"
        )
    return side // patch[0], side // patch[1]


def collapse_loss(
    target: Tensor,
    mask: Tensor,
    error: Callable[[Tensor], Tensor] = torch.square,
    weights: Tensor | None = None,
) -> Tensor:
    """Returns the loss of predicting every hidden patch by the mean of all hidden patches.

    In place of a mask there may be the number of times that a view predicts each patch. `weights` are those of pixels,
    where images lack channels.

    A method whose features have collapsed can do no better, so a reconstruction that does not fall below this has
    learned nothing (Theorem 3.6 of U-MAE; Zhang et al., 2022).
    """
    target = target.detach()  # B N D
    times = rearrange(mask, "(b m) n -> b m n", b=len(target)).sum(1)[..., None]  # in how many views each is hidden
    count = times.sum()
    if weights is None:
        mean = (target * times).sum((0, 1)) / count
    else:
        times = times * weights  # B N D
        mean = (target * times).sum((0, 1)) / times.sum((0, 1)).clamp(min=1e-6)
    return (error(target - mean) * times).sum() / count / target.shape[-1]
