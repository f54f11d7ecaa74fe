"""Where a block's attention goes, computed again from its queries and keys: fused kernels keep no weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention
from torch import Tensor

from mrp.config import ConfigError
from mrp.models.vit import Backbone, embed, encode


def weights(
    attention: Any,
    tokens: Tensor,
    bias: Tensor | None,
    queries: Callable[[Tensor], Tensor] | None = None,
    rope: Tensor | None = None,
) -> Tensor:
    """Returns how much of its attention each query gives to each token; `queries` chooses or averages the queries.

    `bias` is what is added to the scores before the softmax (B|1 heads N N); it is chosen in the same way.
    `rope` is by what the patches' queries and keys are turned.
    """
    query, key = _queries_and_keys(attention, tokens, rope)  # B heads N d
    chosen = queries or (lambda rows: rows)
    scores = chosen(query) @ key.mT * attention.scale
    shares: Tensor = (scores if bias is None else scores + chosen(bias)).softmax(-1)
    return shares  # B heads queries N


def _queries_and_keys(attention: Any, tokens: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
    if getattr(attention, "qkv", None) is None:  # EVA-02's and Sapiens 2's are apart
        query, key = attention.q_proj(tokens), attention.k_proj(tokens)
    else:
        query, key, _ = attention.qkv(tokens).chunk(3, dim=-1)
        if getattr(attention, "q_bias", None) is not None:  # EVA's keys have none
            query = query + attention.q_bias
    query, key = (rows.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for rows in (query, key))
    query, key = attention.q_norm(query), attention.k_norm(key)
    if rope is not None:
        prefix, half = attention.num_prefix_tokens, attention.rotate_half
        query, key = (
            torch.cat([rows[:, :, :prefix], apply_rot_embed_cat(rows[:, :, prefix:], rope, half=half)], dim=2)
            for rows in (query, key)
        )
    return query, key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # where heads share keys


@torch.no_grad()
def to_patches(vit: Backbone, images: Tensor, layer: int) -> Tensor:
    """Returns how much attention the class token gives to each patch in a block (from 0), per head.

    A model without a class token has the mean of the patches' queries in its place. What goes to prefix tokens is left
    out, so the shares of a head may add up to less than 1.
    """
    block = vit.blocks[layer]
    if not isinstance(getattr(block, "attn", None), Attention | AttentionRope | EvaAttention):
        raise ConfigError(f"{type(block).__name__} has no attention that is known here, so it cannot be shown")
    prefix = vit.num_prefix_tokens
    found: list[Tensor] = []

    def queries(rows: Tensor) -> Tensor:
        return rows[:, :, :1] if vit.has_class_token else rows[:, :, prefix:].mean(2, keepdim=True)

    def keep(module: Any, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        found.append(weights(module, inputs[0], named.get("attn_mask"), queries, named.get("rope")))

    attention: Any = block.attn
    hook = attention.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        encode(vit, embed(vit, images))
    finally:
        hook.remove()
    return found[0][:, :, 0, prefix:]  # B heads N
