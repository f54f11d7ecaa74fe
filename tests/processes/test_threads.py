"""The threads of torch's work on a CPU, which are a run's while it trains and the caller's afterwards."""

from __future__ import annotations

import pytest
import torch

from mrp.processes.threads import limited


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with limited(before + 2):
        assert torch.get_num_threads() == before + 2
        with limited(None):
            assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), limited(before + 2):
        raise KeyError
    assert torch.get_num_threads() == before
