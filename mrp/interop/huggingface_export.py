"""A folder that transformers loads with its own call: ViTMAE, ViT or Data2VecVision, whichever computes the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mrp.config import ConfigError
from mrp.interop.folders import CONFIG, WEIGHTS, Preprocessing, save_json, save_tensors
from mrp.interop.heads import linear_head
from mrp.interop.huggingface import BLOCK, DECODER, ENCODER, QKV
from mrp.methodkit import Objective
from mrp.models.blocks import PostNormBlock
from mrp.models.vit import grid, norm_eps
from mrp.objectives import mae

_PREPROCESSING = "preprocessor_config.json"
_BICUBIC = 3  # as Pillow counts


def write(
    folder: Path,
    objective: Objective,
    images: Preprocessing,
    classes: Sequence[str] = (),
    missing: Collection[str] = (),
) -> str:
    """Write config.json, model.safetensors and preprocessor_config.json; how to load them.

    What is missing of an objective was never trained and stays behind.
    """
    vit = objective.backbone
    _refuse(vit, images)
    if isinstance(objective, mae.Objective) and not missing and not _needs_more_than_vit(vit):
        name, values, tensors = "ViTMAEForPreTraining", *_mae(objective)
    else:
        head = linear_head(objective, missing)
        name, values, tensors = _encoder(vit, head)
        if head is not None:
            values |= _labels(classes if len(classes) == head.out_features else (), head.out_features)
    save_tensors(folder / WEIGHTS, tensors)
    save_json(folder / CONFIG, {"architectures": [name]} | values | {"dtype": "float32"})
    save_json(folder / _PREPROCESSING, _preprocessing(images))
    without = ", add_pooling_layer=False" if name == "ViTModel" else ""
    return (
        f"from transformers import AutoImageProcessor, {name}\n\n"
        f'model = {name}.from_pretrained("FOLDER"{without})  # or, uploaded: "OWNER/NAME"\n'
        'processor = AutoImageProcessor.from_pretrained("FOLDER")'
    )


def _refuse(vit: VisionTransformer, images: Preprocessing) -> None:
    """Say what none of transformers' models computes."""
    block: Any = vit.blocks[0]
    patch = vit.patch_embed.patch_size
    relative = hasattr(vit, "rel_pos_bias") or hasattr(block, "rel_pos_bias")
    reasons = {
        "backbone.norm: post": isinstance(block, PostNormBlock),
        f"backbone.registers: {vit.num_reg_tokens}": vit.num_reg_tokens > 0,
        "backbone.class_token: false": not vit.has_class_token,
        f"backbone.patch: {list(patch)}": patch[0] != patch[1],
        "an activation other than the exact GELU": type(getattr(block.mlp, "act", None)) is not nn.GELU,
        f"a relative_bias on images of {list(images.size)}": relative and images.size[0] != images.size[1],
        "the norm before the first block": not isinstance(vit.norm_pre, nn.Identity)
        and block.__class__ is not PostNormBlock,
        "positions for patches alone": vit.pos_embed is not None and vit.no_embed_class,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"{reason} is what transformers has no model for, so it cannot be exported to it")


def _needs_more_than_vit(vit: VisionTransformer) -> bool:
    """Whether there is a layer scale, a relative bias or a norm after pooling, which Data2VecVision alone has."""
    block: Any = vit.blocks[0]
    scaled = not isinstance(block.ls1, nn.Identity)
    relative = hasattr(vit, "rel_pos_bias") or hasattr(block, "rel_pos_bias")
    return scaled or relative or isinstance(vit.fc_norm, nn.LayerNorm) or vit.pos_embed is None


def _shape(vit: VisionTransformer) -> dict[str, Any]:
    block: Any = vit.blocks[0]
    side, rows = vit.patch_embed.patch_size[0], grid(vit)
    size = [rows[0] * side, rows[1] * side]
    return {
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": norm_eps(vit),
        "image_size": size[0] if size[0] == size[1] else size,
        "patch_size": side,
        "num_channels": vit.patch_embed.proj.in_channels,
    }


