"""What is held out: a share of each class, by the samples' own keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mrp.evaluate.split import few, split

LABELS = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [3])[
    torch.randperm(63, generator=torch.Generator().manual_seed(0))
]
KEYS = torch.arange(63) * 7919


def test_the_same_share_of_each_class() -> None:
    parts = split(LABELS, KEYS, share=0.2)
    assert sorted(np.concatenate(parts).tolist()) == list(range(63))
    assert LABELS[parts.held_out].bincount(minlength=4).tolist() == [10, 2, 1, 0]
    assert all((np.diff(rows) > 0).all() for rows in parts)


def test_samples_are_chosen_by_their_keys_and_not_by_their_place() -> None:
    parts = split(LABELS, KEYS)
    shuffled = torch.randperm(63, generator=torch.Generator().manual_seed(1))
    other = split(LABELS[shuffled], KEYS[shuffled])
    assert set(KEYS[shuffled][other.held_out].tolist()) == set(KEYS[parts.held_out].tolist())
    assert set(KEYS[split(LABELS, KEYS, draw=1).held_out].tolist()) != set(KEYS[parts.held_out].tolist())


def test_the_rule_is_pinned() -> None:
    assert split(torch.arange(20) % 2, torch.arange(20), share=0.2).held_out.tolist() == [5, 6, 12, 13]


def test_few_takes_so_many_of_each_class_anew_in_each_draw() -> None:
    chosen = few(LABELS, KEYS, shots=5, draw=0)
    assert LABELS[chosen].bincount(minlength=4).tolist() == [5, 5, 2, 1]
    assert set(chosen.tolist()) != set(few(LABELS, KEYS, shots=5, draw=1).tolist())
    assert chosen.tolist() == few(LABELS, KEYS, shots=5, draw=0).tolist()
    assert set(few(LABELS, KEYS, shots=1, draw=0).tolist()) < set(chosen.tolist())


def test_nothing_to_hold_out_or_no_labels() -> None:
    with pytest.raises(ValueError, match="two training samples of some class"):
        split(torch.arange(4), torch.arange(4))
    with pytest.raises(ValueError, match="have none; give labelled data"):
        split(torch.full((4,), -1), torch.arange(4))
