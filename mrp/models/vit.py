"""The one backbone: timm's VisionTransformer, its parameter names, and the two functions that serve every method."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache, partial
from typing import Annotated, Any, Literal, NamedTuple, Self, cast

import torch
from pydantic import Field, model_validator
from timm.layers import LayerNorm, resample_abs_pos_embed
from timm.models import create_model, list_models
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer as VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mrp.config import ConfigError, Node
from mrp.models.blocks import Block, PostNormBlock, QueryValueLinear
from mrp.models.positions import RelativeBias, resample_table, sincos

_SHAPE = ("width", "depth", "heads", "patch")

Side = Annotated[int, Field(gt=0)]


class Config(Node):
    """`backbone:`: a size of timm's by name, or by width, depth, heads and patch; the image's size is the data's."""

    name: str | None = None
    width: int | None = Field(None, gt=0)
    depth: int | None = Field(None, gt=0)
    heads: int | None = Field(None, gt=0)
    patch: Side | tuple[Side, Side] | None = None
    mlp_ratio: float | None = Field(None, gt=0)  # the name's, or 4
    positions: Literal["sincos", "learned", "none"] = "sincos"
    class_token: bool = True
    registers: int = Field(0, ge=0)
    layer_scale: float | None = Field(None, gt=0)  # the name's, or none
    drop_path: float = Field(0.0, ge=0, lt=1)  # of the last block; the first has none, between them it grows evenly
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    relative_bias: Literal["none", "shared", "per_block"] = "none"
    qkv_bias: Literal["all", "query_value"] = "all"
    norm_eps: float | None = Field(None, gt=0)  # the name's, or 1e-6
    init: Literal["xavier", "truncated"] = "xavier"  # MAE's initial weights, or BEiT's
    norm: Literal["pre", "post"] = (
        "pre"  # post: after each residual, and before the first block instead of after the last
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name is None:
            missing = [key for key in _SHAPE if getattr(self, key) is None]
            if missing:
                raise ConfigError(f"give a name (such as vit_base_patch16_224), or also: {', '.join(missing)}")
            assert self.width is not None
            assert self.heads is not None
            if self.width % self.heads:
                raise ConfigError(f"width {self.width} is not a multiple of heads {self.heads}; change one of them")
        else:
            given = [key for key in ("width", "depth", "heads") if getattr(self, key) is not None]
            if given:
                raise ConfigError(
                    f"name: {self.name} already says its {', '.join(given)}; remove the name or those keys"
                )
            known = list_models(module="vision_transformer")
            if self.name not in known:
                near = difflib.get_close_matches(self.name, known, n=3)
                hint = f"did you mean {' or '.join(near)}?" if near else "for example vit_base_patch16_224"
                raise ConfigError(f"unknown backbone '{self.name}'; {hint}")
        return self


def build(config: Config, image_size: tuple[int, int], channels: int) -> VisionTransformer:
    """Make the backbone for images of this size; its weights are drawn from torch's generator."""
    options = _options(config) | {"img_size": image_size, "in_chans": channels, "num_classes": 0}
    if config.name is None:
        options |= {"embed_dim": config.width, "depth": config.depth, "num_heads": config.heads}
        vit = VisionTransformer(**options)
    else:
        vit = cast(VisionTransformer, create_model(config.name, pretrained=False, **options))
    patch = vit.patch_embed.patch_size
    if image_size[0] % patch[0] or image_size[1] % patch[1]:
        raise ConfigError(
            f"data.size {image_size[0]}x{image_size[1]} is not a multiple of the patch {patch[0]}x{patch[1]}; "
            f"the nearest that is: {_nearest(image_size[0], patch[0])}x{_nearest(image_size[1], patch[1])}"
        )
    _equip(vit, config)
    (initialise if config.init == "xavier" else initialise_truncated)(vit)
    if config.positions == "sincos":
        assert vit.pos_embed is not None
        with torch.no_grad():
            vit.pos_embed.copy_(sincos(vit.embed_dim, grid(vit), num_prefix_positions(vit)))
        vit.pos_embed.requires_grad_(False)
    return vit


def _options(config: Config) -> dict[str, Any]:
    """What timm's constructor can do of it; what a name implies stays unless it is asked otherwise."""
    options: dict[str, Any] = {
        "class_token": config.class_token,
        "reg_tokens": config.registers,
        "global_pool": "token" if config.class_token else "avg",
        "fc_norm": False,
        "pos_embed": "none" if config.positions == "none" else "learn",
        "final_norm": config.norm == "pre",
        "block_fn": PostNormBlock if config.norm == "post" else Block,
        "drop_path_rate": config.drop_path,
        "attn_drop_rate": config.attention_dropout,
    }
    given = {"patch": "patch_size", "mlp_ratio": "mlp_ratio", "layer_scale": "init_values"}
    if config.norm_eps is not None:
        options["norm_layer"] = partial(LayerNorm, eps=config.norm_eps)
    # By value and not by what was written: a run's own copy of its configuration has every key.
    options |= {theirs: value for ours, theirs in given.items() if (value := getattr(config, ours)) is not None}
    if config.name is not None and (own := _own_block(config.name)):
        keys = ("drop_path", "norm", "qkv_bias", "relative_bias")
        changed = {key for key in keys if getattr(config, key) != Config.model_fields[key].default}
        if changed:
            raise ConfigError(
                f"backbone.{min(changed)}: {config.name} is made of {own}, which has no such option; remove it"
            )
        del options["block_fn"]
    return options


@cache
def _own_block(name: str) -> str | None:
    """The kind of block that a name stands for, where it is not the usual one."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        kind = type(cast(VisionTransformer, create_model(name)).blocks[0])
    return None if kind is TimmBlock else kind.__name__


def _equip(vit: VisionTransformer, config: Config) -> None:
    """Give it what timm's constructor cannot."""
    if config.norm == "post":
        vit.norm_pre = nn.LayerNorm(vit.embed_dim, eps=config.norm_eps or 1e-6)
    blocks: Any = vit.blocks
    for layer, block in enumerate(blocks):
        if config.relative_bias == "per_block":
            block.rel_pos_bias = RelativeBias(grid(vit), vit.num_prefix_tokens, block.attn.num_heads)
        if config.qkv_bias == "query_value":
            block.attn.qkv = QueryValueLinear(vit.embed_dim, block.attn.qkv.out_features)
        if isinstance(block, Block):
            block.drop_path1.layer = block.drop_path2.layer = layer
    if config.relative_bias == "shared":
        vit.rel_pos_bias = RelativeBias(grid(vit), vit.num_prefix_tokens, blocks[0].attn.num_heads)


def _nearest(size: int, patch: int) -> int:
    return max(1, round(size / patch)) * patch


def initialise(module: nn.Module) -> None:
    """MAE's initial weights: Xavier-uniform matrices (the patch embedding as one), zero biases, N(0, .02) tokens."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif name.endswith("patch_embed.proj"):
            assert isinstance(child, nn.Conv2d)
            nn.init.xavier_uniform_(child.weight.view(child.weight.shape[0], -1))
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] in {"cls_token", "reg_token", "mask_token", "pos_embed"}:
            nn.init.normal_(parameter, std=0.02)


def initialise_truncated(vit: VisionTransformer) -> None:
    """BEiT's initial weights, as SimMIM and data2vec start from: N(0, .02), and less where a block adds."""
    initialise(vit)
    for module in vit.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02)
    blocks: Any = vit.blocks
    with torch.no_grad():
        for layer, block in enumerate(blocks, start=1):
            for added in (block.attn.proj, block.mlp.fc2):
                added.weight.div_((2 * layer) ** 0.5)


