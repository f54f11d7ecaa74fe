"""I-JEPA: predict a teacher's features of blocks of an image from the rest of it (Assran et al., 2023)."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from einops import reduce
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn import functional

from mrp import methodkit as kit
from mrp.batch import Batch, Output
from mrp.models.decoder import Predictor, PredictorConfig
from mrp.models.masking import gather_tokens, multi_block_mask, visible_places
from mrp.models.vit import Backbone, grid, norm_eps, num_heads
from mrp.schedules import Schedule

SHAPES = 1024  # as finely are the shapes of blocks drawn


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError("two numbers above 0 are expected, the smaller one first")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_rising)]


class Config(kit.MaskedConfig):
    """Options of I-JEPA; the official backbone has no class token and `init: normal`."""

    small: ClassVar[dict[str, Any]] = {"targets": 2, "predictor": {"width": 32, "depth": 1, "heads": 4}}
    name: Literal["ijepa"] = "ijepa"
    mask_ratio: float = Field(0.75, gt=0, lt=1)  # the share of the patches that the encoder does not see
    targets: int = Field(4, gt=0)  # how many blocks are predicted, per mask
    target_scale: Range = (0.15, 0.2)  # the share of the patches that a target covers, at the least and at the most
    target_aspect: Range = (0.75, 1.5)  # the height of a target over its width, at the least and at the most
    # The share of the patches in the square from which the seen ones are taken, at the least and at the most.
    context_scale: Range = (0.85, 1.0)
    masks: int = Field(1, gt=0)  # masks per image and step; all share the teacher's one pass
    beta: float = Field(1.0, gt=0)  # errors below this are squared, larger ones are taken as they are
    predictor: PredictorConfig = PredictorConfig()
    teacher: kit.TeacherConfig = kit.TeacherConfig(decay=Schedule(kind="linear", value=0.996, end=1.0))
    uniformity: kit.UniformityConfig = kit.NO_UNIFORMITY


class Objective(kit.Masked):
    """Self-distillation: from the tokens of visible patches a narrow predictor tells the teacher's of each target."""

    judged = "teacher"
    targets: Tensor
    contexts: Tensor

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(backbone, config.masks, config.uniformity)
        self.config = config
        self.num_visible = kit.count_visible(backbone.patch_embed.num_patches, config.mask_ratio)
        targets = block_shapes(grid(backbone), config.target_scale, config.target_aspect)
        contexts = block_shapes(grid(backbone), config.context_scale, (1.0, 1.0))
        self.target_size = min(height * width for height, width in targets)
        self.register_buffer("targets", torch.tensor(targets), persistent=False)
        self.register_buffer("contexts", torch.tensor(contexts), persistent=False)
        self.predictor = Predictor(
            config.predictor, backbone.embed_dim, num_heads(backbone), grid(backbone), backbone.num_prefix_tokens,
            norm_eps(backbone),
        )  # fmt: skip
        self.teacher = kit.Teacher(config.teacher, backbone)

    def forward(self, batch: Batch, mask: Tensor | None = None, blocks: Tensor | None = None) -> Output:
        """Returns the smooth absolute error on the targets; `mask` and `blocks` replace what the keys give."""
        drawn = self.draw_blocks(*self.draws(batch.keys))
        mask, blocks = drawn[0] if mask is None else mask, drawn[1] if blocks is None else blocks  # BM N, BM T N
        places = self.target_places(blocks)
        target = self.target(batch.images)  # B N D
        latent, prediction = self.predict(batch.images, mask, places, self.view_keys(batch.keys))
        expected = gather_tokens(target, places.flatten(1)).view_as(prediction)
        per_view = reduce(self.error(prediction.float() - expected), "b t k d -> b", "mean")
        return self.build_output(per_view, latent, kit.collapse_loss(target, blocks.sum(1), self.error), batch.step)

    def error(self, difference: Tensor) -> Tensor:
        """Returns the absolute difference, smoothed near zero."""
        zero = torch.zeros_like(difference)
        return functional.smooth_l1_loss(difference, zero, reduction="none", beta=self.config.beta)

    def draw_mask(self, keys: Tensor, draws: Tensor) -> Tensor:
        """Hides all but a part of a large block that meets no target."""
        return self.draw_blocks(keys, draws)[0]

    def draw_blocks(self, keys: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Returns one mask per key and its targets."""
        shapes = self.targets, self.contexts
        size, count = self.target_size, self.config.targets
        return multi_block_mask(keys, grid(self.backbone), shapes, size, count, self.num_visible, draws)

    def target_places(self, blocks: Tensor) -> Tensor:
        """Returns the indices of each target's patches, ascending."""
        places = visible_places(~blocks.flatten(0, 1), self.target_size)
        return places.view(*blocks.shape[:2], -1)  # BM T K

    def target(self, images: Tensor) -> Tensor:
        """Returns the teacher's output, normalised per patch."""
        (output,) = self.teacher(images)
        return functional.layer_norm(output, output.shape[-1:])  # B N D

    def predict(
        self, images: Tensor, mask: Tensor, places: Tensor, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the encoder's tokens of the visible patches and a prediction of the targets' patches, per view."""
        latent, visible = self.encode_visible(images, mask, self.num_visible, keys)
        return latent, self.predictor(latent, visible, places)  # BM P+V D, BM T K D

    def after_step(self, step: int, updated: Tensor) -> None:
        """Moves the teacher towards the student."""
        self.teacher.follow(self.backbone, step, updated)


def block_shapes(
    grid_size: tuple[int, int], scale: tuple[float, float], aspect: tuple[float, float]
) -> list[tuple[int, int]]:
    """Returns shapes as often as they are drawn, so that a block is drawn by a whole number on every device."""
    return [block_shape(grid_size, scale, aspect, (number + 0.5) / SHAPES) for number in range(SHAPES)]


def block_shape(
    grid_size: tuple[int, int], scale: tuple[float, float], aspect: tuple[float, float], draw: float
) -> tuple[int, int]:
    """Returns the height and width of a block whose area and aspect both follow from one number from 0 to 1."""
    area = int(grid_size[0] * grid_size[1] * (scale[0] + draw * (scale[1] - scale[0])))
    ratio = aspect[0] + draw * (aspect[1] - aspect[0])
    sides = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    height, width = (max(1, min(side, limit - 1)) for side, limit in zip(sides, grid_size, strict=True))
    return height, width
