"""What a backbone is made of, as far as another project may have no model for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import nn

from mrp.config import ConfigError
from mrp.models.blocks import PostNormBlock
from mrp.models.vit import Backbone, Eva, norm_eps, num_heads

EVA = "a backbone.name of timm's module eva"  # rotary positions, gated MLPs and the like


class Traits(NamedTuple):
    """The facts about a backbone that decide which other models compute the same."""

    eva: bool  # a model of timm's module `eva`, which has rotary positions, gates and the like
    width: int
    depth: int
    heads: int
    patch: tuple[int, int]
    mlp_width: int
    norm_eps: float
    class_token: bool
    registers: int
    absolute_positions: bool
    relative_bias: Literal["none", "shared", "per_block"]
    layer_scale: float | None  # its initial value; None: there is none
    exact_gelu: bool
    post_norm: bool
    norm_before_blocks: bool
    norm_after_pooling: bool

    @classmethod
    def of(cls, vit: Backbone) -> Traits:
        """Returns the traits of a backbone of mrp, or of a model of timm's."""
        block: Any = vit.blocks[0]
        own_bias: Literal["none", "per_block"] = "per_block" if hasattr(block, "rel_pos_bias") else "none"
        return cls(
            eva=isinstance(vit, Eva),
            width=vit.embed_dim,
            depth=len(vit.blocks),
            heads=num_heads(vit),
            patch=vit.patch_embed.patch_size,
            mlp_width=next((part.fc2.in_features for part in block.modules() if hasattr(part, "fc2")), 0),
            norm_eps=norm_eps(vit),
            class_token=vit.has_class_token,
            registers=vit.num_reg_tokens,
            absolute_positions=vit.pos_embed is not None,
            relative_bias="shared" if hasattr(vit, "rel_pos_bias") else own_bias,
            layer_scale=getattr(getattr(block, "ls1", block), "init_values", None),
            exact_gelu=exact_gelu(block),
            post_norm=isinstance(block, PostNormBlock),
            norm_before_blocks=not isinstance(vit.norm_pre, nn.Identity),
            norm_after_pooling=isinstance(vit.fc_norm, nn.LayerNorm),
        )


def exact_gelu(block: Any) -> bool:
    """Returns whether a block's activation is the GELU itself, and no approximation of it."""
    act = getattr(getattr(block, "mlp", None), "act", None)
    return type(act) is nn.GELU and act.approximate == "none"


def refuse(reasons: Mapping[str, bool], side: str) -> None:
    """Raises an error for the first reason that holds: a part of the model that the other side lacks."""
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"{reason} is what {side} has no model for, so it cannot be exported to it")
