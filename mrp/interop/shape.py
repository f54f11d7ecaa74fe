"""The model that some weights fit, inferred from their names and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrp.config import ConfigError
from mrp.interop.weights import BACKBONE, part
from mrp.models.positions import sincos

Values = dict[str, Any]
DEEPEST = 512  # blocks: more are no model, and building them would take memory
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # of official models, by width
_DECODER_HEADS = {512: 16}  # of MAE's decoder; an encoder of this width may have 8
_TABLE = "rel_pos_bias.relative_position_bias_table"
_LAYER_SCALE = 0.1  # the initial value of a new model; the weights in the file replace it


class Shape(NamedTuple):
    """A backbone's section of a configuration, and the size of its images."""

    backbone: Values
    size: tuple[int, int]
    channels: int
    position_padding: int  # tokens in front of the patches that the table of positions has no entry for


def of_backbone(tensors: Mapping[str, Tensor], given: Mapping[str, Any], size: Any = None) -> Shape:
    """Returns the backbone that weights fit; `given` says what they do not tell, and wins."""
    encoder = part(tensors)
    for name in ("patch_embed.proj.weight", *(() if given.get("name") else ("blocks.0.mlp.fc1.weight",))):
        if name not in encoder:
            raise ConfigError(f"has no '{name}', so it is no Vision Transformer that is known here")
    width, channels, *patch = encoder["patch_embed.proj.weight"].shape
    if len(patch) != 2:
        raise ConfigError("'patch_embed.proj.weight' is no convolution of an image's patches (width C height width)")
    prefix = int("cls_token" in encoder) + (encoder["reg_token"].shape[1] if "reg_token" in encoder else 0)
    rows, columns = _grid(encoder, prefix, patch, size)
    positions, padding = encoder.get("pos_embed"), 0
    if given.get("name") is None and positions is not None and positions.shape[1] == rows * columns:
        padding = prefix
    values: Values = {
        "patch": tuple(patch) if patch[0] != patch[1] else patch[0],
        "class_token": "cls_token" in encoder,
        "registers": prefix - int("cls_token" in encoder),
        "positions": _positions(positions, (rows, columns), prefix - padding),
    }
    if given.get("name") is None:
        values |= _sizes(encoder, width, given)
    return Shape(values | dict(given), (rows * patch[0], columns * patch[1]), channels, padding)


