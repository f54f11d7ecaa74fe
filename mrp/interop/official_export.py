"""A checkpoint that the official implementations load: their names, plain tensors, nothing else."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from mrp.config import ConfigError
from mrp.interop.heads import linear_head, tensors_of
from mrp.interop.names import split_projections
from mrp.interop.official import INDEX, TABLE, TABLES
from mrp.interop.traits import EVA, Traits, refuse
from mrp.interop.weights import BACKBONE
from mrp.methodkit import Objective
from mrp.models.blocks import Block, QueryValueLinear
from mrp.models.positions import RelativeBias
from mrp.objectives import classify, data2vec, data2vec2, mae, maskfeat, simmim

FILE = "checkpoint.pth"
_METHODS: dict[type[Objective], str] = {
    module.Objective: module.__name__.rpartition(".")[2]
    for module in (mae, simmim, maskfeat, data2vec, data2vec2, classify)
}


def write(folder: Path, objective: Objective, missing: Collection[str] = ()) -> str:
    """Writes checkpoint.pth (`model`, and the `teacher` of a method that has one) and returns how to load it.

    What is missing of an objective was never trained and is left out: such a checkpoint holds an encoder alone.
    mmpretrain, for which MaskFeat is written, calls the model `state_dict`.
    """
    key = "state_dict" if isinstance(objective, maskfeat.Objective) else "model"
    content = {key: renamed(objective, missing)}
    if isinstance(objective, data2vec.Objective | data2vec2.Objective):
        teacher = {BACKBONE + name: tensor for name, tensor in objective.teacher.backbone.state_dict().items()}
        content["teacher"] = _renamed(objective, teacher)
    torch.save(content, folder / FILE)
    return (
        "import torch\n\n"
        f'content = torch.load("FOLDER/{FILE}", weights_only=True)\n'
        f'model.load_state_dict(content["{key}"])  # a model of the official code'
    )


def renamed(objective: Objective, missing: Collection[str] = ()) -> dict[str, Tensor]:
    """Returns an objective's weights under official names; a probe's standardisation is folded into its head."""
    if type(objective) not in _METHODS:
        raise ConfigError("objective: no official names are known for its weights, so it cannot be exported to them")
    state = objective.state_dict() | tensors_of(linear_head(objective, missing))
    left_out = ("teacher.", "standardise.")
    return _renamed(objective, {k: w for k, w in state.items() if k not in missing and not k.startswith(left_out)})


def _renamed(objective: Objective, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    _refuse(objective)
    method, first = _METHODS[type(objective)], cast(Block, objective.backbone.blocks[0])
    if isinstance(first.attn.qkv, QueryValueLinear):
        weights = split_projections(weights, ["bias"], key_bias=False)
    if isinstance(objective, simmim.Objective):  # a convolution of 1x1 there
        weights = {name: w[:, :, None, None] if name == "head.weight" else w for name, w in weights.items()}
    if isinstance(objective, data2vec2.Objective):
        weights = _image_blocks_apart(objective, weights)
    theirs = TABLES[method].export(weights, f"the official {method}")
    biases = [module for module in objective.backbone.modules() if isinstance(module, RelativeBias)]
    for name in [name for name in theirs if name.endswith(TABLE)]:
        theirs[name.removesuffix(TABLE) + INDEX] = biases[0].relative_position_index
    return {name: tensor.detach().cpu().clone() for name, tensor in theirs.items()}


def _refuse(objective: Objective) -> None:
    """Raises an error that says what the official implementation of a method lacks."""
    traits = Traits.of(objective.backbone)
    plain = isinstance(objective, mae.Objective | maskfeat.Objective | data2vec2.Objective)
    query_value = any(isinstance(module, QueryValueLinear) for module in objective.backbone.modules())
    reasons = {
        EVA: traits.eva,
        f"backbone.registers: {traits.registers}": traits.registers > 0,
        "backbone.class_token: false": not traits.class_token,
        "backbone.layer_scale": plain and traits.layer_scale is not None,
        "backbone.layer_scale with qkv_bias: all": traits.layer_scale is not None and not query_value,
        "backbone.relative_bias": plain and traits.relative_bias != "none",
        "backbone.positions: none": plain and not traits.absolute_positions,
        "backbone.norm": isinstance(objective, data2vec2.Objective) != traits.norm_before_blocks,
    }
    refuse(reasons, f"the official {_METHODS[type(objective)]}")


def _image_blocks_apart(objective: data2vec2.Objective, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns data2vec 2's weights as its code keeps them.

    The blocks that are never targets are counted apart, and the class token has no position.
    """
    num_image_blocks = len(objective.backbone.blocks) - objective.config.layers
    apart: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if match := re.fullmatch(r"backbone\.blocks\.(\d+)(\..*)", name):
            block = int(match[1])
            early = block < num_image_blocks
            name = f"backbone.{f'image_blocks.{block}' if early else f'blocks.{block - num_image_blocks}'}{match[2]}"
        elif name == "backbone.pos_embed":
            prefix = objective.backbone.num_prefix_tokens
            if tensor[:, :prefix].any():
                raise ConfigError("backbone.positions: the class token has one, unlike that of the official data2vec 2")
            tensor = tensor[:, prefix:]
        apart[name] = tensor
    return apart
