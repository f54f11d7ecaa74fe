"""How a backbone knows where a patch is: fixed tables, and biases of attention learned per offset."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from mrp.config import ConfigError


def sincos(width: int, grid_size: tuple[int, int], num_prefix: int = 0) -> Tensor:
    """Returns fixed 2-D positions: the column in the first half of the channels, the row in the second; prefix zero."""
    if width % 4:
        raise ConfigError(
            f"positions: sincos needs a width that is a multiple of 4, not {width}; or use positions: learned"
        )
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid_size), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (columns, rows)]
    patches = torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], dim=1)
    return torch.cat([patches.new_zeros(num_prefix, width), patches])[None].float()  # 1 P+N D


class RelativeBias(nn.Module):
    """A bias of attention, learned per head and per offset between two patches (BEiT; Bao et al., 2022).

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
        """Returns what is added to the scores of all tokens, or of the prefix and the patches at `places`."""
        index = self.relative_position_index[None]
        if places is not None:
            prefix = torch.arange(self.num_prefix, device=places.device).expand(len(places), -1)
            tokens = torch.cat([prefix, places + self.num_prefix], dim=1)  # B P+V
            index = self.relative_position_index[tokens[:, :, None], tokens[:, None, :]]
        # Contiguous, because torch's fused attention takes no mask whose last stride is not 1.
        return self.relative_position_bias_table[index].permute(0, 3, 1, 2).contiguous()  # B|1 heads P+V P+V


def _offsets(grid: tuple[int, int]) -> Tensor:
    """Returns the index of the offset between every two patches; offsets are counted row by row."""
    rows, columns = grid
    patch = torch.arange(rows * columns)
    row, column = patch // columns, patch % columns
    down, right = row[:, None] - row + rows - 1, column[:, None] - column + columns - 1
    return down * (2 * columns - 1) + right  # N N


def resample_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Returns a table of `RelativeBias` for another grid, as BEiT's code does; the prefix's entries stay."""
    offsets = rearrange(table[:-3].float(), "(h w) heads -> heads h w", h=2 * old[0] - 1)
    down, right = (_between(before, now).to(offsets) for before, now in zip(old, new, strict=True))
    resized = rearrange(down @ offsets @ right.T, "heads h w -> (h w) heads")
    return torch.cat([resized.to(table.dtype), table[-3:]])


def _between(old: int, new: int) -> Tensor:
    """Returns the matrix that takes values at the offsets along a side of `old` patches to those of `new` patches.

    Neighbours stay neighbours: the old offsets lie at distances that grow by a constant ratio, the first being 1, so
    that they reach just as far as the new ones. Between them a cubic spline is laid, and beyond them values stay.
    """
    if old == new:
        return torch.eye(2 * old - 1, dtype=torch.float64)
    steps = torch.arange(old - 1, dtype=torch.float64)
    low, high = 1.01, 1.5  # the ratio, to which BEiT's code sets these bounds
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if (ratio**steps).sum() > new - 1 else (ratio, high)
    far = (ratio**steps).cumsum(0)
    before, now = torch.cat([-far.flip(0), far.new_zeros(1), far]), torch.arange(1.0 - new, new, dtype=torch.float64)
    before, now = before / before[-1].clamp(min=1), (now / before[-1].clamp(min=1)).clamp(-1, 1)
    degree, knots = min(3, len(before) - 1), before[2:-2]  # "not a knot": the outer pieces are one polynomial

    def basis(at: Tensor) -> Tensor:
        powers = at[:, None] ** torch.arange(degree + 1)
        return torch.cat([powers, (at[:, None] - knots).clamp(min=0) ** 3], dim=1)

    between: Tensor = torch.linalg.solve(basis(before), basis(now), left=False)
    return between
