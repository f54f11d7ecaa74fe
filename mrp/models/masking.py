"""Which patches of which image are hidden: integer hashes of (key, draw, patch), the same on every device.

Everything is computed in int64 lanes that never exceed 63 bits: multipliers stay below 2**31 and each product is cut
back to 32 bits, because signed overflow is undefined in compiled CPU code. In a mask, True means hidden.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange, repeat
from torch import Tensor

_LOW = 0xFFFFFFFF


def _mix(words: Tensor) -> Tensor:
    """A bijective 32-bit hash (xor-shift and multiply), on int64 tensors."""
    words = words ^ (words >> 16)
    words = (words * 0x7FEB352D) & _LOW
    words = words ^ (words >> 15)
    words = (words * 0x46AC12FD) & _LOW
    words = words ^ (words >> 16)
    words = (words * 0x4C957F2D) & _LOW
    return words ^ (words >> 15)


def fold(keys: Tensor, *parts: int | Tensor) -> Tensor:
    """32 random bits for each (63-bit key, part, ...), broadcast together, as int64."""
    state = _mix((keys & _LOW) ^ 0x1B56C4E9)
    state = _mix(state ^ (keys >> 32))
    for part in parts:
        state = _mix((state + 0x3C6EF372 + part) & _LOW)
    return state


def below(limit: int | Tensor, keys: Tensor, *parts: int | Tensor) -> Tensor:
    """A whole number from 0 to limit - 1 for each (key, part, ...), all equally likely; the limit is below 2**31."""
    return (fold(keys, *parts) * limit) >> 32


def random_mask(keys: Tensor, num_patches: int, num_hidden: int, draw: int | Tensor = 0) -> Tensor:
    """Hide exactly `num_hidden` patches of each image, every subset equally likely (MAE's masking)."""
    patch = torch.arange(num_patches, device=keys.device)
    return _first(fold(keys[:, None], _column(draw), patch), num_hidden)


def unit_mask(
    keys: Tensor, grid: tuple[int, int], unit: tuple[int, int], num_hidden: int, draw: int | Tensor = 0
) -> Tensor:
    """Hide exactly `num_hidden` units of `unit` patches each (SimMIM's masking; Xie et al., 2022)."""
    rows, columns = grid[0] // unit[0], grid[1] // unit[1]
    units = random_mask(keys, rows * columns, num_hidden, draw)
    return repeat(units, "b (h w) -> b (h p w q)", h=rows, w=columns, p=unit[0], q=unit[1])


def block_shapes(grid: tuple[int, int], smallest: int, largest: int, narrowest: float) -> Tensor:
    """Every height and width that a block may have: as whole numbers, so that all devices draw the same ones.

    BEiT draws the area uniformly and the logarithm of the aspect uniformly; together that is uniform over heights and
    widths, and so is a draw from this list.
    """
    shapes = [
        (height, width)
        for height in range(1, grid[0] + 1)
        for width in range(1, grid[1] + 1)
        if smallest <= height * width <= largest and narrowest <= height / width <= 1 / narrowest
    ]
    return torch.tensor(shapes, dtype=torch.int64).reshape(-1, 2)


def block_mask(
    keys: Tensor, grid: tuple[int, int], shapes: Tensor, num_hidden: int, draw: int | Tensor = 0, candidates: int = 32
) -> Tensor:
    """Hide exactly `num_hidden` patches in blocks of these shapes (BEiT's masking; Bao et al., 2022).

    Blocks are laid one after another until there are enough; of the last one, the patches nearest to its centre are
    taken. All candidates are drawn at once, so there is nothing to wait for; should even they be too few, the rest is
    drawn from the other patches.
    """
    draw = _column(draw)
    block = torch.arange(candidates, device=keys.device)
    height, width = shapes.to(keys.device)[below(len(shapes), keys[:, None], draw, block, 0)].unbind(-1)  # B K
    top = below(grid[0] - height + 1, keys[:, None], draw, block, 1)
    left = below(grid[1] - width + 1, keys[:, None], draw, block, 2)
    row, column = _places(grid, keys.device)
    # Twice the distance to the centre, in units that make the block a square: whole numbers again.
    down, across = (
        2 * (row - top[..., None]) + 1 - height[..., None],
        2 * (column - left[..., None]) + 1 - width[..., None],
    )
    distance = torch.maximum(down.abs() * width[..., None], across.abs() * height[..., None])  # B K N
    inside = (down.abs() < height[..., None]) & (across.abs() < width[..., None])
    farthest = 2 * (grid[0] + grid[1]) ** 2
    rank = torch.where(inside, block[:, None] * farthest + distance, candidates * farthest).amin(1)  # B N
    chance = fold(keys[:, None], draw, row * grid[1] + column, 3) >> 22  # ten bits, lest the sum grow beyond 63
    return _first((rank << 10) + chance, num_hidden)


def inverse_block_mask(
    keys: Tensor, grid: tuple[int, int], block: int, num_blocks: int, num_hidden: int, draw: int | Tensor = 0
) -> Tensor:
    """Hide all but a few square blocks, mended to exactly `num_hidden` patches (data2vec 2; Baevski et al., 2023)."""
    draw = _column(draw)
    row, column = _places(grid, keys.device)
    patch = row * grid[1] + column
    centre = below(len(patch), keys[:, None], draw, torch.arange(num_blocks, device=keys.device), 0)[..., None]  # B K 1
    down, across = row - centre // grid[1] + block // 2, column - centre % grid[1] + block // 2
    kept = ((down >= 0) & (down < block) & (across >= 0) & (across < block)).any(1)  # B N
    return _first((kept.long() << 32) + fold(keys[:, None], draw, patch, 1), num_hidden)


def _column(draw: int | Tensor) -> int | Tensor:
    return draw[:, None] if isinstance(draw, Tensor) else draw


def _places(grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of every patch."""
    patch = torch.arange(grid[0] * grid[1], device=device)
    return patch // grid[1], patch % grid[1]


def _first(rank: Tensor, count: int) -> Tensor:
    """True for the `count` entries of each row that rank first; ties go to the earlier one, whatever the sort does."""
    num = rank.shape[1]
    order = (rank * num + torch.arange(num, device=rank.device)).argsort(dim=1)
    return torch.zeros(rank.shape, dtype=torch.bool, device=rank.device).scatter(1, order[:, :count], True)


def visible_places(mask: Tensor, num_visible: int) -> Tensor:
    """Indices of the visible patches, ascending; `num_visible` is known beforehand, so shapes stay static."""
    patch = torch.arange(mask.shape[1], device=mask.device)
    return (mask.long() * mask.shape[1] + patch).argsort(dim=1)[:, :num_visible]  # B V


def gather_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """The tokens at these places, for each of the views of each image."""
    index = rearrange(places, "(b m) v -> b (m v)", b=len(tokens))
    found = tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
    return rearrange(found, "b (m v) d -> (b m) v d", v=places.shape[1])  # BM V D


def scatter_tokens(background: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
    """A copy of the background with these tokens written at their places."""
    return background.scatter(1, places[..., None].expand(-1, -1, tokens.shape[-1]), tokens)  # B N D


def noise_table(window: int) -> Tensor:
    """Normal numbers, always the same, for windows of this size (by the method of Box and Muller)."""
    place = torch.arange(window + 2**20)
    radius, angle = ((fold(place, part).double() + 0.5) / 2**32 for part in (0, 1))
    return ((-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()).float()


def keyed_noise(table: Tensor, keys: Tensor, num_patches: int) -> Tensor:
    """For each key, the numbers of a window of the table: as good as fresh ones, and the same on every device."""
    start = below(2**20, keys, 0x6E01)
    window = len(table) - 2**20
    return rearrange(table.unfold(0, window, 1)[start], "b (n d) -> b n d", n=num_patches)