def _sizes(encoder: Mapping[str, Tensor], width: int, given: Mapping[str, Any]) -> Values:
    table = next((tensor for name, tensor in encoder.items() if name.endswith(_TABLE)), None)
    heads = table.shape[1] if table is not None else given.get("heads") or _HEADS.get(width)
    if heads is None:
        raise ConfigError("the weights do not tell the number of heads; add backbone.heads=N")
    after_blocks = encoder.keys() & {"norm.weight", "fc_norm.weight"}
    return {
        "width": width,
        "depth": depth(encoder),
        "heads": heads,
        "mlp_ratio": encoder["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "layer_scale": _LAYER_SCALE if "blocks.0.ls1.gamma" in encoder else None,
        "relative_bias": "none" if table is None else "shared" if _TABLE in encoder else "per_block",
        "norm": "post" if "norm_pre.weight" in encoder and not after_blocks else "pre",
    }


def depth(encoder: Mapping[str, Tensor]) -> int:
    """Returns the number of blocks from the first one on; a block after a gap does not count."""
    blocks = {match[1] for name in encoder if (match := re.match(r"blocks\.(\d+)\.", name))}
    return next(number for number in range(DEEPEST + 1) if str(number) not in blocks or number == DEEPEST)


def _grid(encoder: Mapping[str, Tensor], prefix: int, patch: list[int], size: Any) -> tuple[int, int]:
    """Returns rows and columns of patches: from the size where it is given, or a square that the positions fit."""
    if size is not None:
        height, width = sides = (size, size) if isinstance(size, int) else tuple(size)
        if any(side % length for side, length in zip(sides, patch, strict=True)):
            raise ConfigError(f"data.size: {size} is no multiple of the patch {patch[0]}x{patch[1]}; give another size")
        return height // patch[0], width // patch[1]
    if "pos_embed" in encoder:
        number = encoder["pos_embed"].shape[1]
        for count in (number - prefix, number):
            if count > 0 and (side := math.isqrt(count)) ** 2 == count:
                return side, side
    for name, tensor in encoder.items():
        if name.endswith(_TABLE) and (side := math.isqrt(max(0, len(tensor) - 3))) ** 2 == len(tensor) - 3:
            return (side + 1) // 2, (side + 1) // 2
    raise ConfigError("the weights do not tell the size of the images; add data.size=N or data.size=[HEIGHT, WIDTH]")


def _positions(table: Tensor | None, grid: tuple[int, int], prefix: int) -> str:
    if table is None:
        return "none"
    width = table.shape[2]
    if width % 4 or table.shape[1] != prefix + grid[0] * grid[1]:
        return "learned"
    return "sincos" if torch.allclose(sincos(width, grid, prefix), table, atol=1e-5) else "learned"


def of_objective(method: str, tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> Values:
    """Returns the options of a method that its weights tell; the rest has its defaults."""
    if method == "classify":
        return _classify(tensors, given)
    if method == "mae" and "decoder.embed.weight" in tensors:
        return {"decoder": _decoder(tensors, given, len(tensors["decoder.embed.weight"]))}
    if method == "crossmae":
        return _crossmae(tensors, given)
    if method == "ijepa" and "predictor.embed.weight" in tensors:
        blocks = _count(tensors, r"predictor\.blocks\.(\d+)")
        return {"predictor": {"width": len(tensors["predictor.embed.weight"]), "depth": blocks}}
    values: Values = {"blocks": "beit"} if method in {"data2vec", "maskfeat"} else {}  # as all other code draws them
    if method not in {"data2vec", "data2vec2"}:
        return values
    values["layers"] = min(depth(part(tensors)), 6 if method == "data2vec" else 10)
    if "decoder.layers.0.weight" in tensors:
        first = tensors["decoder.layers.0.weight"]
        values["decoder"] = {
            "width": first.shape[0],
            "depth": _count(tensors, r"decoder\.layers\.(\d+)"),
            "kernel": first.shape[2],
            "groups": tensors[f"{BACKBONE}patch_embed.proj.weight"].shape[0] // first.shape[1],
        }
    return values


def _classify(tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> Values:
    mean = f"{BACKBONE}fc_norm.weight" in tensors
    if "head.weight" not in tensors and given.get("classes") is None:
        raise ConfigError("has no head, so it does not tell the number of classes; add objective.classes=N")
    if not mean and f"{BACKBONE}cls_token" not in tensors:
        raise ConfigError("its head takes the mean of normalised tokens, which classify has no way to do")
    classes = len(tensors["head.weight"]) if "head.weight" in tensors else given["classes"]
    return {"classes": classes, "pool": "mean" if mean else "cls"}


def _crossmae(tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> Values:
    maps = tensors["decoder.map_weights"].shape[1]
    decoder = _decoder(tensors, given, tensors["decoder.mask_token"].shape[-1])
    more = {"self_attention": "decoder.blocks.0.norm0.weight" in tensors, "input_map": maps > depth(part(tensors))}
    return {"decoder": decoder | more}


def _decoder(tensors: Mapping[str, Tensor], given: Mapping[str, Any], width: int) -> Values:
    heads = (given.get("decoder") or {}).get("heads") or (_HEADS | _DECODER_HEADS).get(width)
    if heads is None:
        raise ConfigError("the weights do not tell the decoder's number of heads; add objective.decoder.heads=N")
    return {"width": width, "depth": _count(tensors, r"decoder\.blocks\.(\d+)"), "heads": heads}


def _count(names: Mapping[str, Tensor], pattern: str) -> int:
    return min(DEEPEST, len({match[1] for name in names if (match := re.match(pattern, name))}))
