"""Models of timm's own, where timm has one that computes the same as a backbone of ours; and its folders, read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from timm.models import create_model
from timm.models.beit import Beit
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mrp.config import ConfigError
from mrp.interop import official
from mrp.interop.found import Held
from mrp.interop.hub import WEIGHTS
from mrp.models.blocks import PostNormBlock
from mrp.models.vit import grid

M = TypeVar("M", bound=nn.Module)
_EPS = 1e-6
_TABLE = "relative_position_bias_table"
# What a folder's config.json may hand to timm's constructors: sizes, and parts that are there or not.
_SHAPE = {"patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "init_values", "class_token", "reg_tokens",
          "no_embed_class", "pos_embed", "fc_norm", "final_norm", "pre_norm", "qkv_bias", "qk_norm", "use_abs_pos_emb",
          "use_rel_pos_bias", "use_shared_rel_pos_bias", "use_fc_norm"}  # fmt: skip
_INPUT = {"img_size", "in_chans", "num_classes", "global_pool", "dynamic_img_size", "strict_img_size", "drop_path_rate"}
_CARRIERS = {(192, 12): "vit_tiny_patch16_224", (384, 12): "vit_small_patch16_224", (1024, 24): "vit_large_patch16_224"}


class Exported(NamedTuple):
    """A model of timm's, and the words that make timm build it again."""

    model: VisionTransformer | Beit
    architecture: str
    options: dict[str, Any]


def export(vit: VisionTransformer) -> VisionTransformer | Beit:
    """The same weights in timm's VisionTransformer, or, with a relative position bias, in its Beit."""
    return exported(vit).model


def exported(vit: VisionTransformer, head: nn.Linear | None = None) -> Exported:
    """The same, with a head of classes where there is one."""
    blocks: Any = vit.blocks
    if isinstance(blocks[0], PostNormBlock):
        raise ConfigError("backbone.norm: post is what timm has no model for, so it cannot be exported to timm")
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm) and module.eps != _EPS:
            raise ConfigError(f"backbone: its norms have eps {module.eps}, which timm's model would not have")
    if type(blocks[0].mlp.act) is not nn.GELU or blocks[0].mlp.act.approximate != "none":
        raise ConfigError("backbone.name: its activation is not exact GELU, which timm's model would have")
    state = {name: tensor.detach().clone() for name, tensor in vit.state_dict().items()}
    if head is not None:
        state |= {f"head.{name}": tensor.detach().clone() for name, tensor in head.state_dict().items()}
    patch = vit.patch_embed
    options: dict[str, Any] = {
        "img_size": tuple(size * side for size, side in zip(grid(vit), patch.patch_size, strict=True)),
        "patch_size": patch.patch_size,
        "in_chans": patch.proj.in_channels,
        "num_classes": 0 if head is None else head.out_features,
        "embed_dim": vit.embed_dim,
        "depth": len(blocks),
        "num_heads": blocks[0].attn.num_heads,
        "mlp_ratio": blocks[0].mlp.fc1.out_features / vit.embed_dim,
        "init_values": getattr(blocks[0].ls1, "init_values", None),
        "global_pool": vit.global_pool,
    }
    shared, own = hasattr(vit, "rel_pos_bias"), hasattr(blocks[0], "rel_pos_bias")
    if shared or own:
        return _beit(vit, options | {"use_shared_rel_pos_bias": shared, "use_rel_pos_bias": own}, state)
    options |= {
        "class_token": vit.has_class_token,
        "reg_tokens": vit.num_reg_tokens,
        "no_embed_class": vit.no_embed_class,
        "pos_embed": "none" if vit.pos_embed is None else "learn",
        "fc_norm": isinstance(vit.fc_norm, nn.LayerNorm),
    }
    architecture = _CARRIERS.get((vit.embed_dim, len(blocks)), "vit_base_patch16_224")
    return Exported(_loaded(VisionTransformer(**options), state), architecture, options)


