"""Checkpoints of the official implementations, and state dicts of timm: their names, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrp.config import ConfigError
from mrp.interop import eva, untrusted
from mrp.interop.names import NameTable, Pairs, join_projections
from mrp.interop.weights import BACKBONE, ForeignWeights

TABLE, INDEX = "relative_position_bias_table", "relative_position_index"
# What BEiT's code, and so timm's Beit, names otherwise than timm's VisionTransformer.
BEIT: Pairs = [
    ("blocks.#.gamma_1", "backbone.blocks.#.ls1.gamma"),
    ("blocks.#.gamma_2", "backbone.blocks.#.ls2.gamma"),
    (f"blocks.#.attn.{TABLE}", f"backbone.blocks.#.rel_pos_bias.{TABLE}"),
    ("blocks.#.attn.q_bias", "backbone.blocks.#.attn.query.bias"),
    ("blocks.#.attn.v_bias", "backbone.blocks.#.attn.value.bias"),
]
_VIT = ("cls_token", "reg_token", "pos_embed", "patch_embed.*", "rel_pos_bias.*", "norm_pre.*", "blocks.#.*", "norm.*")
BACKBONE_PAIRS: Pairs = [*BEIT, *((name, BACKBONE + name) for name in _VIT)]
CLASSIFY: Pairs = [("head.*", "head.*"), ("fc_norm.*", "backbone.fc_norm.*"), *BACKBONE_PAIRS]
_IMAGE = "modality_encoders.IMAGE"
TABLES = {
    "mae": NameTable(
        [
            *((f"decoder_{name}.*", f"decoder.{name}.*") for name in ("blocks", "norm", "embed")),
            ("decoder_pred.*", "decoder.head.*"),
            ("decoder_pos_embed", "decoder.positions"),
            ("mask_token", "decoder.mask_token"),
            *BACKBONE_PAIRS,
        ]
    ),
    "crossmae": NameTable(
        [
            ("decoder_blocks.#.cross_attn.q.*", "decoder.blocks.#.query.*"),
            ("decoder_blocks.#.cross_attn.kv.*", "decoder.blocks.#.key_value.*"),
            ("decoder_blocks.#.cross_attn.proj.*", "decoder.blocks.#.proj.*"),
            ("dec_norms.#.*", "decoder.blocks.#.memory_norm.*"),
            *((f"decoder_{name}.*", f"decoder.{name}.*") for name in ("blocks", "norm")),
            ("decoder_pred.*", "decoder.head.*"),
            ("wfm.linear.weight", "decoder.map_weights"),
            ("mask_token", "decoder.mask_token"),
            *BACKBONE_PAIRS,
        ]
    ),
    "simmim": NameTable(
        [
            ("encoder.mask_token", "mask_token"),
            ("decoder.0.*", "head.*"),
            *((f"encoder.{theirs}", ours) for theirs, ours in BACKBONE_PAIRS),
        ]
    ),
    "maskfeat": NameTable(
        [
            ("neck.fc.*", "head.*"),
            ("backbone.mask_token", "mask_token"),
            ("backbone.ln1.*", "backbone.norm.*"),
            ("backbone.patch_embed.projection.*", "backbone.patch_embed.proj.*"),
            ("backbone.layers.#.ln1.*", "backbone.blocks.#.norm1.*"),
            ("backbone.layers.#.ln2.*", "backbone.blocks.#.norm2.*"),
            ("backbone.layers.#.ffn.layers.0.0.*", "backbone.blocks.#.mlp.fc1.*"),
            ("backbone.layers.#.ffn.layers.1.*", "backbone.blocks.#.mlp.fc2.*"),
            ("backbone.layers.#.*", "backbone.blocks.#.*"),
            *((f"backbone.{name}", f"backbone.{name}") for name in ("cls_token", "pos_embed")),
        ]
    ),
    "data2vec": NameTable([("lm_head.*", "head.*"), ("mask_token", "mask_token"), *BACKBONE_PAIRS]),
    "ijepa": NameTable(
        [
            ("predictor.mask_token", "predictor.mask_token"),
            ("predictor.predictor_proj.*", "predictor.head.*"),
            *((f"predictor.predictor_{name}.*", f"predictor.{name}.*") for name in ("embed", "blocks", "norm")),
            *((f"encoder.{theirs}", ours) for theirs, ours in BACKBONE_PAIRS),
            *BACKBONE_PAIRS,
        ]
    ),
    "data2vec2": NameTable(
        [
            (f"{_IMAGE}.extra_tokens", "backbone.cls_token"),
            (f"{_IMAGE}.local_encoder.*", "backbone.patch_embed.*"),
            (f"{_IMAGE}.fixed_positional_encoder.positions", "backbone.pos_embed"),
            (f"{_IMAGE}.context_encoder.norm.*", "backbone.norm_pre.*"),
            (f"{_IMAGE}.context_encoder.blocks.#.*", "backbone.image_blocks.#.*"),  # the first blocks, counted apart
            (f"{_IMAGE}.decoder.blocks.#.0.*", "decoder.layers.#.*"),
            (f"{_IMAGE}.decoder.proj.*", "decoder.head.*"),
            ("blocks.#.*", "backbone.blocks.#.*"),
        ]
    ),
    "classify": NameTable(CLASSIFY),
}
# No weights of the method: U-MAE's online classifier, positions that follow from the size, filters of gradients.
_IGNORED = {
    "mae": r"(fc|fc_norm)\..*",
    "crossmae": r"decoder_pos_embed",
    "ijepa": r"predictor\.predictor_pos_embed",
    "maskfeat": r"target_generator\..*",
}
_SIGNS = {  # a name of a weight, and the method that it tells; the first that is there counts
    "predictor.predictor_embed.weight": "ijepa",
    "wfm.linear.weight": "crossmae",
    "backbone.layers.0.ln1.weight": "maskfeat",
    "encoder.cls_token": "simmim",
    "lm_head.weight": "data2vec",
    "head.weight": "classify",
    "decoder_embed.weight": "mae",
    "fc.weight": "mae",
    "fc_norm.weight": "classify",  # the norm of pooled tokens, before a head that was taken off
    "cls_token": "mae",
    "patch_embed.proj.weight": "mae",
}
_MODELS = ("model", "module", "state_dict")  # where a file keeps the weights (module: DeepSpeed), if not at its top
_TEACHERS = ("teacher", "model_ema", "_ema", "target_encoder")
_PARTS = ("encoder", "predictor")  # what I-JEPA keeps apart
_WRAPPERS = re.compile(r"^((module|_orig_mod|_forward_module)\.)+")  # of torch's DistributedDataParallel, and the like
_FIRST = "patch_embed.proj.weight"
_BEIT_STATISTICS = {"mean": (0.5,) * 3, "std": (0.5,) * 3}  # what data2vec is fine-tuned with


def load(path: Path, is_eva: bool | None = None) -> ForeignWeights:
    """Returns the weights of an official checkpoint, of a masked method or a classifier.

    A data2vec checkpoint without its teacher gets the student's weights as one, which is where a teacher starts.
    `is_eva` says whether it is a model of timm's module `eva`, where that is known.
    """
    content = untrusted.read(path)
    content = content if isinstance(content, dict) else {}
    key = next((key for key in _MODELS if key in content), None)
    model = content if key is None else content[key]
    holders = [holder for holder in (content, model) if isinstance(holder, dict)]
    teachers = [holder[name] for name in _TEACHERS for holder in holders if isinstance(holder.get(name), dict)]
    if isinstance(model, dict):
        model = {name: value for name, value in model.items() if name not in _TEACHERS}
    if all(isinstance(content.get(part), dict) for part in _PARTS):
        model = {f"{part}.{k}": w for part in _PARTS for k, w in _state_dict(content[part], path).items()}
    model = _state_dict(model, path)
    method = recognise(model)
    if is_eva:
        return ForeignWeights(path, method, eva.renamed(model), backbone={}, objective={}, data={})
    if is_eva is None:
        eva.refuse_unnamed(model)
    if method == "mae" and "decoder_embed.weight" not in model:
        model = _of_dinov2(model)
    tensors = rename(method, model)
    if method == "crossmae":  # its encoder has no last norm; ours keeps it as it is drawn
        width = tensors[f"{BACKBONE}patch_embed.proj.bias"].shape
        tensors |= {f"{BACKBONE}norm.weight": torch.ones(width), f"{BACKBONE}norm.bias": torch.zeros(width)}
    if method in {"data2vec", "data2vec2", "ijepa"}:
        teacher = rename(method, _state_dict(teachers[0], path) if teachers else model)
        tensors |= {f"teacher.{name}": tensor for name, tensor in teacher.items() if name.startswith(BACKBONE)}
    no_key_bias = any(name.endswith(".q_bias") for name in model)
    fine_tuned_data2vec = method == "classify" and key == "module" and no_key_bias
    return ForeignWeights(
        file=path,
        method=method,
        tensors=tensors,
        backbone={"qkv_bias": "query_value"} if no_key_bias else {},
        objective=_settings_of_mae(content.get("args")) if method in {"mae", "crossmae"} else {},
        data=dict(_BEIT_STATISTICS) if fine_tuned_data2vec else {},
    )


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    tensors = untrusted.state_dict(content, path)
    return _without_prefix({_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()})


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of an encoder that was a part of another model, such as `backbone.`, and saved alone."""
    prefix = min(_encoders(tensors), default="")
    if not all(name.startswith(prefix) for name in tensors) or "encoder.mask_token" in tensors:  # SimMIM's
        return tensors
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _encoders(names: Iterable[str]) -> set[str]:
    """Returns what comes before timm's names of a Vision Transformer."""
    return {name.removesuffix(_FIRST) for name in names if name.endswith(_FIRST)}


