"""Masks: exact counts, every patch alike, the same for the same key wherever it is."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrp.models import masking

KEYS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8).map(torch.tensor)


@given(KEYS, st.integers(2, 300), st.data())
def test_exactly_so_many_are_hidden_and_rows_do_not_depend_on_each_other(
    keys: torch.Tensor, n: int, data: st.DataObject
) -> None:
    hidden = data.draw(st.integers(1, n - 1))
    mask = masking.random_mask(keys, n, hidden)
    assert mask.dtype == torch.bool
    assert (mask.sum(1) == hidden).all()
    assert torch.equal(mask[-1:], masking.random_mask(keys[-1:], n, hidden))


def test_every_patch_and_every_pair_is_hidden_equally_often() -> None:
    count, n, hidden = 40_000, 16, 12
    mask = masking.random_mask(torch.arange(count), n, hidden).float()
    once = mask.mean(0)
    twice = (mask.T @ mask / count)[~torch.eye(n, dtype=torch.bool)]
    assert (once - hidden / n).abs().max() < 5 * (0.75 * 0.25 / count) ** 0.5
    pair = hidden * (hidden - 1) / (n * (n - 1))
    assert (twice - pair).abs().max() < 5 * (pair * (1 - pair) / count) ** 0.5


def test_draws_and_neighbouring_keys_are_independent() -> None:
    keys = torch.arange(20_000)
    masks = [
        masking.random_mask(keys + shift, 64, 48, draw).float().flatten()
        for shift, draw in ((0, 0), (1, 0), (0, 1), (2**40, 0))
    ]
    off_diagonal = torch.corrcoef(torch.stack(masks)) - torch.eye(4)
    assert off_diagonal.abs().max() < 5e-3


def test_a_flipped_key_bit_moves_every_output_bit_half_of_the_time() -> None:
    keys = torch.randint(0, 2**62, (20_000,))
    for bit in range(0, 62, 7):
        moved = masking.fold(keys) ^ masking.fold(keys ^ (1 << bit))
        shares = torch.stack([((moved >> out) & 1).double().mean() for out in range(32)])
        assert (shares - 0.5).abs().max() < 0.03, bit


def test_hashes_stay_in_32_bits() -> None:
    words = masking.fold(torch.tensor([0, 1, 2**63 - 1]), 3, torch.tensor([[0], [7]]))
    assert words.shape == (2, 3)
    assert words.min() >= 0
    assert words.max() < 2**32


def test_the_numbers_never_change() -> None:
    """A change here changes every run: raise data.order.VERSION with it."""
    mask = masking.random_mask(torch.tensor([0, 1, 2**62 + 5]), 16, 12)
    assert [row.nonzero().flatten().tolist() for row in ~mask] == [[0, 4, 10, 15], [1, 2, 7, 14], [1, 3, 4, 8]]


@given(KEYS, st.integers(2, 64), st.data())
def test_visible_tokens_go_out_and_come_back(keys: torch.Tensor, n: int, data: st.DataObject) -> None:
    hidden = data.draw(st.integers(1, n - 1))
    mask = masking.random_mask(keys, n, hidden)
    places = masking.visible_places(mask, n - hidden)
    assert (places.diff(dim=1) > 0).all()
    assert not mask.gather(1, places).any()
    tokens = torch.randn(len(keys), n, 3)
    back = masking.scatter_tokens(torch.zeros_like(tokens), masking.gather_tokens(tokens, places), places)
    assert torch.equal(back, tokens * ~mask[..., None])


@given(KEYS, st.integers(1, 6), st.integers(1, 6), st.sampled_from([(1, 1), (2, 2), (1, 3)]), st.data())
def test_units_are_hidden_whole(
    keys: torch.Tensor, rows: int, columns: int, unit: tuple[int, int], data: st.DataObject
) -> None:
    hidden = data.draw(st.integers(0, rows * columns))
    grid = (rows * unit[0], columns * unit[1])
    mask = masking.unit_mask(keys, grid, unit, hidden, torch.arange(len(keys)))
    units = mask.view(-1, rows, unit[0], columns, unit[1]).transpose(2, 3).flatten(3)
    assert (units.all(3) == units.any(3)).all()
    assert (units.all(3).sum((1, 2)) == hidden).all()


GRIDS = st.tuples(st.integers(4, 16), st.integers(4, 16))


def test_block_masks_have_room_for_the_largest_grids() -> None:
    grid, keys = (128, 128), torch.arange(2)
    shapes = masking.block_shapes(grid, 16, 10_000, 0.3)
    mask = masking.block_mask(keys, grid, shapes, 10_000, candidates=4)
    assert (mask.sum(1) == 10_000).all()
    assert perimeter(mask.view(-1, *grid).int()) < 2000


@given(KEYS, GRIDS, st.data())
def test_blocks_hide_exactly_so_many_whatever_the_grid(
    keys: torch.Tensor, grid: tuple[int, int], data: st.DataObject
) -> None:
    num_patches = grid[0] * grid[1]
    hidden = data.draw(st.integers(num_patches // 4, num_patches - 1))
    shapes = masking.block_shapes(grid, min(16, num_patches // 8), hidden, 0.3)
    draw = torch.arange(len(keys))
    mask = masking.block_mask(keys, grid, shapes, hidden, draw)
    assert (mask.sum(1) == hidden).all()
    assert torch.equal(mask[-1:], masking.block_mask(keys[-1:], grid, shapes, hidden, len(keys) - 1))


@given(GRIDS, st.integers(1, 64), st.integers(1, 200))
def test_blocks_are_neither_small_nor_narrow(grid: tuple[int, int], smallest: int, largest: int) -> None:
    shapes = masking.block_shapes(grid, smallest, largest, 0.3)
    area, aspect = shapes.prod(1), shapes[:, 0] / shapes[:, 1]
    assert ((area >= smallest) & (area <= largest)).all()
    assert ((aspect >= 0.3 - 1e-6) & (aspect <= 1 / 0.3 + 1e-6)).all()
    assert (shapes <= torch.tensor(grid)).all()


def perimeter(mask: torch.Tensor) -> float:
    """Neighbours of which one is hidden and one is not, per mask."""
    return float(mask.diff(dim=1).abs().sum() + mask.diff(dim=2).abs().sum()) / len(mask)


def test_blocks_hang_together_as_beits_do() -> None:
    keys = torch.arange(2000)
    shapes = masking.block_shapes((14, 14), 16, 120, 0.3)
    blocks = masking.block_mask(keys, (14, 14), shapes, 120).view(-1, 14, 14).int()
    scattered = masking.random_mask(keys, 196, 120).view(-1, 14, 14).int()
    assert perimeter(scattered) > 170
    assert perimeter(blocks) == pytest.approx(39, abs=2)  # 42.5 where the count is only nearly met, as BEiT does it
    hidden = blocks.float().mean(0)
    assert hidden[7, 7] > 0.9  # the centre more often than the corners, as there
    assert hidden[0, 0] < 0.15
    assert torch.allclose(hidden, hidden.flip(0, 1), atol=0.06)


def beits(generator: random.Random, grid: tuple[int, int], smallest: int, num_hidden: int) -> list[list[int]]:
    """The rule of BEiT's code by itself, which goes on until it has enough."""
    mask, missing = [[0] * grid[1] for _ in range(grid[0])], num_hidden
    while missing:
        area = generator.uniform(smallest, missing)
        aspect = math.exp(generator.uniform(math.log(0.3), -math.log(0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= grid[0] or width >= grid[1]:
            continue
        top, left = generator.randint(0, grid[0] - height), generator.randint(0, grid[1] - width)
        more = [(r, c) for r in range(top, top + height) for c in range(left, left + width) if not mask[r][c]]
        if len(more) <= missing:
            missing -= len(more)
            for r, c in more:
                mask[r][c] = 1
    return mask


@pytest.mark.parametrize(
    ("grid", "smallest", "hidden"), [((14, 14), 16, 120), ((14, 14), 15, 78), ((6, 12), 8, 40), ((4, 4), 2, 10)]
)
def test_beits_blocks_lie_where_beits_code_puts_them(grid: tuple[int, int], smallest: int, hidden: int) -> None:
    generator, keys = random.Random(0), torch.arange(1500)
    theirs = torch.tensor([beits(generator, grid, smallest, hidden) for _ in range(1500)])
    aspects = masking.block_aspects(0.3)
    ours = masking.beit_mask(keys, torch.zeros_like(keys), aspects, *grid, smallest, hidden).view(-1, *grid)
    assert (ours.sum((1, 2)) == hidden).all()
    often = [each.float().mean(0) for each in (ours, theirs)]
    assert torch.allclose(*((each + each.flip(0, 1)) / 2 for each in often), atol=0.045)
    assert perimeter(ours.int()) == pytest.approx(perimeter(theirs), rel=0.02)
    border = [float(each[:, [0, -1]].mean()) for each in often]
    assert border[0] == pytest.approx(border[1], abs=0.012)


@pytest.mark.parametrize("grid", [(1, 9), (2, 2), (3, 16), (16, 3)])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_beits_blocks_hide_exactly_so_many_whatever_the_grid(grid: tuple[int, int], ratio: float) -> None:
    hidden = min(max(round(grid[0] * grid[1] * ratio), 1), grid[0] * grid[1] - 1)
    keys, aspects = torch.arange(40) << 40, masking.block_aspects(0.3)
    mask = masking.beit_mask(keys, keys % 3, aspects, *grid, 1, hidden)
    assert (mask.sum(1) == hidden).all()
    assert torch.equal(mask[-2:], masking.beit_mask(keys[-2:], keys[-2:] % 3, aspects, *grid, 1, hidden))
    assert len(mask.unique(dim=0)) > 1


def test_beits_blocks_fill_large_grids_too() -> None:
    """With as many blocks as a small grid needs, what is left would be drawn as patches that stand alone (28 here)."""
    keys, size = torch.arange(128), 32
    mask = masking.beit_mask(keys, torch.zeros_like(keys), masking.block_aspects(0.3), size, size, 16, 627)
    grid = torch.nn.functional.pad(mask.view(-1, size, size), (1, 1, 1, 1))
    beside = grid[:, :-2, 1:-1] | grid[:, 2:, 1:-1] | grid[:, 1:-1, :-2] | grid[:, 1:-1, 2:]
    alone = (grid[:, 1:-1, 1:-1] & ~beside).sum((1, 2))
    assert alone.max() <= 1


def test_what_blocks_leave_open_is_drawn_from_the_rest() -> None:
    shapes = torch.tensor([[1, 1]])
    mask = masking.block_mask(torch.arange(50), (8, 8), shapes, 40, candidates=2)
    assert (mask.sum(1) == 40).all()


@given(KEYS, GRIDS, st.integers(1, 4), st.integers(1, 12), st.data())
def test_inverse_blocks_leave_exactly_so_many(
    keys: torch.Tensor, grid: tuple[int, int], block: int, blocks: int, data: st.DataObject
) -> None:
    hidden = data.draw(st.integers(1, grid[0] * grid[1] - 1))
    draw = torch.arange(len(keys))
    mask = masking.inverse_block_mask(keys, grid, block, blocks, hidden, draw)
    assert (mask.sum(1) == hidden).all()
    assert torch.equal(mask[-1:], masking.inverse_block_mask(keys[-1:], grid, block, blocks, hidden, len(keys) - 1))


def test_what_inverse_blocks_leave_is_squares() -> None:
    keys = torch.arange(2000)
    visible = ~masking.inverse_block_mask(keys, (14, 14), 3, 5, 157).view(-1, 14, 14)
    squares = torch.nn.functional.unfold(visible[:, None].float(), 3).eq(1).all(1).any(1)
    assert squares.float().mean() > 0.95
    hidden = 1 - visible.float().mean(0)
    assert torch.allclose(hidden[2:-2, 2:-2], torch.tensor(0.785), atol=0.06)
    assert hidden[0].min() > 0.8  # a square that reaches over the edge is cut off there


def test_draws_of_block_masks_differ() -> None:
    keys = torch.zeros(64, dtype=torch.int64)
    draw = torch.arange(64)
    shapes = masking.block_shapes((14, 14), 16, 120, 0.3)
    for mask in (
        masking.block_mask(keys, (14, 14), shapes, 120, draw),
        masking.inverse_block_mask(keys, (14, 14), 3, 5, 157, draw),
        masking.beit_mask(keys, draw, masking.block_aspects(0.3), 14, 14, 16, 120),
        masking.unit_mask(keys, (14, 14), (2, 2), 30, draw),
    ):
        assert len(mask.unique(dim=0)) == 64


def test_block_masks_never_change() -> None:
    """A change here changes every run: raise data.order.VERSION with it."""
    keys = torch.tensor([0, 2**62 + 5])
    shapes = masking.block_shapes((4, 4), 4, 9, 0.3)
    blocks = masking.block_mask(keys, (4, 4), shapes, 9, 1)
    beits = masking.beit_mask(keys, torch.ones_like(keys), masking.block_aspects(0.3), 4, 4, 4, 9)
    inverse = masking.inverse_block_mask(keys, (4, 4), 2, 2, 10, 1)
    assert [row.nonzero().flatten().tolist() for row in ~blocks] == [[0, 1, 2, 3, 4, 7, 15], [0, 1, 2, 3, 7, 11, 15]]
    assert [row.nonzero().flatten().tolist() for row in ~beits] == [
        [0, 4, 8, 12, 13, 14, 15],
        [0, 4, 8, 11, 12, 13, 15],
    ]
    assert [row.nonzero().flatten().tolist() for row in ~inverse] == [[1, 2, 5, 6, 8, 9], [0, 1, 6, 8, 12, 15]]


def test_keyed_noise_is_normal_and_follows_the_key() -> None:
    table = masking.noise_table(16 * 32)
    keys = torch.arange(500)
    noise = masking.keyed_noise(table, keys, 16)
    assert noise.shape == (500, 16, 32)
    assert abs(float(noise.mean())) < 0.01
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    assert float((noise.abs() > 2).float().mean()) == pytest.approx(0.0455, abs=0.003)
    assert torch.equal(noise[7:9], masking.keyed_noise(table, keys[7:9], 16))
    assert len(noise[:, 0, :4].unique(dim=0)) > 495
