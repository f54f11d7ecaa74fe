"""A checkpoint that the official implementations load: their names, plain tensors, nothing else."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrp.config import ConfigError
from mrp.interop.heads import linear_head
from mrp.methodkit import Objective
from mrp.models.blocks import QueryValueLinear
from mrp.models.positions import RelativeBias
from mrp.objectives import classify, data2vec, data2vec2, mae, simmim

FILE = "checkpoint.pth"
_TABLE, _INDEX = "relative_position_bias_table", "relative_position_index"
_Names = list[tuple[str, str]]
# Ours -> official, by method; the first that fits counts.
_BACKBONE: _Names = [(r"backbone\.(.*)", r"\1")]
_NAMES: dict[type[Objective], _Names] = {
    mae.Objective: [
        (r"decoder\.(blocks\..*|norm\..*|embed\..*)", r"decoder_\1"),
        (r"decoder\.head\.(.*)", r"decoder_pred.\1"),
        (r"decoder\.positions", "decoder_pos_embed"),
        (r"decoder\.mask_token", "mask_token"),
        *_BACKBONE,
    ],
    simmim.Objective: [
        (r"mask_token", "encoder.mask_token"),
        (r"head\.(.*)", r"decoder.0.\1"),
        (r"backbone\.(.*)", r"encoder.\1"),
    ],
    data2vec.Objective: [(r"mask_token", "mask_token"), (r"head\.(.*)", r"lm_head.\1"), *_BACKBONE],
    data2vec2.Objective: [
        (r"backbone\.cls_token", "IMAGE.extra_tokens"),
        (r"backbone\.patch_embed\.(.*)", r"IMAGE.local_encoder.\1"),
        (r"backbone\.pos_embed", "IMAGE.fixed_positional_encoder.positions"),
        (r"backbone\.norm_pre\.(.*)", r"IMAGE.context_encoder.norm.\1"),
        (r"decoder\.layers\.(\d+)\.(.*)", r"IMAGE.decoder.blocks.\1.0.\2"),
        (r"decoder\.head\.(.*)", r"IMAGE.decoder.proj.\1"),
        *_BACKBONE,
    ],
    classify.Objective: [(r"(head\..*)", r"\1"), *_BACKBONE],
}


def write(folder: Path, objective: Objective, missing: Collection[str] = ()) -> str:
    """Write checkpoint.pth: `model`, and beside it the `teacher` of a method that has one; how to load it.

    What is missing of an objective was never trained and stays behind: such a checkpoint is an encoder's alone.
    """
    content = {"model": renamed(objective, missing)}
    if isinstance(objective, data2vec.Objective | data2vec2.Objective):
        teacher = {f"backbone.{name}": w for name, w in objective.teacher.backbone.state_dict().items()}
        content["teacher"] = _named(objective, teacher)
    torch.save(content, folder / FILE)
    return (
        "import torch\n\n"
        f'content = torch.load("FOLDER/{FILE}", weights_only=True)\n'
        'model.load_state_dict(content["model"])  # a model of the official code'
    )


def renamed(objective: Objective, missing: Collection[str] = ()) -> dict[str, Tensor]:
    """An objective's weights under official names; a probe's head with what stands before it folded in."""
    kind = type(objective)
    if kind not in _NAMES:
        raise ConfigError("objective: it has no official implementation, so there are no official names to export to")
    own = {name: w for name, w in objective.state_dict().items() if not name.startswith(("teacher.", "standardise."))}
    if (head := linear_head(objective, missing)) is not None:
        own |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    return _named(objective, {name: tensor for name, tensor in own.items() if name not in missing})


def _named(objective: Objective, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    _refuse(objective)
    weights = _adapted(objective, {name: tensor.detach().cpu().clone() for name, tensor in weights.items()})
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        old, new = next(rule for rule in _NAMES[type(objective)] if re.fullmatch(rule[0], name))
        named = re.sub(f"^{old}$", new, name)
        found[f"modality_encoders.{named}" if named.startswith("IMAGE.") else named] = tensor
    return found


def _refuse(objective: Objective) -> None:
    """Say what the official implementation of a method lacks."""
    vit, block = objective.backbone, objective.backbone.blocks[0]
    scaled = not isinstance(block.ls1, torch.nn.Identity)
    relative = hasattr(vit, "rel_pos_bias") or hasattr(block, "rel_pos_bias")
    method = type(objective).__module__.rpartition(".")[2]
    plain = isinstance(objective, mae.Objective | data2vec2.Objective)
    post = isinstance(objective, data2vec2.Objective)
    reasons = {
        f"backbone.registers: {vit.num_reg_tokens}": vit.num_reg_tokens > 0,
        "backbone.class_token: false": not vit.has_class_token,
        "backbone.layer_scale": plain and scaled,
        "backbone.relative_bias": plain and relative,
        "backbone.positions: none": plain and vit.pos_embed is None,
        "backbone.norm": post == isinstance(vit.norm_pre, torch.nn.Identity),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(
                f"{reason} is what the official {method} has no names for, so it cannot be exported to it"
            )


def _adapted(objective: Objective, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parts that official code keeps in another form, in that form."""
    found: dict[str, Tensor] = {}
    first: Any = objective.backbone.blocks[0]
    keyless = isinstance(first.attn.qkv, QueryValueLinear)
    for name, tensor in weights.items():
        if name.endswith("attn.qkv.bias") and keyless:
            query, _, value = tensor.chunk(3)
            place = name.removesuffix("qkv.bias")
            found |= {f"{place}q_bias": query.clone(), f"{place}v_bias": value.clone()}
            continue
        name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
        name = re.sub(rf"(blocks\.\d+)\.rel_pos_bias\.({_TABLE})$", r"\1.attn.\2", name)
        found[name] = tensor
        if name.endswith(_TABLE):
            found[name.removesuffix(_TABLE) + _INDEX] = _index(objective)
    if isinstance(objective, simmim.Objective) and "head.weight" in found:
        found["head.weight"] = found["head.weight"][:, :, None, None]
    return _split_blocks(objective, found) if isinstance(objective, data2vec2.Objective) else found


def _index(objective: Objective) -> Tensor:
    table = next(module for module in objective.backbone.modules() if isinstance(module, RelativeBias))
    return table.relative_position_index.detach().cpu().clone()


def _split_blocks(objective: data2vec2.Objective, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """data2vec 2 counts the blocks that are never targets apart, and keeps no position for its class token."""
    first = len(objective.backbone.blocks) - objective.config.layers
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if inside := re.fullmatch(r"backbone\.blocks\.(\d+)\.(.*)", name):
            layer = int(inside[1])
            early = layer < first
            name = (
                f"backbone.{'IMAGE.context_encoder.' if early else ''}blocks.{layer - first * (not early)}.{inside[2]}"
            )
        elif name == "backbone.pos_embed":
            prefix = objective.backbone.num_prefix_tokens
            if tensor[:, :prefix].any():
                raise ConfigError("backbone.positions: the class token has one, unlike that of the official data2vec 2")
            tensor = tensor[:, prefix:].clone()
        found[name] = tensor
    return found