def _of_dinov2(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the encoder of an official DINOv2 under timm's names; its registers have no positions."""
    renamed = {name: tensor for name, tensor in weights.items() if name != "mask_token"}
    if (registers := renamed.pop("register_tokens", None)) is not None:
        positions = renamed["pos_embed"]
        renamed["reg_token"] = registers
        renamed["pos_embed"] = torch.cat([positions[:, :1], torch.zeros_like(registers), positions[:, 1:]], dim=1)
    return renamed


def _settings_of_mae(saved: Any) -> dict[str, Any]:
    """Returns what the saved arguments of MAE or CrossMAE say of its objective."""
    settings: dict[str, Any] = {}
    if isinstance(ratio := getattr(saved, "mask_ratio", None), float):
        settings["mask_ratio"] = ratio
    if isinstance(normalised := getattr(saved, "norm_pix_loss", None), bool):
        settings["target"] = "pixels_norm" if normalised else "pixels"
    if isinstance(ratio := getattr(saved, "kept_mask_ratio", None), float):
        settings["predicted"] = ratio
    return settings


def recognise(names: Iterable[str]) -> str:
    """Returns the method that weights of these names belong to."""
    names = set(names)
    if any(name.startswith(f"{_IMAGE}.") for name in names):
        return "data2vec2"
    if (sign := next((sign for sign in _SIGNS if sign in names), None)) is not None:
        return _SIGNS[sign]
    if any(name.startswith("objective.backbone.") for name in names):
        raise ConfigError(
            "is the model.safetensors of a checkpoint of mrp without its folder, which says what the model is; give it "
            "where it was written, or copy the whole folder of the checkpoint"
        )
    known = "MAE, U-MAE, CrossMAE, SimMIM, MaskFeat, I-JEPA, data2vec and ViT checkpoints are"
    if prefixes := sorted(_encoders(names)):
        raise ConfigError(
            f"holds more than a model that is known here ({known}); save the weights of one encoder alone: those "
            f"whose names begin with {' or '.join(map(repr, prefixes))}"
        )
    raise ConfigError(f"holds no model that is known here; {known}")


def rename(method: str, weights: Mapping[str, Tensor], image_blocks: int | None = None) -> dict[str, Tensor]:
    """Returns weights (or their gradients) under mrp's names; a name that is not known is an error, never dropped.

    data2vec 2 numbers its first blocks, `image_blocks` of them, apart from the others; they are counted if not given.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith(INDEX) or re.fullmatch(_IGNORED.get(method, ""), name):
            continue
        ours = TABLES[method].ours(name)
        if ours is None:
            raise ConfigError(f"'{name}' is no weight of {method} as officially released; is it another kind of model?")
        renamed[ours] = tensor
    if method == "simmim" and "head.weight" in renamed:
        renamed["head.weight"] = renamed["head.weight"].flatten(1)  # a convolution of 1x1 there
    if method == "data2vec2":
        renamed = _as_one_stack(renamed, image_blocks)
    return join_projections(renamed)


def _as_one_stack(weights: Mapping[str, Tensor], image_blocks: int | None) -> dict[str, Tensor]:
    """Returns data2vec 2's weights with all blocks counted together, and a position (zero) for the class token."""
    if image_blocks is None:
        image_blocks = len({name.split(".")[2] for name in weights if name.startswith("backbone.image_blocks.")})
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if match := re.fullmatch(r"backbone\.blocks\.(\d+)(\..*)", name):
            name = f"backbone.blocks.{int(match[1]) + image_blocks}{match[2]}"
        elif name == "backbone.pos_embed":
            tensor = torch.cat([torch.zeros_like(tensor[:, :1]), tensor], dim=1)
        renamed[name.replace("image_blocks", "blocks")] = tensor
    return renamed