def _beit(vit: VisionTransformer, options: dict[str, Any], state: dict[str, Tensor]) -> Exported:
    if not vit.has_class_token or vit.num_reg_tokens:
        wrong = f"registers: {vit.num_reg_tokens}" if vit.num_reg_tokens else "class_token: false"
        raise ConfigError(f"backbone.{wrong} with a relative_bias is what timm has no model for")
    options["init_values"] = options["init_values"] or 0.0  # its constructors take None for their own default
    options["use_abs_pos_emb"] = vit.pos_embed is not None
    after_pooling = isinstance(vit.fc_norm, nn.LayerNorm)
    if after_pooling != (vit.global_pool == "avg"):
        options["use_fc_norm"] = after_pooling
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("attn.qkv.bias"):  # a bias of keys adds the same to all scores of a query: Beit has none
            query, _, value = tensor.chunk(3)
            place = name.removesuffix("qkv.bias")
            renamed |= {f"{place}q_bias": query, f"{place}v_bias": value}
        elif name.startswith("blocks."):
            name = name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
            renamed[name.replace(f"rel_pos_bias.{_TABLE}", f"attn.{_TABLE}")] = tensor
        else:
            renamed[name] = tensor
    architecture = "beit_large_patch16_224" if vit.embed_dim == 1024 else "beit_base_patch16_224"
    return Exported(_loaded(Beit(**options), renamed), architecture, options)


def _loaded(model: M, state: dict[str, Tensor]) -> M:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(f"this backbone has parts that its export to timm does not know: {error}") from None
    return model.eval()


def load(folder: Path, config: Mapping[str, Any]) -> tuple[Held, Path]:
    """What a folder in timm's hub format holds, and the file with its weights."""
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ConfigError(f"has neither {' nor '.join(WEIGHTS)}")
    arguments = dict(config.get("model_args") or {})
    if unknown := arguments.keys() - _SHAPE - _INPUT:
        raise ConfigError(f"config.json: model_args: {min(unknown)} is nothing that is known here")
    theirs = _built(config, arguments)
    found = official.load(file)
    if found.method == "classify" and (theirs.global_pool == "avg") != isinstance(theirs.fc_norm, nn.LayerNorm):
        raise ConfigError(f"config.json: global_pool {theirs.global_pool} and such a norm is what classify cannot do")
    blocks: Any = theirs.blocks
    told = dict(found.backbone)
    if _is_plain(theirs):
        eps = blocks[0].norm1.eps
        told |= {"heads": blocks[0].attn.num_heads, "norm_eps": None if eps == _EPS else eps}
    elif not arguments.keys() & _SHAPE:
        told |= {"name": config["architecture"]}
    else:
        raise ConfigError(f"config.json: {config['architecture']} with model_args is no Vision Transformer known here")
    data: dict[str, Any] = {"size": tuple(theirs.patch_embed.img_size)}
    said = config.get("pretrained_cfg") or {}
    if isinstance(said.get("mean"), list) and isinstance(said.get("std"), list):
        data |= {"mean": said["mean"], "std": said["std"]}
    return Held(found.method, found.weights, told, found.objective, data), file


def _built(config: Mapping[str, Any], arguments: dict[str, Any]) -> VisionTransformer | Beit:
    """Their model, without weights, for what it says of itself."""
    for key in ("num_classes", "global_pool"):
        if key in config:
            arguments.setdefault(key, config[key])
    try:
        with torch.device("meta"):
            model = create_model(str(config["architecture"]), pretrained=False, **arguments)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"config.json: timm cannot build it: {' '.join(str(error).split())}") from None
    if type(model) not in {VisionTransformer, Beit}:
        raise ConfigError(f"config.json: architecture {config['architecture']} is no Vision Transformer known here")
    return model  # type: ignore[return-value]


def _is_plain(theirs: VisionTransformer | Beit) -> bool:
    """Whether width, depth, heads and the names of the weights tell all of it."""
    blocks: Any = theirs.blocks
    act = getattr(blocks[0].mlp, "act", None)
    exact = type(act) is nn.GELU and act.approximate == "none"
    if isinstance(theirs, Beit):
        return exact
    return exact and type(blocks[0]) is Block and isinstance(theirs.norm_pre, nn.Identity)
