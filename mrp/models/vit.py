"""The backbone: timm's VisionTransformer or Eva under timm's parameter names, and the functions that every method uses.

`embed` turns images into patch tokens and `encode` runs the blocks on all or some of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
from timm.layers import LayerNorm, RmsNorm, resample_abs_pos_embed
from timm.models import create_model
from timm.models.vision_transformer import VisionTransformer as VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mrp.config import ConfigError
from mrp.models.blocks import Block, KeyedBlock, PostNormBlock, QueryValueLinear, StochasticDepth
from mrp.models.config import Config as Config
from mrp.models.eva import Eva as Eva
from mrp.models.eva import adopted
from mrp.models.initial import INITIAL
from mrp.models.named import Named, look_up
from mrp.models.positions import RelativeBias, resample_table, sincos

Backbone = VisionTransformer | Eva


def build(config: Config, image_size: tuple[int, int], channels: int) -> Backbone:
    """Returns the backbone for images of this size, with initial weights from torch's generator."""
    named = None if config.name is None else look_up(config.name)
    options = _options(config, named) | {"img_size": image_size, "in_chans": channels, "num_classes": 0}
    vit: Backbone
    if config.name is None:
        options |= {"embed_dim": config.width, "depth": config.depth, "num_heads": config.heads}
        vit = VisionTransformer(**options)
    else:
        model: Any = create_model(config.name, pretrained=False, **options)
        vit = model if isinstance(model, VisionTransformer) else adopted(model, config.name, options)
    patch = vit.patch_embed.patch_size
    if image_size[0] % patch[0] or image_size[1] % patch[1]:
        fitting = [max(1, round(size / side)) * side for size, side in zip(image_size, patch, strict=True)]
        raise ConfigError(
            f"data.size {image_size[0]}x{image_size[1]} is not a multiple of the patch {patch[0]}x{patch[1]}; "
            f"the nearest that is: {fitting[0]}x{fitting[1]}"
        )
    _equip(vit, config)
    INITIAL[config.init](vit)
    if config.positions == "sincos":
        assert vit.pos_embed is not None
        with torch.no_grad():
            vit.pos_embed.copy_(sincos(vit.embed_dim, grid(vit), num_prefix_positions(vit)))
        vit.pos_embed.requires_grad_(False)
    return vit


def _options(config: Config, named: Named | None) -> dict[str, Any]:
    """Returns what timm's constructor can do of the section."""
    pool = "token" if named is None else named.pool
    options: dict[str, Any] = {
        "class_token": config.class_token,
        "global_pool": pool if config.class_token else "avg",
        "attn_drop_rate": config.attention_dropout,
        "dynamic_img_size": False,
    }
    # What is null follows the name. A test for "was written" would not do: a run's own copy writes every key.
    optional = {"patch_size": config.patch, "mlp_ratio": config.mlp_ratio, "init_values": config.layer_scale}
    options |= {key: value for key, value in optional.items() if value is not None}
    if named is not None:
        changed = [key for key in named.lacks if getattr(config, key) != Config.model_fields[key].default]
        if changed:
            raise ConfigError(
                f"backbone.{changed[0]}: {config.name} is made of {named.block}, which has no such option; remove it"
            )
    # No norm after pooling: the last one stands before it, where every method trains it.
    if named is not None and named.eva:
        return options | {
            "num_reg_tokens": config.registers,
            "use_fc_norm": False,
            "use_abs_pos_emb": config.positions != "none",
        }
    options |= {
        "reg_tokens": config.registers,
        "fc_norm": False,
        "pos_embed": "none" if config.positions == "none" else "learn",
    }
    if named is None or not named.lacks:
        options["block_fn"] = PostNormBlock if config.norm == "post" else Block
    if config.norm == "post":
        options["final_norm"] = False
    return options


def _equip(vit: Backbone, config: Config) -> None:
    """Adds the parts that timm's constructor does not know."""
    blocks: Any = vit.blocks
    if config.norm_eps is not None:
        for norm in _norms(vit):
            norm.eps = config.norm_eps
    if config.norm == "post":
        vit.norm_pre = nn.LayerNorm(vit.embed_dim, eps=config.norm_eps or 1e-6)
    if config.drop_path:
        vit.stochastic_depth = StochasticDepth(config.drop_path, len(blocks))
    if config.relative_bias == "shared":
        vit.rel_pos_bias = RelativeBias(grid(vit), vit.num_prefix_tokens, num_heads(vit))
    for block in blocks:
        if config.relative_bias == "shared":
            block.shared_bias = (vit.rel_pos_bias,)
        if config.relative_bias == "per_block":
            block.rel_pos_bias = RelativeBias(grid(vit), vit.num_prefix_tokens, block.attn.num_heads)
        if config.qkv_bias == "query_value":
            block.attn.qkv = QueryValueLinear(vit.embed_dim, block.attn.qkv.out_features)


def grid(vit: Backbone) -> tuple[int, int]:
    """Returns the number of rows and columns of patches."""
    rows, columns = vit.patch_embed.grid_size
    return rows, columns


