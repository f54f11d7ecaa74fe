"""The initial weights that the official recipes start from."""

from __future__ import annotations

import pytest
import torch

from mrp.models import vit


def test_beits_initial_weights_shrink_what_a_block_adds() -> None:
    torch.manual_seed(0)
    config = vit.Config(width=128, depth=3, heads=4, patch=8, init="truncated")
    model = vit.build(config, (32, 32), 3)
    for layer, block in enumerate(model.blocks, start=1):
        assert float(block.attn.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
        for added in (block.attn.proj, block.mlp.fc2):
            assert float(added.weight.detach().std()) == pytest.approx(0.02 / (2 * layer) ** 0.5, rel=0.03)
        assert not block.mlp.fc1.bias.any()
