"""Which patches of an image are hidden, and all other randomness per sample: integer hashes of the sample's key.

The same numbers come out on every device. All is computed in int64 and no product exceeds 63 bits, since signed
overflow is undefined in compiled CPU code: multipliers stay below 2**31 and each product is cut back to 32 bits.
In a mask, True means hidden.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange, repeat
from torch import Tensor

_LOW = 0xFFFFFFFF
_ASPECTS = 1024  # as finely are the aspects of BEiT's blocks drawn
_BLOCKS, _PER_BLOCK, _TRIES = 14, 32, 10  # at least so many, one per so many patches; the first try that may be
_SOME = 0x50E1  # sets the choice among hidden patches apart from the draw of the mask


def _mix(words: Tensor) -> Tensor:
    """Returns a bijective hash of 32-bit words that are held in int64 (xor-shift and multiply)."""
    words = words ^ (words >> 16)
    words = (words * 0x7FEB352D) & _LOW
    words = words ^ (words >> 15)
    words = (words * 0x46AC12FD) & _LOW
    words = words ^ (words >> 16)
    words = (words * 0x4C957F2D) & _LOW
    return words ^ (words >> 15)


def fold(keys: Tensor, *parts: int | Tensor) -> Tensor:
    """Returns 32 random bits, as int64, for each 63-bit key and the parts that are broadcast with it."""
    state = _mix((keys & _LOW) ^ 0x1B56C4E9)
    state = _mix(state ^ (keys >> 32))
    for part in parts:
        state = _mix((state + 0x3C6EF372 + part) & _LOW)
    return state


def below(limit: int | Tensor, keys: Tensor, *parts: int | Tensor) -> Tensor:
    """Returns a random whole number from 0 to limit - 1 for each key and the parts; the limit is below 2**31."""
    return (fold(keys, *parts) * limit) >> 32


def normal(keys: Tensor, *parts: int | Tensor) -> Tensor:
    """Returns a normal number for each key and the parts, by the method of Box and Muller."""
    radius, angle = ((fold(keys, *parts, part).double() + 0.5) / 2**32 for part in (0, 1))
    return ((-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()).float()


def random_mask(keys: Tensor, num_patches: int, num_hidden: int, draw: int | Tensor = 0) -> Tensor:
    """Returns masks that hide exactly `num_hidden` patches each, every subset equally likely (MAE's masking)."""
    patch = torch.arange(num_patches, device=keys.device)
    return _lowest(fold(keys[:, None], _column(draw), patch), num_hidden)


def unit_mask(
    keys: Tensor, grid: tuple[int, int], unit: tuple[int, int], num_hidden: int, draw: int | Tensor = 0
) -> Tensor:
    """Returns masks that hide `num_hidden` rectangles of `unit` patches each (SimMIM's masking; Xie et al., 2022)."""
    rows, columns = grid[0] // unit[0], grid[1] // unit[1]
    units = random_mask(keys, rows * columns, num_hidden, draw)
    return repeat(units, "b (h w) -> b (h p w q)", h=rows, w=columns, p=unit[0], q=unit[1])


def some_hidden(mask: Tensor, keys: Tensor, count: int) -> Tensor:
    """Returns masks that hold `count` of the hidden patches of each row, every subset equally likely."""
    patch = torch.arange(mask.shape[1], device=mask.device)
    return _lowest(((~mask).long() << 32) + fold(keys[:, None], _SOME, patch), count)


def block_shapes(grid: tuple[int, int], smallest: int, largest: int, narrowest: float) -> Tensor:
    """Returns every height and width that a block may have, so that a block is drawn by a whole number on every device.

    BEiT draws the area and the logarithm of the aspect uniformly. That is uniform over heights and widths, and so is a
    draw from this list.
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
    """Returns masks that hide exactly `num_hidden` patches in blocks of these shapes (BEiT's; Bao et al., 2022).

    Blocks are added one after another until enough patches are hidden; of the last block, the patches nearest to its
    centre are taken. All candidates are drawn at once, so that shapes are static. If even they are too few, the rest is
    drawn from the other patches.
    """
    block = torch.arange(candidates, device=keys.device)
    inside, distance = _blocks(keys, grid, shapes, block, draw)
    farthest = _farthest(grid)
    rank = torch.where(inside, block[:, None] * farthest + distance, candidates * farthest).amin(1)  # B N
    patch = torch.arange(grid[0] * grid[1], device=keys.device)
    chance = fold(keys[:, None], _column(draw), patch, 3) >> 22  # ten bits, so that the sum stays below 63
    return _lowest((rank << 10) + chance, num_hidden)


def block_aspects(narrowest: float) -> Tensor:
    """Returns aspects of blocks in units of 2**-16, as many above 1 as below: their logarithm is uniform."""
    share = (2 * torch.arange(_ASPECTS, dtype=torch.float64) + 1) / _ASPECTS  # between 0 and 2
    return (2**16 * narrowest ** (1 - share)).round().long()


@torch.library.custom_op("mrp::beit_mask", mutates_args=())  # compiled as a part of a step, the loop would take minutes
def beit_mask(
    keys: Tensor, draws: Tensor, aspects: Tensor, rows: int, columns: int, smallest: int, num_hidden: int
) -> Tensor:
    """Returns masks that hide exactly `num_hidden` patches in blocks, drawn as BEiT's code does (Bao et al., 2022).

    A block's area is uniform from `smallest` to the number of patches that are missing, the logarithm of its aspect is
    uniform, and both sides are rounded. It may be taken if it leaves a row and a column of the grid free and hides at
    least one more patch, but no more than are missing. Ten are drawn at a time, and the first that may be taken is
    taken. BEiT gives up where none may; here ten others are drawn, and what is missing in the end is drawn from the
    other patches.
    """
    number = torch.arange(max(_BLOCKS, rows * columns // _PER_BLOCK) * _TRIES, device=keys.device)
    parts = torch.arange(6, 10, device=keys.device)
    drawn = fold(keys[:, None, None], draws[:, None, None], number[:, None], parts)  # B T 4
    kind = (drawn[..., 0] * len(aspects)) >> 32
    stretches = 4 * torch.stack([aspects[kind], aspects[len(aspects) - 1 - kind]], -1)  # B T 2: height and width
    line = torch.arange(max(rows, columns), device=keys.device)
    squares = (2 * line + 1) ** 2 << 32
    ends = rows + (columns - rows) * torch.arange(2, device=keys.device)  # not from a list, for which the host waits
    longest = (ends - 1).clamp(min=1)
    free = torch.ones(len(keys), rows, columns, dtype=torch.bool, device=keys.device)
    missing = torch.full_like(keys[:, None], num_hidden)  # B 1
    ten = (each.split(_TRIES, 1) for each in (drawn[..., 1] >> 16, stretches, drawn[..., 2:]))
    for share, stretch, place in zip(*ten, strict=True):
        area = (smallest << 16) + share * (missing - smallest)  # B K
        # The rounded root of area times aspect: for so many sides from 1 on, (2 side - 1)^2 is at most four times that.
        sides = ((area[..., None] * stretch)[..., None] >= squares).sum(-1)  # B K 2
        along = line - (place * (ends - sides + 1) >> 32)[..., None]  # B K 2 S
        within = (along >= 0) & (along < sides[..., None])
        inside = within[:, :, 0, :rows, None] & within[:, :, 1, None, :columns]  # B K R C
        more = (inside & free[:, None]).sum((-2, -1))
        fits = (sides <= longest).all(-1) & (more > 0) & (more <= missing)
        first = fits & (fits.cumsum(1) == 1)
        free = free & ~(inside & first[..., None, None]).any(1)
        missing = missing - (more * first).sum(1, keepdim=True)
    others = fold(keys[:, None], draws[:, None], torch.arange(rows * columns, device=keys.device), 10)
    return _lowest((free.flatten(1).long() << 32) + others, num_hidden)


@beit_mask.register_fake
def _shape_of_beit_mask(keys: Tensor, draws: Tensor, aspects: Tensor, rows: int, columns: int, *more: int) -> Tensor:
    return keys.new_empty(keys.shape[0], rows * columns, dtype=torch.bool)


def multi_block_mask(
    keys: Tensor,
    grid: tuple[int, int],
    shapes: tuple[Tensor, Tensor],
    size: int,
    num_targets: int,
    num_visible: int,
    draw: int | Tensor = 0,
) -> tuple[Tensor, Tensor]:
    """Returns masks that leave `num_visible` patches of a large block, and the target blocks that it must not meet.

    These are I-JEPA's (Assran et al., 2023). `shapes` are those of targets and of the large block. Of each target the
    `size` patches nearest to its centre are kept. Of the large block without the targets,
    patches are taken from a random one on, in the order of the image and around its end. Where it has too few, others
    that are no targets are taken, and then targets, so that shapes are static.
    """
    block = torch.arange(num_targets + 1, device=keys.device)
    inside, distance = _blocks(keys, grid, shapes[0], block[:-1], draw)  # B T N
    num_patches = grid[0] * grid[1]
    patch = torch.arange(num_patches, device=keys.device)
    each = draw[:, None, None] if isinstance(draw, Tensor) else draw
    chance = fold(keys[:, None, None], each, block[:-1, None], patch, 4) >> 22  # of equally near ones, any
    rank = (torch.where(inside, distance, _farthest(grid)) << 10) + chance
    targets = _lowest(rank.flatten(0, 1), size).unflatten(0, (len(keys), num_targets))
    large = _blocks(keys, grid, shapes[1], block[-1:], draw)[0].any(1)  # B N
    last = torch.where(inside.any(1), 2, torch.where(large, 0, 1))
    start = below(num_patches, keys[:, None], _column(draw), num_targets, 3)
    order = (patch - start) % num_patches
    return ~_lowest(last * num_patches + order, num_visible), targets  # B N, B T N


def rolled_block_mask(
    keys: Tensor, grid: tuple[int, int], shapes: Tensor, num_visible: int, draw: int | Tensor = 0
) -> Tensor:
    """Returns masks that hide all but one block, which goes on at the opposite border (CAPI; Darcet et al., 2025).

    The first `num_visible` patches of the block are seen, row by row; it must hold as many.
    """
    draw = _column(draw)
    chosen = below(len(shapes), keys[:, None], draw, 0, 5)
    height, width = shapes.to(keys.device)[chosen].unbind(-1)  # B 1
    row, column = _places(grid, keys.device)
    down = (row - below(grid[0], keys[:, None], draw, 1, 5)) % grid[0]
    across = (column - below(grid[1], keys[:, None], draw, 2, 5)) % grid[1]
    outside = (down >= height) | (across >= width)
    return ~_lowest((outside.long() << 32) + down * grid[1] + across, num_visible)


def inverse_block_mask(
    keys: Tensor, grid: tuple[int, int], block: int, num_blocks: int, num_hidden: int, draw: int | Tensor = 0
) -> Tensor:
    """Returns masks that hide all but a few squares, corrected to `num_hidden` patches (data2vec 2; Baevski, 2023)."""
    draw = _column(draw)
    row, column = _places(grid, keys.device)
    patch = row * grid[1] + column
    centre = below(len(patch), keys[:, None], draw, torch.arange(num_blocks, device=keys.device), 0)[..., None]  # B K 1
    down, across = row - centre // grid[1] + block // 2, column - centre % grid[1] + block // 2
    kept = ((down >= 0) & (down < block) & (across >= 0) & (across < block)).any(1)  # B N
    return _lowest((kept.long() << 32) + fold(keys[:, None], draw, patch, 1), num_hidden)


def _blocks(
    keys: Tensor, grid: tuple[int, int], shapes: Tensor, block: Tensor, draw: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Returns which patches lie in each of these blocks of random shape and place, and how far from its centre."""
    draw = _column(draw)
    height, width = shapes.to(keys.device)[below(len(shapes), keys[:, None], draw, block, 0)].unbind(-1)  # B K
    top = below(grid[0] - height + 1, keys[:, None], draw, block, 1)
    left = below(grid[1] - width + 1, keys[:, None], draw, block, 2)
    row, column = _places(grid, keys.device)
    # Twice the distance to the centre, in units that make the block a square: whole numbers too.
    down, across = (
        2 * (row - top[..., None]) + 1 - height[..., None],
        2 * (column - left[..., None]) + 1 - width[..., None],
    )
    distance = torch.maximum(down.abs() * width[..., None], across.abs() * height[..., None])  # B K N
    return (down.abs() < height[..., None]) & (across.abs() < width[..., None]), distance


def _farthest(grid: tuple[int, int]) -> int:
    """Returns a bound of the distances that `_blocks` gives."""
    return 2 * (grid[0] + grid[1]) ** 2


def _column(draw: int | Tensor) -> int | Tensor:
    return draw[:, None] if isinstance(draw, Tensor) else draw


def _places(grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the row and the column of every patch."""
    patch = torch.arange(grid[0] * grid[1], device=device)
    return patch // grid[1], patch % grid[1]


def _lowest(rank: Tensor, count: int) -> Tensor:
    """Returns True for the `count` lowest entries of each row; of equal ones the earlier is lower, on every device."""
    num = rank.shape[1]
    order = (rank * num + torch.arange(num, device=rank.device)).argsort(dim=1)
    return torch.zeros(rank.shape, dtype=torch.bool, device=rank.device).scatter(1, order[:, :count], True)


def visible_places(mask: Tensor, num_visible: int) -> Tensor:
    """Returns the indices of the visible patches, ascending; `num_visible` is given, so that shapes are static."""
    patch = torch.arange(mask.shape[1], device=mask.device)
    return (mask.long() * mask.shape[1] + patch).argsort(dim=1)[:, :num_visible]  # B V


def gather_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """Returns the tokens at these places, for each view of each image."""
    index = rearrange(places, "(b m) v -> b (m v)", b=len(tokens))
    gathered = tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
    return rearrange(gathered, "b (m v) d -> (b m) v d", v=places.shape[1])  # BM V D


def scatter_tokens(background: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
    """Returns a copy of the background with these tokens written at their places."""
    return background.scatter(1, places[..., None].expand(-1, -1, tokens.shape[-1]), tokens)  # B N D


def noise_table(window: int) -> Tensor:
    """Returns a fixed table of normal numbers for windows of this size."""
    return normal(torch.arange(window + 2**20))


def keyed_noise(table: Tensor, keys: Tensor, num_patches: int) -> Tensor:
    """Returns a window of the table for each key: normal noise that is the same on every device."""
    start = below(2**20, keys, 0x6E01)
    window = len(table) - 2**20
    return rearrange(table.unfold(0, window, 1)[start], "b (n d) -> b n d", n=num_patches)
