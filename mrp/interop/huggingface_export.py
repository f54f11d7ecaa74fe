"""A folder that transformers loads with its own call: ViT or Data2VecVision, or the whole of a MAE as ViTMAE."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mrp.config import ConfigError
from mrp.interop.folders import CONFIG, OF_TAGS, WEIGHTS, Preprocessing, save_json, save_tensors
from mrp.interop.heads import linear_head, tells_tags, tensors_of
from mrp.interop.huggingface import NAMES, PREFIXES
from mrp.interop.names import split_projections
from mrp.interop.traits import EVA, Traits, refuse
from mrp.interop.weights import BACKBONE
from mrp.methodkit import Objective
from mrp.models.vit import Backbone, grid
from mrp.objectives import mae

SIDE = "transformers"
_BICUBIC = 3  # as Pillow counts


def write(
    folder: Path,
    objective: Objective,
    images: Preprocessing,
    classes: Sequence[str] = (),
    missing: Collection[str] = (),
    whole: bool = False,
) -> str:
    """Writes config.json, model.safetensors and preprocessor_config.json, and returns how to use them.

    The folder holds the encoder, with the head of a classifier. `whole` is for MAE: the encoder and the decoder, which
    hide patches at random whenever they are called.
    """
    traits = Traits.of(objective.backbone)
    _refuse(objective.backbone, traits, images)
    head = None if whole else linear_head(objective, missing)
    of_tags = head is not None and tells_tags(objective)
    state = {BACKBONE + name: tensor for name, tensor in objective.backbone.state_dict().items()}
    if whole:
        name, model_type, values = "ViTMAEForPreTraining", "vit_mae", _decoder(objective, missing)
        state = objective.state_dict()
    elif _needs_data2vec(traits):
        name, model_type, values = "Data2VecVisionModel", "data2vec-vision", _of_data2vec(traits)
    else:
        name, model_type, values = "ViTModel", "vit", {"qkv_bias": True}
    if head is not None:
        if objective.backbone.global_pool == "avg" and not traits.norm_after_pooling:
            raise ConfigError(f"objective.pool: mean of normalised tokens is what {SIDE} has no model for")
        name = name.replace("Model", "ForImageClassification")
        values |= _labels(classes if len(classes) == head.out_features else (), head.out_features)
        values |= OF_TAGS if of_tags else {}
        state |= tensors_of(head)
    prefix = "" if name.endswith("Model") else PREFIXES[model_type]
    save_tensors(folder / WEIGHTS, _renamed(state, prefix, key_bias=model_type != "data2vec-vision"))
    save_json(
        folder / CONFIG,
        {"architectures": [name], "model_type": model_type, **_sizes(objective.backbone, traits), **values}
        | {"dtype": "float32"},
    )
    save_json(folder / "preprocessor_config.json", _preprocessing(images))
    return _usage(name, of_tags)


def _refuse(vit: Backbone, traits: Traits, images: Preprocessing) -> None:
    """Raises an error that says what none of transformers' models computes."""
    oblong = images.size[0] != images.size[1]
    reasons = {
        EVA: traits.eva,
        "backbone.norm: post": traits.post_norm,
        f"backbone.registers: {traits.registers}": traits.registers > 0,
        "backbone.class_token: false": not traits.class_token,
        f"backbone.patch: {list(traits.patch)}": traits.patch[0] != traits.patch[1],
        "an activation other than the exact GELU": not traits.exact_gelu,
        f"a relative_bias on images of {list(images.size)}": traits.relative_bias != "none" and oblong,
        f"layer_scale or pool: mean, with positions, on images of {list(images.size)}": (
            oblong and traits.absolute_positions and _needs_data2vec(traits)
        ),
        "the norm before the first block": traits.norm_before_blocks,
        "positions for patches alone": traits.absolute_positions and vit.no_embed_class,
    }
    refuse(reasons, SIDE)


