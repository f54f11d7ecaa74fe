"""Folders of transformers: ViTMAE, ViT and Data2VecVision, read into our names without transformers being installed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrp.config import ConfigError
from mrp.interop import official
from mrp.interop.found import Held
from mrp.interop.hub import WEIGHTS

TABLE = "relative_position_bias_table"
# Inside a block: their name (until transformers 4; 5 reads it too) and ours.
BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "lambda_1": "ls1.gamma",
    "lambda_2": "ls2.gamma",
    f"attention.attention.relative_position_bias.{TABLE}": f"rel_pos_bias.{TABLE}",
}
QKV = ("query", "key", "value")
ENCODER = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    f"encoder.relative_position_bias.{TABLE}": f"rel_pos_bias.{TABLE}",
    "layernorm": "norm",
    "pooler.layernorm": "fc_norm",
}
DECODER = {
    "decoder_embed": "embed",
    "mask_token": "mask_token",
    "decoder_pos_embed": "positions",
    "decoder_norm": "norm",
    "decoder_pred": "head",
}
_NEWER = (  # how transformers 5 calls them
    (r"^layers\.", "encoder.layer."),
    (r"^decoder_encoder\.layer\.", "decoder_layers."),  # so 5.23 saves it, which turns its own renaming around
    (r"attention\.o_proj", "attention.output.dense"),
    (r"attention\.([qkv])_proj", lambda found: f"attention.attention.{QKV['qkv'.index(found[1])]}"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)
_TYPES = {"vit": "vit", "vit_mae": "vit", "data2vec-vision": "data2vec_vision"}  # and the prefix of their weights
_IGNORED = r".*relative_position_index|pooler\.dense\..*"  # a table of offsets, and a layer of BERT's over the token


def load(folder: Path, config: Mapping[str, Any]) -> tuple[Held, Path]:
    """What a folder of transformers holds, and the file with its weights."""
    kind = config["model_type"]
    if kind not in _TYPES:
        raise ConfigError(f"config.json: model_type '{kind}' is not known here; {', '.join(_TYPES)} are")
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ConfigError(f"has neither {' nor '.join(WEIGHTS)}")
    settings = _Settings(config)
    tensors = renamed(official.read(file), _TYPES[kind])
    told: dict[str, Any] = {"heads": settings.number("num_attention_heads", 12), "norm_eps": _eps(settings)}
    if "backbone.blocks.0.attn.qkv.bias" not in tensors:
        raise ConfigError("config.json: qkv_bias false is what our backbone lacks")
    if kind == "data2vec-vision":
        told["qkv_bias"] = "query_value"
    data = {"size": settings.pair("image_size", 224)} | _preprocessing(folder)
    objective: dict[str, Any] = {}
    if kind == "vit_mae":
        objective = {
            "mask_ratio": config.get("mask_ratio", 0.75),
            "target": "pixels_norm" if config.get("norm_pix_loss", False) else "pixels",
            "decoder": {"heads": settings.number("decoder_num_attention_heads", 16)},
        }
    return Held(_method(kind, tensors), tensors, told, objective, data), file


def _method(kind: str, tensors: Mapping[str, Tensor]) -> str:
    if "head.weight" in tensors or "backbone.fc_norm.weight" in tensors:
        return "classify"
    return "data2vec" if kind == "data2vec-vision" else "mae"


class _Settings:
    """Their config.json, value by value."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        if (act := values.get("hidden_act", "gelu")) != "gelu":
            raise ConfigError(f"config.json: hidden_act '{act}' is not the exact GELU that our backbone has")

    def number(self, key: str, usual: int) -> int:
        """A whole number from 1."""
        value = self.values.get(key, usual)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"config.json: {key}: {value!r} is no number from 1")
        return value

    def pair(self, key: str, usual: int) -> tuple[int, int]:
        """A side, or height and width."""
        value = self.values.get(key, usual)
        found = value if isinstance(value, list) and len(value) == 2 else [value, value]
        if not all(isinstance(side, int) and side > 0 for side in found):
            raise ConfigError(f"config.json: {key}: {value!r} is no size")
        return found[0], found[1]


def _eps(settings: _Settings) -> float | None:
    value = settings.values.get("layer_norm_eps", 1e-12)
    if not isinstance(value, float) or not 0 < value < 1:
        raise ConfigError(f"config.json: layer_norm_eps: {value!r} is no number between 0 and 1")
    return None if value == 1e-6 else value


def _preprocessing(folder: Path) -> dict[str, Any]:
    """Mean and standard deviation, where the folder says them."""
    try:
        values = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        mean, std = values.get("image_mean"), values.get("image_std")
    except (OSError, ValueError, AttributeError):
        return {}
    return {"mean": mean, "std": std} if isinstance(mean, list) and isinstance(std, list) else {}


def renamed(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Their names as ours; what is not known is an error, never dropped."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        plain = name.removeprefix(f"{prefix}.")
        if re.fullmatch(_IGNORED, plain):
            continue
        ours, third = _ours(plain)
        if ours is None:
            raise ConfigError(f"'{name}' is no weight of ViTMAE, ViT or Data2VecVision as transformers saves them")
        if third:
            parts.setdefault(ours, {})[third] = tensor
        else:
            found[ours] = tensor
    for name, three in parts.items():
        if "key" not in three and name.endswith(".bias") and "query" in three:
            three["key"] = torch.zeros_like(three["query"])
        if set(three) != set(QKV):
            missing = ", ".join(sorted(set(QKV) - set(three)))
            raise ConfigError(f"'{name}': its {missing} is missing; the file is not whole")
        found[name] = torch.cat([three[key] for key in QKV])
    return found


def _ours(name: str) -> tuple[str | None, str]:
    """Our name of one of their weights, and which third of it: query, key, value or nothing."""
    if name.startswith("classifier."):
        return name.replace("classifier.", "head."), ""
    if name == "embeddings.mask_token":
        return "mask_token", ""
    if decoder := re.fullmatch(r"decoder\.(.*)", name):
        return _part(decoder[1], r"decoder_layers\.(\d+)\.(.*)", DECODER, "decoder.")
    return _part(name, r"encoder\.layer\.(\d+)\.(.*)", ENCODER, "backbone.")


def _part(name: str, block: str, others: Mapping[str, str], ours: str) -> tuple[str | None, str]:
    for pattern, older in _NEWER:
        name = re.sub(pattern, older, name)
    if inside := re.fullmatch(block, name):
        place = f"{ours}blocks.{inside[1]}."
        if third := re.fullmatch(r"attention\.attention\.(query|key|value)\.(weight|bias)", inside[2]):
            return f"{place}attn.qkv.{third[2]}", third[1]
        found = _translated(inside[2], BLOCK)
        return (None if found is None else place + found), ""
    found = _translated(name, others)
    return (None if found is None else ours + found), ""


def _translated(name: str, table: Mapping[str, str]) -> str | None:
    if name in table:
        return table[name]
    stem, _, last = name.rpartition(".")
    return f"{table[stem]}.{last}" if stem in table and last in {"weight", "bias"} else None
