"""What the name of one of timm's Vision Transformers says beyond its size."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, cast

import torch
from timm.models import create_model, list_models
from timm.models.vision_transformer import Block, VisionTransformer

from mrp.config import ConfigError, nearest


class Named(NamedTuple):
    """The parts of a named model that its configuration does not repeat."""

    class_token: bool
    registers: int
    pool: str  # timm's word: token or avg
    block: str | None  # the class of its blocks, unless it is timm's usual one


@cache
def look_up(name: str) -> Named:
    """Builds one block of the model without memory for its weights, and reads what it has."""
    names = list_models(module="vision_transformer")
    if name not in names:
        hint = nearest(name, names) or "; for example vit_base_patch16_224"
        raise ConfigError(f"unknown backbone '{name}'{hint}")
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        vit = cast(VisionTransformer, create_model(name, depth=1))
    if vit.attn_pool is not None:
        raise ConfigError(f"{name} pools its tokens by attention, which no method here trains; take another backbone")
    kind = type(vit.blocks[0])
    block = None if kind is Block else kind.__name__
    return Named(vit.has_class_token, vit.num_reg_tokens, vit.global_pool, block)
