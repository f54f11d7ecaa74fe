"""Which features of a backbone are read: of some of its last blocks, pooled in some ways, in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from mrp.config import ConfigError
from mrp.models.vit import VisionTransformer, embed, encode

LAST = 4  # blocks that are read unless others are asked for, and that one pooling puts side by side
TOKENS = "tokens"  # the pooling that keeps the patch tokens as they are, all of an image in one row


@dataclass(frozen=True)
class Readout:
    """Blocks of columns, one for each of some layers (counted from 1) under each of some poolings.

    Every layer goes through the backbone's own final norm, so that the last one's features are what the backbone gives.
    """

    layers: tuple[int, ...]
    poolings: tuple[str, ...]
    width: int  # of one token
    num_patches: int

    @classmethod
    def last(cls, backbone: VisionTransformer, layers: int | None = None) -> Readout:
        """Reads the last few blocks (by default four, or all of fewer) under every pooling."""
        depth = len(backbone.blocks)
        count = layers or min(LAST, depth)
        if count > depth:
            raise ConfigError(f"layers: {count} were asked for, but the backbone has {depth}; give at most {depth}")
        poolings = ("class", "mean") if backbone.has_class_token else ("mean",)
        return cls(tuple(range(depth - count + 1, depth + 1)), poolings, *_sizes(backbone))

    @classmethod
    def own(cls, backbone: VisionTransformer) -> Readout:
        """Reads what the backbone itself gives as the features of an image."""
        pooling = "class" if backbone.global_pool == "token" else "mean"
        return cls((len(backbone.blocks),), (pooling,), *_sizes(backbone))

    @classmethod
    def of(cls, backbone: VisionTransformer, layer: int | None, pooling: str | None) -> Readout:
        """Reads one layer (by default the last) under one pooling (by default the backbone's own)."""
        own = cls.own(backbone)
        depth, layer = len(backbone.blocks), layer or len(backbone.blocks)
        if layer > depth:
            raise ConfigError(f"--layer: {layer} was asked for, but the backbone has {depth}; give at most {depth}")
        if pooling == "class" and not backbone.has_class_token:
            raise ConfigError("--pooling: the backbone has no class token; take mean")
        return cls((layer,), (pooling,) if pooling else own.poolings, own.width, own.num_patches)

    @classmethod
    def tokens(cls, backbone: VisionTransformer) -> Readout:
        """Reads the patch tokens of the last block."""
        return cls((len(backbone.blocks),), (TOKENS,), *_sizes(backbone))

    @property
    def blocks(self) -> tuple[str, ...]:
        """Returns the names of the blocks of columns."""
        return tuple(block_name(layer, pooling) for layer in self.layers for pooling in self.poolings)

    @property
    def widths(self) -> dict[str, int]:
        """Returns how many columns each block has."""
        return dict.fromkeys(self.blocks, self.width * (self.num_patches if self.poolings == (TOKENS,) else 1))

    def __call__(self, backbone: VisionTransformer, images: Tensor) -> Tensor:
        """Returns all blocks of columns side by side, from normalised images."""
        depth = len(backbone.blocks)
        encoded = encode(backbone, embed(backbone, images), layers="none" if self.layers == (depth,) else "output")
        columns = []
        for layer in self.layers:
            tokens = encoded.tokens if layer == depth else backbone.norm(encoded.layers[layer - 1])
            patches = tokens[:, backbone.num_prefix_tokens :]
            for pooling in self.poolings:
                if pooling == TOKENS:
                    columns.append(patches.flatten(1))
                else:
                    pooled = tokens[:, 0] if pooling == "class" else patches.mean(1)
                    columns.append(backbone.fc_norm(pooled).float())
        return torch.cat(columns, dim=1)


def _sizes(backbone: VisionTransformer) -> tuple[int, int]:
    return backbone.embed_dim, cast(int, backbone.patch_embed.num_patches)


def block_name(layer: int, pooling: str) -> str:
    """Returns what a block of columns is called."""
    return f"{layer}.{pooling}"


def backbone_of(model: nn.Module) -> VisionTransformer:
    """Returns the backbone of a step, which may be wrapped for several processes."""
    step: Any = getattr(model, "module", model)
    return cast(VisionTransformer, step.objective.backbone)
