"""What model some weights fit, read from their names and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrp.config import ConfigError
from mrp.models.positions import sincos

Values = dict[str, Any]
_HEADS = {192: 3, 384: 6, 512: 16, 768: 12, 1024: 16, 1280: 16}  # of official models and decoders, by width
_TABLE = "rel_pos_bias.relative_position_bias_table"
_LAYER_SCALE = 0.1  # where training from scratch would start; the weights come from the file


class Shape(NamedTuple):
    """A backbone's section of a configuration, and the images that it takes."""

    backbone: Values
    size: tuple[int, int]
    channels: int
    encoder: dict[str, Tensor]  # the weights, with a position for every token


def of_backbone(weights: Mapping[str, Tensor], given: Mapping[str, Any], size: Any = None) -> Shape:
    """The backbone that weights under timm's names fit; `given` says what they do not tell, and wins."""
    encoder = dict(weights)
    for name in ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"):
        if name not in encoder:
            raise ConfigError(f"has no '{name}', so it is no Vision Transformer that is known here")
    width, channels, *patch = encoder["patch_embed.proj.weight"].shape
    prefix = int("cls_token" in encoder) + (encoder["reg_token"].shape[1] if "reg_token" in encoder else 0)
    rows, columns = _grid(encoder, prefix, patch, size)
    named = given.get("name") is not None
    if not named and "pos_embed" in encoder and encoder["pos_embed"].shape[1] == rows * columns and prefix:
        encoder["pos_embed"] = torch.nn.functional.pad(encoder["pos_embed"], (0, 0, prefix, 0))  # as if they had none
    table = next((tensor for name, tensor in encoder.items() if name.endswith(_TABLE)), None)
    values: Values = {
        "patch": tuple(patch) if patch[0] != patch[1] else patch[0],
        "class_token": "cls_token" in encoder,
        "registers": prefix - int("cls_token" in encoder),
        "positions": _positions(encoder.get("pos_embed"), width, (rows, columns), prefix),
    }
    if not named:
        heads = table.shape[1] if table is not None else given.get("heads") or _HEADS.get(width)
        if heads is None:
            raise ConfigError("the weights do not tell the number of heads; add backbone.heads=N")
        values |= {
            "width": width,
            "depth": 1 + max(int(found[1]) for name in encoder if (found := re.match(r"blocks\.(\d+)\.", name))),
            "heads": heads,
            "mlp_ratio": encoder["blocks.0.mlp.fc1.weight"].shape[0] / width,
            "layer_scale": _LAYER_SCALE if "blocks.0.ls1.gamma" in encoder else None,
            "relative_bias": "none" if table is None else "shared" if _TABLE in encoder else "per_block",
            "norm": "post" if "norm_pre.weight" in encoder and not encoder.keys() & _AFTER else "pre",
        }
    return Shape(values | dict(given), (rows * patch[0], columns * patch[1]), channels, encoder)


_AFTER = {"norm.weight", "fc_norm.weight"}


def _grid(encoder: Mapping[str, Tensor], prefix: int, patch: list[int], size: Any) -> tuple[int, int]:
    """Rows and columns of patches: from the size where it is given, or a square that the positions fit."""
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        return height // patch[0], width // patch[1]
    if "pos_embed" in encoder:
        number = encoder["pos_embed"].shape[1]
        for count in (number - prefix, number):
            if count > 0 and (side := math.isqrt(count)) ** 2 == count:
                return side, side
    for name, tensor in encoder.items():
        if name.endswith(_TABLE) and (side := math.isqrt(len(tensor) - 3)) ** 2 == len(tensor) - 3:
            return (side + 1) // 2, (side + 1) // 2
    raise ConfigError("the weights do not tell the size of the images; add data.size=N or data.size=[HEIGHT, WIDTH]")


def _positions(table: Tensor | None, width: int, grid: tuple[int, int], prefix: int) -> str:
    if table is None:
        return "none"
    known = sincos(width, grid, prefix) if width % 4 == 0 else table.new_empty(0)
    return "sincos" if known.shape == table.shape and torch.allclose(known, table, atol=1e-5) else "learned"


def of_objective(method: str, weights: Mapping[str, Tensor], depth: int, given: Mapping[str, Any]) -> Values:
    """The options of a method that its weights tell; the rest has its defaults."""
    if method == "classify":
        return _classify(weights, given)
    if method == "mae":
        return _mae(weights, given)
    if method in {"data2vec", "data2vec2"}:
        values: Values = {"layers": min(depth, 6 if method == "data2vec" else 10)}
        if "decoder.layers.0.weight" in weights:
            first, layers = weights["decoder.layers.0.weight"], _count(weights, r"decoder\.layers\.(\d+)")
            into = weights["backbone.patch_embed.proj.weight"].shape[0]
            values["decoder"] = {
                "width": first.shape[0], "depth": layers, "kernel": first.shape[2], "groups": into // first.shape[1],
            }  # fmt: skip
        return values
    return {}


def _classify(weights: Mapping[str, Tensor], given: Mapping[str, Any]) -> Values:
    mean = "backbone.fc_norm.weight" in weights
    if "head.weight" not in weights and given.get("classes") is None:
        raise ConfigError("has no head, so it does not tell the number of classes; add objective.classes=N")
    if not mean and "backbone.cls_token" not in weights:
        raise ConfigError("its head takes the mean of normalised tokens, which classify has no way to do")
    classes = len(weights["head.weight"]) if "head.weight" in weights else given["classes"]
    return {"classes": classes, "pool": "mean" if mean else "cls"}


def _mae(weights: Mapping[str, Tensor], given: Mapping[str, Any]) -> Values:
    if "decoder.embed.weight" not in weights:
        return {}
    width = len(weights["decoder.embed.weight"])
    heads = (given.get("decoder") or {}).get("heads") or _HEADS.get(width)
    if heads is None:
        raise ConfigError("the weights do not tell the decoder's number of heads; add objective.decoder.heads=N")
    return {"decoder": {"width": width, "depth": _count(weights, r"decoder\.blocks\.(\d+)"), "heads": heads}}


def _count(names: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in names if (found := re.match(pattern, name))})
