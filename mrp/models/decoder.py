"""What turns encoded tokens back into predictions of the hidden patches."""

from __future__ import annotations

import torch
from pydantic import Field
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mrp.config import ConfigError, Node
from mrp.models.masking import scatter_tokens
from mrp.models.positions import sincos
from mrp.models.vit import initialise


class TransformerConfig(Node):
    """A small transformer (MAE's decoder)."""

    width: int = Field(512, gt=0)
    depth: int = Field(8, ge=0)
    heads: int = Field(16, gt=0)


class Transformer(nn.Module):
    """MAE's decoder: visible tokens at their places, a mask token at the others, blocks, one prediction a patch."""

    positions: Tensor

    def __init__(
        self, config: TransformerConfig, width: int, grid: tuple[int, int], num_prefix: int, outputs: int
    ) -> None:
        super().__init__()
        if config.width % config.heads:
            raise ConfigError(f"objective.decoder: width {config.width} is not a multiple of heads {config.heads}")
        self.num_prefix = num_prefix
        self.embed = nn.Linear(width, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.register_buffer("positions", sincos(config.width, grid, num_prefix))
        self.blocks = nn.ModuleList(Block(config.width, config.heads, qkv_bias=True) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, outputs)
        initialise(self)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Predict every patch from the encoder's tokens and the places of the visible ones."""
        tokens = self.embed(tokens)  # B P+V D
        prefix, visible = tokens[:, : self.num_prefix], tokens[:, self.num_prefix :]
        num_patches = self.positions.shape[1] - self.num_prefix
        hidden = self.mask_token.to(tokens.dtype).expand(len(tokens), num_patches, -1)
        tokens = torch.cat([prefix, scatter_tokens(hidden, visible, places)], dim=1) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        predicted: Tensor = self.head(self.norm(tokens))
        return predicted[:, self.num_prefix :]  # B N outputs
