"""Attention computed again is what the fused kernel has used."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mrp.config import ConfigError
from mrp.models import attention, vit
from tests.models.test_blocks import build

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared bias": {"relative_bias": "shared", "positions": "none", "qkv_bias": "query_value"},
    "bias per block": {"relative_bias": "per_block", "class_token": False},
    "post-norm": {"norm": "post", "registers": 2},
}


def shaken(**options: Any) -> vit.Backbone:
    torch.manual_seed(0)
    model = build(**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_is_what_the_fused_kernel_has_used(options: dict[str, Any]) -> None:
    model = shaken(**options)
    seen: list[tuple[Any, ...]] = []
    inside: Any = model.blocks[1].attn  # type: ignore[index]
    assert inside.fused_attn
    inside.register_forward_hook(lambda _, given, named, output: seen.append((given, named, output)), with_kwargs=True)
    images = torch.rand(2, 3, 16, 16)
    shares = attention.to_patches(model, images, 1)
    ((tokens,), named, output) = seen[0]
    assert (named["attn_mask"] is not None) == ("relative_bias" in options)
    weights = attention.weights(inside, tokens, named["attn_mask"])
    values = inside.qkv(tokens).unflatten(-1, (3, 4, -1))[:, :, 2].transpose(1, 2)
    again = inside.proj((weights @ values).transpose(1, 2).flatten(2))
    assert torch.allclose(again, output, atol=1e-5)
    assert shares.shape == (2, 4, 16)
    if model.has_class_token:
        assert torch.allclose(shares, weights[:, :, 0, model.num_prefix_tokens :], atol=1e-6)
    else:
        logarithms = weights.log()  # scores up to a constant per query, which the softmax does not see
        assert torch.allclose(shares, logarithms.mean(2).softmax(-1), atol=1e-6)
    assert not inside._forward_pre_hooks


def test_blocks_of_another_kind_are_named() -> None:
    config = vit.Config(name="vit_tiny_patch16_224")
    model = vit.build(config, (32, 32), 3)
    model.blocks[-1].attn = torch.nn.Identity()  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="Block has no attention that is known here"):
        attention.to_patches(model, torch.rand(1, 3, 32, 32), -1)