def norm_eps(vit: Backbone) -> float:
    """Returns the epsilon of the backbone's norms, which those of a decoder or a head share."""
    return cast(float, next(_norms(vit.blocks)).eps)


def _norms(module: nn.Module) -> Iterator[Any]:
    return (child for child in module.modules() if isinstance(child, LayerNorm | RmsNorm))


def num_heads(vit: Backbone) -> int:
    """Returns the number of attention heads of a block."""
    children: Any = vit.blocks.modules()
    return cast(int, next(child.num_heads for child in children if hasattr(child, "num_heads")))


def num_prefix_positions(vit: Backbone) -> int:
    """Returns how many leading entries of the position table belong to prefix tokens."""
    return 0 if vit.no_embed_class else vit.num_prefix_tokens


def embed(vit: Backbone, images: Tensor, mask_token: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Returns patch tokens with their positions, per view where there is a mask; `mask_token` replaces hidden ones."""
    tokens: Tensor = vit.patch_embed(images).float()  # B N D; the residual stream stays in float32
    if mask_token is not None:
        assert mask is not None
        views = tokens.repeat_interleave(len(mask) // len(tokens), dim=0)
        tokens = torch.where(mask[..., None], mask_token.to(tokens.dtype), views)
    if vit.pos_embed is not None:
        tokens = tokens + vit.pos_embed[:, num_prefix_positions(vit) :]
    return tokens


Kept = Literal["none", "output", "added"]  # of each block: nothing, its output, or what its MLP adds to the tokens


class Encoded(NamedTuple):
    """The encoder's output (prefix tokens first), what its first block got and, if asked for, a tensor per block."""

    tokens: Tensor  # B P+V D
    entering: Tensor  # B P+V D
    layers: list[Tensor]


def encode(
    vit: Backbone,
    tokens: Tensor,
    places: Tensor | None = None,
    keys: Tensor | None = None,
    layers: Kept = "none",
) -> Encoded:
    """Puts the prefix tokens in front of any patch tokens and runs the blocks and the norm.

    `places` are the indices of the patches among all, unless all are given. In training, stochastic depth is drawn
    from `keys` and is off without them.
    """
    tokens = vit.norm_pre(_with_prefix(vit, tokens))
    shared: Any = getattr(vit, "rel_pos_bias", None)
    bias = None if shared is None else shared(places)
    stochastic_depth: Any = getattr(vit, "stochastic_depth", None)
    skips = stochastic_depth is not None and keys is not None and vit.training
    factors = stochastic_depth(keys) if skips else [None] * len(vit.blocks)
    rotations = vit.rotations() if isinstance(vit, Eva) else [None] * len(vit.blocks)
    entering, kept = tokens, []
    for layer, block in enumerate(vit.blocks):
        options: dict[str, Any] = {"attn_mask": bias}
        if isinstance(block, KeyedBlock):
            options |= {"rope": rotations[layer], "places": places, "factors": factors[layer]}
            options["added"] = layers == "added"
        if vit.grad_checkpointing and torch.is_grad_enabled():
            tokens = checkpoint(block, tokens, use_reentrant=False, **options)
        else:
            tokens = block(tokens, **options)
        if layers == "added":
            tokens, added = tokens
            kept.append(added)
        elif layers == "output":
            kept.append(tokens)
    return Encoded(vit.norm(tokens), entering, kept)


def _with_prefix(vit: Backbone, tokens: Tensor) -> Tensor:
    prefix: list[Tensor] = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
    if not prefix:
        return tokens
    front = torch.cat(prefix, dim=1)
    if vit.pos_embed is not None and not vit.no_embed_class:
        front = front + vit.pos_embed[:, : vit.num_prefix_tokens]
    return torch.cat([front.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)  # B P+N D


def pool(vit: Backbone, tokens: Tensor) -> Tensor:
    """Returns one vector per image: the class token or the mean of the patch tokens, normalised if the model does."""
    pooled = tokens[:, 0] if vit.global_pool == "token" else tokens[:, vit.num_prefix_tokens :].mean(1)
    normalised: Tensor = vit.fc_norm(pooled)
    return normalised  # B D


def resampled(vit: Backbone, state: Mapping[str, Tensor], grid_size: tuple[int, int]) -> dict[str, Tensor]:
    """Returns weights from a backbone with another grid of patches, with positions interpolated to this one's.

    Where all blocks shared a relative bias and this backbone has one per block, each block gets a copy.
    """
    state = dict(state)
    table = "rel_pos_bias.relative_position_bias_table"
    if table in state and not hasattr(vit, "rel_pos_bias") and hasattr(vit.blocks[0], "rel_pos_bias"):
        shared = state.pop(table)
        state |= {f"blocks.{layer}.{table}": shared for layer in range(len(vit.blocks))}
    if grid(vit) == grid_size:
        return state
    for name in state:
        if name.endswith(table):
            state[name] = resample_table(state[name], grid_size, grid(vit))
    if "pos_embed" in state:  # fixed positions too, as in the code of MAE: the weights have learned with them
        prefix = num_prefix_positions(vit)
        size, old = list(grid(vit)), list(grid_size)
        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], size, old, prefix, antialias=False)
    return state
