"""What several blocks of a backbone say of an image, in one pass."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from mrp.batch import Batch
from mrp.config import ConfigError
from mrp.models.vit import VisionTransformer, embed, encode

LAST = 4  # blocks that are read unless others are asked for, and that one pooling puts side by side
TOKENS = "tokens"  # the patch tokens of the last block, all of an image in one row


class Readout(nn.Module):
    """The class token and the mean patch token of the last few blocks, each as a block of columns named by `name`.

    Every layer goes through the backbone's own final norm, so that the last one's is what the backbone gives.
    """

    def __init__(self, step: nn.Module, layers: int = LAST, tokens: bool = False) -> None:
        super().__init__()
        self.step = step
        self.tokens = tokens
        depth = len(self.backbone.blocks)
        if layers > depth:
            raise ConfigError(f"--layers: {layers} were asked for, but the backbone has {depth}; give at most {depth}")
        self.layers = tuple(range(depth - layers + 1, depth + 1))

    @property
    def backbone(self) -> VisionTransformer:
        """The encoder that is read."""
        return cast(VisionTransformer, cast(Any, self.step).objective.backbone)

    @property
    def poolings(self) -> tuple[str, ...]:
        """What is made of a layer's tokens."""
        return ("class", "mean") if self.backbone.has_class_token else ("mean",)

    @property
    def own(self) -> str:
        """The block of columns that the backbone itself would give as its features."""
        return name(self.layers[-1], "class" if self.backbone.global_pool == "token" else "mean")

    @property
    def widths(self) -> dict[str, int]:
        """The blocks of columns and how many each has."""
        vit = self.backbone
        if self.tokens:
            return {TOKENS: cast(int, vit.patch_embed.num_patches) * vit.embed_dim}
        return {name(layer, pooling): vit.embed_dim for layer in self.layers for pooling in self.poolings}

    def forward(self, batch: Batch) -> Tensor:
        """All blocks of columns side by side, in single precision."""
        step = cast(Any, self.step)
        vit = self.backbone
        images = step.prepare(batch.images)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=step.precision == "bf16"):
            encoded = encode(vit, embed(vit, images), layers="output")
            if self.tokens:
                return encoded.tokens[:, vit.num_prefix_tokens :].flatten(1).float()
            columns = []
            for layer in self.layers:
                last = layer == len(vit.blocks)
                tokens = encoded.tokens if last else vit.norm(encoded.layers[layer - 1])
                pooled = {"class": tokens[:, 0], "mean": tokens[:, vit.num_prefix_tokens :].mean(1)}
                columns += [vit.fc_norm(pooled[pooling]).float() for pooling in self.poolings]
        return torch.cat(columns, dim=1)


def name(layer: int, pooling: str) -> str:
    """What a block of columns is called; layers count from 1."""
    return f"{layer}.{pooling}"
