"""Folders in timm's hub format, read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models import create_model, is_model
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from mrp.config import ConfigError
from mrp.interop import eva, official, untrusted
from mrp.interop.folders import OF_TAGS
from mrp.interop.shape import DEEPEST
from mrp.interop.traits import exact_gelu
from mrp.interop.weights import ForeignWeights

EPS = 1e-6  # of the norms of timm's Vision Transformers
# What config.json may hand to timm's constructors: sizes, and parts that are there or not.
_SHAPE = {"patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "init_values", "class_token", "reg_tokens",
          "no_embed_class", "pos_embed", "fc_norm", "final_norm", "pre_norm", "qkv_bias", "qk_norm", "use_abs_pos_emb",
          "use_rel_pos_bias", "use_shared_rel_pos_bias", "use_fc_norm", "num_reg_tokens",
          "use_post_transformer_norm"}  # fmt: skip
_INPUT = {"img_size", "in_chans", "num_classes", "global_pool", "dynamic_img_size", "strict_img_size", "drop_path_rate"}


def load(folder: Path, config: Mapping[str, Any]) -> ForeignWeights:
    """Returns what a folder in timm's hub format holds."""
    file = untrusted.weights_file(folder)
    arguments = dict(config.get("model_args") or {})
    if unknown := arguments.keys() - _SHAPE - _INPUT:
        raise ConfigError(f"config.json: model_args: {min(unknown)} is not supported here")
    model = _without_weights(config, arguments)
    weights = official.load(file, isinstance(model, Eva))
    if weights.method == "classify" and (model.global_pool == "avg") != isinstance(model.fc_norm, nn.LayerNorm):
        raise ConfigError(f"config.json: global_pool {model.global_pool} and such a norm is what classify cannot do")
    block: Any = model.blocks[0]
    if isinstance(model, Eva):
        backbone = eva.section(model, config["architecture"], {k: arguments[k] for k in arguments.keys() & _SHAPE})
    elif _is_told_by_its_weights(model):
        eps = block.norm1.eps
        backbone = {"heads": block.attn.num_heads, "norm_eps": None if eps == EPS else eps}
    elif not arguments.keys() & _SHAPE:
        backbone = {"name": config["architecture"]}
    else:
        raise ConfigError(f"config.json: {config['architecture']} with model_args is no Vision Transformer known here")
    data: dict[str, Any] = {"size": tuple(model.patch_embed.img_size)}
    images = config.get("pretrained_cfg") or {}
    if isinstance(images.get("mean"), list) and isinstance(images.get("std"), list):
        data |= {"mean": images["mean"], "std": images["std"]}
    if images.get("crop_pct") == 1:  # all of an image, or of its shorter side; of other shares there is one here
        data["augment"] = "resize" if images.get("crop_mode") == "squash" else {"name": "crop", "whole_from": 1}
    objective = weights.objective | ({"loss": "tags"} if OF_TAGS.items() <= config.items() else {})
    names = config.get("label_names")
    classes = tuple(map(str, names)) if isinstance(names, list) else ()
    return weights._replace(backbone=weights.backbone | backbone, objective=objective, data=data, classes=classes)


def _without_weights(config: Mapping[str, Any], arguments: dict[str, Any]) -> VisionTransformer | Beit | Eva:
    """Returns timm's model on the meta device, to read what it says of itself."""
    architecture = str(config["architecture"])
    for key in ("num_classes", "global_pool"):
        if key in config:
            arguments.setdefault(key, config[key])
    if not isinstance(arguments.get("depth", 1), int) or arguments.get("depth", 1) > DEEPEST:
        raise ConfigError(f"config.json: model_args: depth {arguments['depth']} is no number up to {DEEPEST}")
    if not is_model(architecture):  # which also keeps timm from fetching a model that is named like `hf-hub:...`
        raise ConfigError(f"config.json: timm has no architecture '{architecture}'; a newer timm may have it")
    try:
        with torch.device("meta"):
            model = create_model(architecture, pretrained=False, **arguments)
    except (RuntimeError, TypeError, ValueError, AssertionError, ArithmeticError) as error:
        raise ConfigError(f"config.json: timm cannot build it: {' '.join(str(error).split())}") from None
    if type(model) not in {VisionTransformer, Beit, Eva}:
        raise ConfigError(f"config.json: architecture {architecture} is no Vision Transformer known here")
    return model  # type: ignore[return-value]


def _is_told_by_its_weights(model: VisionTransformer | Beit) -> bool:
    """Returns whether the names and shapes of the weights, with the heads, say all that the model computes."""
    block: Any = model.blocks[0]
    if isinstance(model, Beit):
        return exact_gelu(block)
    return exact_gelu(block) and type(block) is Block and isinstance(model.norm_pre, nn.Identity)