def _mae(objective: mae.Objective) -> tuple[dict[str, Any], dict[str, Tensor]]:
    vit, decoder = objective.backbone, objective.config.decoder
    size = grid(vit)
    if size[0] != size[1]:
        raise ConfigError(f"data.size: a grid of {size[0]}x{size[1]} patches is not square, as ViTMAE's loss needs it")
    values = _shape(vit) | {
        "model_type": "vit_mae",
        "qkv_bias": True,
        "mask_ratio": objective.config.mask_ratio,
        "norm_pix_loss": objective.config.target == "pixels_norm",
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_intermediate_size": 4 * decoder.width,
    }
    decoded = _renamed(objective.decoder.state_dict(), DECODER, "decoder_layers", key_bias=True)
    tensors = {f"vit.{name}": w for name, w in _renamed(vit.state_dict(), ENCODER, key_bias=True).items()}
    return values, tensors | {f"decoder.{name}": tensor for name, tensor in decoded.items()}


def _encoder(vit: VisionTransformer, head: nn.Linear | None) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """ViT where it has all that is needed, or else Data2VecVision."""
    data2vec = _needs_more_than_vit(vit)
    kind, prefix = ("Data2VecVision", "data2vec_vision") if data2vec else ("ViT", "vit")
    values = _shape(vit)
    if data2vec:
        block: Any = vit.blocks[0]
        values |= {
            "model_type": "data2vec-vision",
            "use_absolute_position_embeddings": vit.pos_embed is not None,
            "use_shared_relative_position_bias": hasattr(vit, "rel_pos_bias"),
            "use_relative_position_bias": hasattr(block, "rel_pos_bias"),
            "layer_scale_init_value": 0.0 if isinstance(block.ls1, nn.Identity) else 0.1,  # 0: there is none
            "use_mean_pooling": isinstance(vit.fc_norm, nn.LayerNorm),
            "drop_path_rate": 0.0,
        }
    else:
        values |= {"model_type": "vit", "qkv_bias": True}
    tensors = _renamed(vit.state_dict(), ENCODER, key_bias=not data2vec)
    if head is not None and vit.global_pool == "avg" and not isinstance(vit.fc_norm, nn.LayerNorm):
        raise ConfigError("objective.pool: mean of normalised tokens is what transformers has no model for")
    if head is None:
        return f"{kind}Model", values, tensors
    tensors = {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
    tensors |= {f"classifier.{name}": tensor for name, tensor in head.state_dict().items()}
    return f"{kind}ForImageClassification", values, tensors


def _renamed(
    state: Mapping[str, Tensor], others: Mapping[str, str], blocks: str = "encoder.layer", *, key_bias: bool
) -> dict[str, Tensor]:
    """Our names as theirs; a bias of keys, which changes no attention, is left out where they have none."""
    inside, outside = ({ours: theirs for theirs, ours in table.items()} for table in (BLOCK, others))
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        place, table, rest = "", outside, name
        if name.startswith("blocks."):
            _, layer, rest = name.split(".", 2)
            place, table = f"{blocks}.{layer}.", inside
        stem, _, last = rest.rpartition(".")
        if stem == "attn.qkv":
            for part, third in zip(QKV, tensor.chunk(3), strict=True):
                if last == "weight" or part != "key" or key_bias:
                    found[f"{place}attention.attention.{part}.{last}"] = third
        elif rest in table:
            found[place + table[rest]] = tensor
        elif stem in table:
            found[f"{place}{table[stem]}.{last}"] = tensor
        else:
            raise ConfigError(f"this backbone has a '{name}', which transformers has no model for")
    return found


def _labels(classes: Sequence[str], count: int) -> dict[str, Any]:
    names = classes or [f"LABEL_{number}" for number in range(count)]
    return {
        "num_labels": count,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _preprocessing(images: Preprocessing) -> dict[str, Any]:
    """What their image processor is told; it takes the centre of a square alone."""
    height, width = images.size
    cropped = images.crop is not None and height == width
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": images.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": images.covered[0]} if cropped else {"height": height, "width": width},
        "resample": _BICUBIC,
        "do_center_crop": cropped,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }
