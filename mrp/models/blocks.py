"""The parts of a backbone that official recipes need and timm's own ViT lacks, under timm's parameter names."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
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


class RelativeBias(nn.Module):
    """A learned bias of attention by head and by the offset between two patches (BEiT's; Bao et al., 2022).

    Three more entries serve the prefix: from a prefix token to a patch, back, and between prefix tokens.
    """

    relative_position_index: Tensor

    def __init__(self, grid: tuple[int, int], num_prefix: int, num_heads: int) -> None:
        super().__init__()
        num_offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        self.num_prefix = num_prefix
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_offsets + 3, num_heads))
        index = functional.pad(_offsets(grid), (num_prefix, 0, num_prefix, 0), value=num_offsets + 1)
        index[:num_prefix] = num_offsets
        index[:num_prefix, :num_prefix] = num_offsets + 2
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, places: Tensor | None = None) -> Tensor:
        """What to add to the attention between all tokens, or between the prefix and the patches at these places."""
        index = self.relative_position_index[None]
        if places is not None:
            prefix = torch.arange(self.num_prefix, device=places.device).expand(len(places), -1)
            tokens = torch.cat([prefix, places + self.num_prefix], dim=1)  # B P+V
            index = self.relative_position_index[tokens[:, :, None], tokens[:, None, :]]
        return self.relative_position_bias_table[index].permute(0, 3, 1, 2)  # B|1 heads P+V P+V


def _offsets(grid: tuple[int, int]) -> Tensor:
    """The number of the offset between each two patches, counted row by row."""
    rows, columns = grid
    patch = torch.arange(rows * columns)
    row, column = patch // columns, patch % columns
    down, right = row[:, None] - row + rows - 1, column[:, None] - column + columns - 1
    return down * (2 * columns - 1) + right  # N N


def resample_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A table of `RelativeBias` for another grid: offsets are interpolated, the prefix's entries stay."""
    size = [2 * side - 1 for side in old]
    offsets = rearrange(table[:-3], "(h w) heads -> 1 heads h w", h=size[0], w=size[1])
    resized = functional.interpolate(offsets, [2 * side - 1 for side in new], mode="bicubic", align_corners=False)
    return torch.cat([rearrange(resized, "1 heads h w -> (h w) heads"), table[-3:]])