def grid(vit: VisionTransformer) -> tuple[int, int]:
    """Rows and columns of patches."""
    rows, columns = vit.patch_embed.grid_size
    return rows, columns


def norm_eps(vit: VisionTransformer) -> float:
    """What the backbone's norms add to the variance; those of a decoder or a head do the same."""
    first: Any = vit.blocks[0]
    return cast(float, first.norm1.eps)


def num_prefix_positions(vit: VisionTransformer) -> int:
    """How many leading entries of the position table belong to prefix tokens."""
    return 0 if vit.no_embed_class else vit.num_prefix_tokens


def embed(
    vit: VisionTransformer, images: Tensor, mask_token: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Patch tokens with their positions; where a mask token is given, it stands for the hidden ones of each mask."""
    tokens: Tensor = vit.patch_embed(images).float()  # B N D; the residual stream stays in float32
    if mask_token is not None:
        assert mask is not None
        views = tokens.repeat_interleave(len(mask) // len(tokens), dim=0)
        tokens = torch.where(mask[..., None], mask_token.to(tokens.dtype), views)
    if vit.pos_embed is not None:
        tokens = tokens + vit.pos_embed[:, num_prefix_positions(vit) :]
    return tokens


Kept = Literal["none", "output", "added"]  # of a block: nothing, all, or what its feed-forward part has added


class Encoded(NamedTuple):
    """The encoder's output (prefix tokens first) and, where asked for, something of every block."""

    tokens: Tensor  # B P+V D
    layers: list[Tensor]


def encode(
    vit: VisionTransformer,
    tokens: Tensor,
    places: Tensor | None = None,
    keys: Tensor | None = None,
    layers: Kept = "none",
) -> Encoded:
    """Put the prefix tokens in front, run the blocks and the norm, on whichever patch tokens are given.

    `places` says which patches they are, unless they are all. In training, stochastic depth draws from `keys` and
    does nothing without them.
    """
    tokens = vit.norm_pre(_with_prefix(vit, tokens))
    shared = getattr(vit, "rel_pos_bias", None)
    bias = None if shared is None else shared(places)
    kept = []
    for block in vit.blocks:
        own = getattr(block, "rel_pos_bias", None)
        mask = bias if own is None else own(places)
        more = (keys, layers == "added") if isinstance(block, Block) else ()
        if vit.grad_checkpointing and torch.is_grad_enabled():
            tokens = checkpoint(block, tokens, mask, False, *more, use_reentrant=False)
        else:
            tokens = block(tokens, mask, False, *more)
        if layers == "added":
            tokens, added = tokens
            kept.append(added)
        elif layers == "output":
            kept.append(tokens)
    return Encoded(vit.norm(tokens), kept)


def _with_prefix(vit: VisionTransformer, tokens: Tensor) -> Tensor:
    prefix: list[Tensor] = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
    if not prefix:
        return tokens
    front = torch.cat(prefix, dim=1)
    if vit.pos_embed is not None and not vit.no_embed_class:
        front = front + vit.pos_embed[:, : vit.num_prefix_tokens]
    return torch.cat([front.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)  # B P+N D


def pool(vit: VisionTransformer, tokens: Tensor) -> Tensor:
    """One vector an image: the class token, or the mean of the patch tokens, normalised where timm's model does so."""
    pooled = tokens[:, 0] if vit.global_pool == "token" else tokens[:, vit.num_prefix_tokens :].mean(1)
    normalised: Tensor = vit.fc_norm(pooled)
    return normalised  # B D


def resampled(vit: VisionTransformer, state: Mapping[str, Tensor], grid_size: tuple[int, int]) -> dict[str, Tensor]:
    """A backbone's weights from another grid of patches, made to fit this one: only its positions change.

    A relative bias that was shared by all blocks is given to each of them where this one has a bias in every block.
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
    if "pos_embed" in state:  # fixed positions too: the weights are used to these, and MAE's code interpolates them
        prefix = num_prefix_positions(vit)
        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], list(grid(vit)), list(grid_size), prefix)
    return state
