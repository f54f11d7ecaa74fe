"""Decoders: they turn the encoder's tokens of visible patches into predictions of all patches, or of some."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any, Self, cast

import torch
from einops import rearrange
from pydantic import Field, model_validator
from timm.layers import Attention, LayerNorm, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from mrp.config import ConfigError, Node
from mrp.models.initial import initialise, initialise_normal
from mrp.models.masking import scatter_tokens
from mrp.models.positions import sincos


class TransformerConfig(Node):
    """`decoder:` of MAE: a small transformer."""

    width: int = Field(512, gt=0)  # numbers per token
    depth: int = Field(8, ge=0)  # how many blocks
    heads: int = Field(16, gt=0)  # attention heads per block

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not a multiple of heads {self.heads}; change one of them")
        return self


class Transformer(nn.Module):
    """MAE's decoder: blocks over visible tokens at their places and a mask token at the others (He et al., 2022)."""

    positions: Tensor

    def __init__(
        self,
        config: TransformerConfig,
        width: int,
        grid: tuple[int, int],
        num_prefix: int,
        outputs: int,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.num_prefix = num_prefix
        self.embed = nn.Linear(width, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.register_buffer("positions", sincos(config.width, grid, num_prefix))
        norm: Any = partial(LayerNorm, eps=norm_eps)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, qkv_bias=True, norm_layer=norm) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=norm_eps)
        self.head = nn.Linear(config.width, outputs)
        initialise(self)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Returns the prediction of every patch; `places` are the indices of the visible ones."""
        tokens = self.embed(tokens)  # B P+V D
        prefix, visible = tokens[:, : self.num_prefix], tokens[:, self.num_prefix :]
        num_patches = self.positions.shape[1] - self.num_prefix
        hidden = self.mask_token.to(tokens.dtype).expand(len(tokens), num_patches, -1)
        tokens = torch.cat([prefix, scatter_tokens(hidden, visible, places)], dim=1) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        predicted: Tensor = self.head(self.norm(tokens))
        return predicted[:, self.num_prefix :]  # B N outputs


class CrossConfig(TransformerConfig):
    """`decoder:` of CrossMAE: a small transformer that reads what each block of the encoder has computed."""

    depth: int = Field(12, gt=0)  # how many blocks
    self_attention: bool = False  # whether the predicted patches also look at each other
    # Whether the decoder reads what enters the encoder's first block, beside the output of each block.
    input_map: bool = True


class CrossBlock(nn.Module):
    """A block in which patches to be predicted look at the encoder's tokens, and at each other where asked for."""

    def __init__(self, config: TransformerConfig, width: int, norm_eps: float, self_attention: bool = False) -> None:
        super().__init__()
        self.heads = config.heads
        if self_attention:
            self.norm0 = nn.LayerNorm(config.width, eps=norm_eps)
            self.self_attn = Attention(config.width, config.heads, qkv_bias=True)
        self.norm1 = nn.LayerNorm(config.width, eps=norm_eps)
        self.memory_norm = nn.LayerNorm(width, eps=norm_eps)
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(width, 2 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=norm_eps)
        self.mlp = Mlp(config.width, 4 * config.width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Returns the tokens of the patches to be predicted; `memory` are the encoder's, in its width."""
        if hasattr(self, "self_attn"):
            x = x + self.self_attn(self.norm0(x))
        key_value = self.key_value(self.memory_norm(memory))
        query = rearrange(self.query(self.norm1(x)), "b n (h d) -> b h n d", h=self.heads)
        key, value = rearrange(key_value, "b n (two h d) -> two b h n d", two=2, h=self.heads)
        attended = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(rearrange(attended, "b h n d -> b n (h d)"))
        return x + cast(Tensor, self.mlp(self.norm2(x)))


class CrossAttention(nn.Module):
    """CrossMAE's decoder: each block reads its own weighted sum of the encoder's feature maps (Fu et al., 2024)."""

    positions: Tensor

    def __init__(
        self, config: CrossConfig, width: int, encoder_depth: int, grid: tuple[int, int], outputs: int, norm_eps: float
    ) -> None:
        super().__init__()
        num_maps = encoder_depth + config.input_map
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.register_buffer("positions", sincos(config.width, grid, 0), persistent=False)
        self.map_weights = nn.Parameter(torch.empty(config.depth, num_maps))
        self.blocks = nn.ModuleList(
            CrossBlock(config, width, norm_eps, config.self_attention) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=norm_eps)
        self.head = nn.Linear(config.width, outputs)
        initialise(self)
        nn.init.xavier_uniform_(self.map_weights)

    def memories(self, maps: list[Tensor]) -> Tensor:
        """Returns the weighted sum of the feature maps that each block reads."""
        stack = torch.stack(maps)  # M B P+V D
        memories: Tensor = (self.map_weights @ stack.flatten(1)).unflatten(1, stack.shape[1:])
        return memories  # L B P+V D

    def forward(self, maps: list[Tensor], places: Tensor) -> Tensor:
        """Returns the predictions of the patches at `places` from the encoder's feature maps of the visible ones."""
        tokens = self.mask_token + self.positions[0, places]  # B K D
        for block, memory in zip(self.blocks, self.memories(maps), strict=True):
            tokens = block(tokens, memory)
        predicted: Tensor = self.head(self.norm(tokens))
        return predicted  # B K outputs


class LatentConfig(TransformerConfig):
    """`predictor:` of CAPI: a transformer that looks at nothing but the encoder's tokens."""

    width: int = Field(768, gt=0)  # numbers per token
    depth: int = Field(12, gt=0)  # how many blocks
    heads: int = Field(12, gt=0)  # attention heads per block


class LatentPredictor(nn.Module):
    """CAPI's predictor: patches to be predicted look at the encoder's tokens alone (Darcet et al., 2025)."""

    positions: Tensor

    def __init__(self, config: LatentConfig, width: int, grid: tuple[int, int], norm_eps: float) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.register_buffer("positions", sincos(config.width, grid, 0), persistent=False)
        self.blocks = nn.ModuleList(CrossBlock(config, width, norm_eps) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=norm_eps)
        initialise(self)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Returns a token per patch at `places` from the encoder's tokens."""
        queries = self.mask_token + self.positions[0, places]  # B K D
        for block in self.blocks:
            queries = block(queries, tokens)
        predicted: Tensor = self.norm(queries)
        return predicted  # B K D


class PredictorConfig(Node):
    """`predictor:` of I-JEPA: a narrow transformer."""

    width: int = Field(384, gt=0)  # numbers per token
    depth: int = Field(6, gt=0)  # how many blocks
    heads: int | None = Field(None, gt=0)  # attention heads per block; null: as many as the backbone's


class Predictor(nn.Module):
    """I-JEPA's predictor: blocks over the context's tokens and one mask token per patch of a target (Assran, 2023)."""

    positions: Tensor

    def __init__(
        self, config: PredictorConfig, width: int, heads: int, grid: tuple[int, int], num_prefix: int, norm_eps: float
    ) -> None:
        super().__init__()
        heads = config.heads or heads
        if config.width % heads:
            raise ConfigError(f"objective.predictor: width {config.width} is not a multiple of heads {heads}")
        self.num_prefix = num_prefix
        self.embed = nn.Linear(width, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.register_buffer("positions", sincos(config.width, grid, 0), persistent=False)
        norm: Any = partial(LayerNorm, eps=norm_eps)
        self.blocks = nn.ModuleList(
            Block(config.width, heads, qkv_bias=True, norm_layer=norm) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=norm_eps)
        self.head = nn.Linear(config.width, width)
        initialise_normal(self)

    def forward(self, tokens: Tensor, places: Tensor, targets: Tensor) -> Tensor:
        """Returns a prediction of each target's patches from the encoder's tokens of the patches at `places`.

        Every target (B T K: the indices of its patches) is predicted by itself. Prefix tokens have no position.
        """
        tokens = self.embed(tokens)  # B P+V D
        context = tokens[:, self.num_prefix :] + self.positions[0, places]
        context = torch.cat([tokens[:, : self.num_prefix].to(context.dtype), context], dim=1)
        queries = (self.mask_token + self.positions[0, targets]).flatten(0, 1)  # BT K D
        tokens = torch.cat([context.repeat_interleave(targets.shape[1], dim=0), queries], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        predicted: Tensor = self.head(self.norm(tokens[:, -targets.shape[2] :]))
        return predicted.view(*targets.shape, -1)  # B T K D


class ConvolutionConfig(Node):
    """`decoder:` of data2vec 2: convolutions over the grid of patches."""

    width: int = Field(768, gt=0)  # how many channels
    depth: int = Field(6, gt=0)  # how many layers
    kernel: int = Field(3, gt=0)  # patches on each side of a convolution
    groups: int = Field(16, gt=0)  # into how many groups each convolution divides the channels


class Convolution(nn.Module):
    """data2vec 2's decoder: convolutions over visible tokens on their grid and noise between them (Baevski, 2023)."""

    def __init__(self, config: ConvolutionConfig, width: int, grid: tuple[int, int], num_prefix: int) -> None:
        super().__init__()
        for name, channels in (("the backbone's width", width), ("objective.decoder: width", config.width)):
            if channels % config.groups:
                raise ConfigError(f"{name} {channels} is not a multiple of objective.decoder.groups {config.groups}")
        if config.kernel % 2 == 0:
            raise ConfigError(f"objective.decoder.kernel: {config.kernel} has no middle; take an odd one")
        self.grid = grid
        self.num_prefix = num_prefix
        widths = [width] + [config.width] * config.depth
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, config.kernel, padding=config.kernel // 2, groups=config.groups)
            for before, after in pairwise(widths)
        )
        self.head = nn.Linear(config.width, width)  # starts as torch draws it, and so do the convolutions

    def forward(self, tokens: Tensor, places: Tensor, background: Tensor) -> Tensor:
        """Returns the prediction of every patch; `background` stands in for the tokens of the hidden ones."""
        tokens = scatter_tokens(background.to(tokens.dtype), tokens[:, self.num_prefix :], places)
        tokens = rearrange(tokens, "b (h w) d -> b d h w", h=self.grid[0])
        for layer in self.layers:
            convolved = rearrange(layer(tokens), "b d h w -> b h w d")
            normalised = functional.gelu(functional.layer_norm(convolved, convolved.shape[-1:]))
            output = rearrange(normalised, "b h w d -> b d h w")
            tokens = tokens + output if tokens.shape == output.shape else output
        predicted: Tensor = self.head(rearrange(tokens, "b d h w -> b (h w) d"))
        return predicted  # B N D
