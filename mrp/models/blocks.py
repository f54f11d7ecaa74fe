"""The parts of a backbone that official recipes need and timm's own ViT lacks, under timm's parameter names."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import vision_transformer as timm
from torch import Tensor, nn
from torch.nn import functional

from mrp.models.masking import fold

_PATHS = 0x70A7  # sets the hashes of stochastic depth apart from those of masks


class DropPath(nn.Module):
    """Stochastic depth that follows the sample: the same on any number of processes, whatever else is in the batch."""

    layer = 0

    def __init__(self, rate: float, branch: int) -> None:
        super().__init__()
        self.rate = rate
        self.branch = branch

    def forward(self, tokens: Tensor, keys: Tensor | None) -> Tensor:
        """Leave out the branch of some samples in training, and make up for it in the others."""
        if not self.training or keys is None or self.rate == 0:
            return tokens
        kept = fold(keys, _PATHS, self.layer, self.branch) >= int(self.rate * 2**32)
        return tokens * (kept.to(tokens.dtype) / (1 - self.rate))[:, None, None]


class Block(timm.Block):
    """timm's block, with stochastic depth by key."""

    drop_path1: DropPath  # type: ignore[assignment]
    drop_path2: DropPath  # type: ignore[assignment]

    def __init__(self, *args: Any, drop_path: float = 0.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.drop_path1 = DropPath(drop_path, branch=0)
        self.drop_path2 = DropPath(drop_path, branch=1)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        keys: Tensor | None = None,
        added: bool = False,
    ) -> Any:
        """The tokens after attention and feed-forward; with `added`, also what the latter has added (data2vec 2)."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask)), keys)
        last = self.ls2(self.mlp(self.norm2(x)))
        x = x + self.drop_path2(last, keys)
        return (x, last) if added else x


class PostNormBlock(Block):
    """The original transformer's order, each norm after its residual: data2vec 2's block (Baevski et al., 2023)."""

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        keys: Tensor | None = None,
        added: bool = False,
    ) -> Any:
        """The tokens after attention and feed-forward; with `added`, also what the latter has added before the norm."""
        x = self.norm1(x + self.drop_path1(self.ls1(self.attn(x, attn_mask=attn_mask)), keys))
        last = self.ls2(self.mlp(x))
        x = self.norm2(x + self.drop_path2(last, keys))
        return (x, last) if added else x


class QueryValueLinear(nn.Linear):
    """A projection to queries, keys and values whose keys have no bias (BEiT's); its entries in `bias` stay zero."""

    def forward(self, input: Tensor) -> Tensor:
        """Queries, keys and values, one after another."""
        query, key, value = self.bias.chunk(3)
        return functional.linear(input, self.weight, torch.cat([query, torch.zeros_like(key), value]))
