"""Masks: exact counts, every patch alike, the same for the same key wherever it is."""

from __future__ import annotations

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