def _needs_data2vec(traits: Traits) -> bool:
    """Returns whether the encoder has a part that ViT lacks and Data2VecVision has."""
    relative = traits.relative_bias != "none"
    return traits.layer_scale is not None or relative or traits.norm_after_pooling or not traits.absolute_positions


def _sizes(vit: Backbone, traits: Traits) -> dict[str, Any]:
    height, width = (side * traits.patch[0] for side in grid(vit))
    return {
        "hidden_size": traits.width,
        "num_hidden_layers": traits.depth,
        "num_attention_heads": traits.heads,
        "intermediate_size": traits.mlp_width,
        "layer_norm_eps": traits.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": traits.patch[0],
        "num_channels": vit.patch_embed.proj.in_channels,
    }


def _of_data2vec(traits: Traits) -> dict[str, Any]:
    return {
        "use_absolute_position_embeddings": traits.absolute_positions,
        "use_shared_relative_position_bias": traits.relative_bias == "shared",
        "use_relative_position_bias": traits.relative_bias == "per_block",
        "layer_scale_init_value": traits.layer_scale or 0.0,  # 0: there is none
        "use_mean_pooling": traits.norm_after_pooling,
        "drop_path_rate": 0.0,
    }


def _decoder(objective: Objective, missing: Collection[str]) -> dict[str, Any]:
    """Returns the settings of MAE's decoder and loss; other methods have no whole in transformers."""
    if not isinstance(objective, mae.Objective) or missing:
        what = f"the file that it came from had no '{next(iter(missing))}'" if missing else "its method is not mae"
        raise ConfigError(f"--whole: there is no ViTMAE to write, since {what}; export the encoder, without --whole")
    if _needs_data2vec(Traits.of(objective.backbone)):
        raise ConfigError("--whole: layer scale, relative bias or no positions are what ViTMAE lacks; leave it out")
    rows, columns = grid(objective.backbone)
    if rows != columns:
        raise ConfigError(f"data.size: a grid of {rows}x{columns} patches is not square, as ViTMAE's loss needs it")
    decoder = objective.config.decoder
    return {
        "qkv_bias": True,
        "mask_ratio": objective.visible.now,
        "norm_pix_loss": objective.config.target == "pixels_norm",
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_intermediate_size": 4 * decoder.width,
    }


def _renamed(state: dict[str, Tensor], prefix: str, key_bias: bool) -> dict[str, Tensor]:
    """Returns weights under their names, with the prefix that models give to their encoder."""
    split = split_projections(state, ["weight", "bias"], key_bias)
    theirs = NAMES.export(split, SIDE)
    return {
        name if name.startswith(("decoder.", "classifier.")) else prefix + name: tensor
        for name, tensor in theirs.items()
    }


def _labels(classes: Sequence[str], count: int) -> dict[str, Any]:
    names = classes or [f"LABEL_{number}" for number in range(count)]
    return {
        "num_labels": count,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _preprocessing(images: Preprocessing) -> dict[str, Any]:
    """Returns the settings of their image processor, which takes the centre of squares only."""
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


def _usage(name: str, of_tags: bool) -> str:
    """Returns the call that loads the folder, and the one that gets an answer for `images` (PIL, or uint8 tensors)."""
    options = ", add_pooling_layer=False" if name.endswith("Model") else ""
    answer = "outputs = model(**inputs)  # loss, logits and mask; other patches are hidden at each call"
    if name.endswith("Model"):
        answer = "features = model(**inputs).last_hidden_state[:, 0]  # the class token, one vector per image"
    elif name.endswith("Classification"):
        answer = "scores = model(**inputs).logits"
        if of_tags:
            answer = "likely = model(**inputs).logits.sigmoid()  # how likely an image has each tag of id2label"
    return (
        f"from transformers import AutoImageProcessor, {name}\n\n"
        f'model = {name}.from_pretrained("FOLDER"{options})  # or, uploaded: "OWNER/NAME"\n'
        'processor = AutoImageProcessor.from_pretrained("FOLDER")\n'
        'inputs = processor(images, return_tensors="pt")  # a list of PIL images, or of uint8 tensors\n'
        f"{answer}"
    )
