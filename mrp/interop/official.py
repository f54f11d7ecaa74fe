"""Checkpoints of the official implementations (and state dicts of timm), read without executing what they hold."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mrp.config import ConfigError

Weights = Mapping[str, Tensor]


# What the official code saves besides tensors. Anything else is refused by name. For the settings of other packages a
# dictionary stands in, which takes their data and does nothing with it.
_ALLOWED: list[Any] = [
    argparse.Namespace,
    *(
        (OrderedDict, name)
        for name in (
            "yacs.config.CfgNode",  # SimMIM
            "omegaconf.dictconfig.DictConfig",  # data2vec, from here on
            "omegaconf.listconfig.ListConfig",
            "omegaconf.base.ContainerMetadata",
            "omegaconf.base.Metadata",
            "omegaconf.nodes.AnyNode",
            "typing.Any",
        )
    ),
]

# Per method: official name -> ours, or None for what is not a weight of the method. The first rule that fits counts.
_Rules = list[tuple[str, str | None]]
_BACKBONE: _Rules = [
    (r"(.*\.)?relative_position_index", None),
    (r"blocks\.(\d+)\.gamma_([12])", r"backbone.blocks.\1.ls\2.gamma"),
    (r"blocks\.(\d+)\.attn\.(relative_position_bias_table)", r"backbone.blocks.\1.rel_pos_bias.\2"),
    (r"((?:cls_token|reg_token|pos_embed|patch_embed|rel_pos_bias|norm_pre|blocks|norm)(?:\..*)?)", r"backbone.\1"),
]
_IMAGE = r"modality_encoders\.IMAGE\."
_RULES: dict[str, _Rules] = {
    "mae": [
        (r"decoder_(blocks\..*|norm\..*|embed\..*)", r"decoder.\1"),
        (r"decoder_pred\.(.*)", r"decoder.head.\1"),
        (r"decoder_pos_embed", r"decoder.positions"),
        (r"mask_token", r"decoder.mask_token"),
        (r"(fc|fc_norm)\..*", None),  # U-MAE's online classifier
        *_BACKBONE,
    ],
    "simmim": [
        (r"encoder\.mask_token", r"mask_token"),
        (r"decoder\.0\.(.*)", r"head.\1"),
        *((r"encoder\." + rule, ours) for rule, ours in _BACKBONE),
    ],
    "data2vec": [(r"lm_head\.(.*)", r"head.\1"), (r"mask_token", r"mask_token"), *_BACKBONE],
    "data2vec2": [
        (_IMAGE + r"extra_tokens", r"backbone.cls_token"),
        (_IMAGE + r"local_encoder\.(proj\..*)", r"backbone.patch_embed.\1"),
        (_IMAGE + r"fixed_positional_encoder\.positions", r"backbone.pos_embed"),
        (_IMAGE + r"context_encoder\.norm\.(.*)", r"backbone.norm_pre.\1"),
        (_IMAGE + r"context_encoder\.(blocks\..*)", r"backbone.\1"),
        (_IMAGE + r"decoder\.blocks\.(\d+)\.0\.(.*)", r"decoder.layers.\1.\2"),
        (_IMAGE + r"decoder\.proj\.(.*)", r"decoder.head.\1"),
        (r"(blocks\..*)", r"backbone.\1"),
    ],
    "classify": [(r"(head\..*)", r"\1"), (r"(fc_norm\..*)", r"backbone.\1"), *_BACKBONE],
}
_TEACHERS = ("teacher", "model_ema", "_ema")
_PLACES = ("model", "state_dict")  # of the weights; or nowhere, where the file holds nothing else


class Official(NamedTuple):
    """A checkpoint of an official implementation, under our names."""

    method: str  # the objective that it belongs to
    weights: dict[str, Tensor]  # the objective's; or, where no more was published, the encoder's
    backbone: dict[str, Any] = {}  # noqa: RUF012 -- options that the names of the weights tell but not their shapes
    objective: dict[str, Any] = {}  # noqa: RUF012 -- and the method's, where its settings were saved

    def encoder(self) -> dict[str, Tensor]:
        """The backbone's weights alone."""
        return {name.removeprefix("backbone."): w for name, w in self.weights.items() if name.startswith("backbone.")}


def load(path: Path) -> Official:
    """The weights of an official MAE, U-MAE, SimMIM-ViT, data2vec or ViT classification checkpoint.

    A data2vec checkpoint without its teacher gets the student's weights as one, which is where a teacher starts.
    """
    content = read(path)
    held: Any = content
    if isinstance(content, dict):
        held = next((content[place] for place in _PLACES if place in content), content)
    if not _are_weights(held):
        raise ConfigError(f"{path}: holds no weights by name; is it a checkpoint of an official implementation?")
    model = dict(held)
    teacher = next((found for name in _TEACHERS if (found := content.get(name) or model.pop(name, None))), model)
    model = {name.removeprefix("module."): tensor for name, tensor in model.items()}
    try:
        method = recognise(model)
        weights = rename(method, model)
        if method in {"data2vec", "data2vec2"}:
            copied = rename(method, {name.removeprefix("module."): tensor for name, tensor in teacher.items()})
            weights |= {f"teacher.{name}": tensor for name, tensor in copied.items() if name.startswith("backbone.")}
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    keyless = any(name.endswith(".q_bias") for name in model)
    return Official(method, weights, {"qkv_bias": "query_value"} if keyless else {}, _settings(method, content))


def _settings(method: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """What MAE's saved arguments say of its objective."""
    saved = content.get("args")
    if method != "mae" or not isinstance(saved, argparse.Namespace):
        return {}
    told: dict[str, Any] = {}
    if isinstance(ratio := getattr(saved, "mask_ratio", None), float):
        told["mask_ratio"] = ratio
    if isinstance(norm := getattr(saved, "norm_pix_loss", None), bool):
        told["target"] = "pixels_norm" if norm else "pixels"
    return told


def _are_weights(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and any(isinstance(value, Tensor) for value in found.values())
        and all(isinstance(name, str) for name in found)
    )


def read(path: Path) -> Any:
    """A file's content: tensors, numbers, text and settings, nothing that could run."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise ConfigError(f"{path}: cannot be read: {error}; fetch it again") from None
    except Exception as error:  # a damaged file makes the reader stumble in any way
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks to load '{named[1]}'" if named else "it is damaged or not a checkpoint"
        raise ConfigError(
            f"{path}: refused: {what}; only tensors, plain data and the settings of official checkpoints are read"
        ) from None


def recognise(names: Iterable[str]) -> str:
    """The method that weights of these names belong to."""
    names = set(names)
    if any(name.startswith("modality_encoders.IMAGE.") for name in names):
        return "data2vec2"
    if "encoder.cls_token" in names:
        return "simmim"
    if "lm_head.weight" in names:
        return "data2vec"
    if "head.weight" in names:
        return "classify"
    if names & {"decoder_embed.weight", "fc.weight"}:
        return "mae"
    if "fc_norm.weight" in names:  # the norm of pooled tokens, before a head that was taken off
        return "classify"
    if names & {"cls_token", "patch_embed.proj.weight"}:
        return "mae"
    raise ConfigError("holds no model that is known here; MAE, U-MAE, SimMIM, data2vec and ViT checkpoints are")


def rename(method: str, weights: Weights, image_blocks: int | None = None) -> dict[str, Tensor]:
    """The official names of weights (or of their gradients) as ours; what we do not know is an error, never dropped.

    data2vec 2 numbers its first blocks, `image_blocks` of them, apart from the others; they are counted if not given.
    """
    renamed: dict[str, Tensor] = {}
    if image_blocks is None:
        counted = [re.match(_IMAGE + r"context_encoder\.blocks\.(\d+)", name) for name in weights]
        image_blocks = len({found[1] for found in counted if found})
    for name, tensor in weights.items():
        rule = next(((old, ours) for old, ours in _RULES[method] if re.fullmatch(old, name)), None)
        if rule is None:
            raise ConfigError(f"'{name}' is no weight of {method} as officially released; is it another kind of model?")
        if rule[1] is None:
            continue
        if method == "data2vec2":
            name = re.sub(r"^blocks\.(\d+)", lambda found: f"blocks.{int(found[1]) + image_blocks}", name)
        ours = re.sub(f"^{rule[0]}$", rule[1], name)
        if method == "data2vec2" and ours == "backbone.pos_embed":  # the class token has no position there
            tensor = torch.cat([torch.zeros_like(tensor[:, :1]), tensor], dim=1)
        renamed[ours] = tensor.flatten(1) if method == "simmim" and ours == "head.weight" else tensor
    return _with_key_bias(renamed)


def _with_key_bias(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The biases of queries and values as one with that of keys between them, which is zero."""
    for name in [name for name in weights if name.endswith(".q_bias")]:
        query, value = weights.pop(name), weights.pop(name.removesuffix("q_bias") + "v_bias", None)
        if value is None:
            raise ConfigError(f"'{name}' stands without its v_bias; the checkpoint is not whole")
        weights[name.removesuffix("q_bias") + "qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return weights
