"""Folders of transformers: ViTMAE, ViT and Data2VecVision, read without transformers being installed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from mrp.config import ConfigError, Node, Tree, build
from mrp.interop import untrusted
from mrp.interop.folders import OF_TAGS
from mrp.interop.names import NameTable, Pairs, join_projections
from mrp.interop.weights import ForeignWeights

Size = Annotated[int, Field(gt=0)]
_TABLE = "relative_position_bias.relative_position_bias_table"


def _transformer(blocks: str, ours: str) -> Pairs:
    """Returns the names inside the blocks of an encoder or decoder: theirs until transformers 4 (5 reads them too)."""
    return [
        *(
            (f"{blocks}.#.attention.attention.{projection}.*", f"{ours}blocks.#.attn.{projection}.*")
            for projection in ("query", "key", "value")
        ),
        (f"{blocks}.#.attention.attention.{_TABLE}", f"{ours}blocks.#.rel_pos_bias.relative_position_bias_table"),
        (f"{blocks}.#.attention.output.dense.*", f"{ours}blocks.#.attn.proj.*"),
        (f"{blocks}.#.layernorm_before.*", f"{ours}blocks.#.norm1.*"),
        (f"{blocks}.#.layernorm_after.*", f"{ours}blocks.#.norm2.*"),
        (f"{blocks}.#.intermediate.dense.*", f"{ours}blocks.#.mlp.fc1.*"),
        (f"{blocks}.#.output.dense.*", f"{ours}blocks.#.mlp.fc2.*"),
        (f"{blocks}.#.lambda_1", f"{ours}blocks.#.ls1.gamma"),
        (f"{blocks}.#.lambda_2", f"{ours}blocks.#.ls2.gamma"),
    ]


NAMES = NameTable(
    [
        ("embeddings.cls_token", "backbone.cls_token"),
        ("embeddings.position_embeddings", "backbone.pos_embed"),
        ("embeddings.patch_embeddings.projection.*", "backbone.patch_embed.proj.*"),
        ("embeddings.mask_token", "mask_token"),
        (f"encoder.{_TABLE}", "backbone.rel_pos_bias.relative_position_bias_table"),
        *_transformer("encoder.layer", "backbone."),
        ("layernorm.*", "backbone.norm.*"),
        ("pooler.layernorm.*", "backbone.fc_norm.*"),
        ("decoder.decoder_embed.*", "decoder.embed.*"),
        ("decoder.mask_token", "decoder.mask_token"),
        ("decoder.decoder_pos_embed", "decoder.positions"),
        *_transformer("decoder.decoder_layers", "decoder."),
        ("decoder.decoder_norm.*", "decoder.norm.*"),
        ("decoder.decoder_pred.*", "decoder.head.*"),
        ("classifier.*", "head.*"),
    ]
)
_NEWER = (  # names of transformers 5, and the older ones
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),  # so 5.23 saves it
    (r"^layers\.", "encoder.layer."),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)
PREFIXES = {"vit": "vit.", "vit_mae": "vit.", "data2vec-vision": "data2vec_vision."}  # of the encoder, by model_type
_IGNORED = r".*relative_position_index|pooler\.dense\..*"  # a table of offsets, and BERT's layer on the class token


class _Settings(Node):
    """What is read of config.json; the values are transformers' defaults."""

    hidden_act: Literal["gelu"] = "gelu"  # exact; others are not those of our backbone
    layer_norm_eps: float = Field(1e-12, gt=0, lt=1)
    num_attention_heads: int = Field(12, gt=0)
    decoder_num_attention_heads: int = Field(16, gt=0)
    image_size: Size | tuple[Size, Size] = 224
    mask_ratio: float = 0.75
    norm_pix_loss: bool = False


def load(folder: Path, config: Mapping[str, Any]) -> ForeignWeights:
    """Returns what a folder of transformers holds."""
    kind = config["model_type"]
    if kind not in PREFIXES:
        raise ConfigError(f"config.json: model_type '{kind}' is not known here; {', '.join(PREFIXES)} are")
    file = untrusted.weights_file(folder)
    read = {key: value for key, value in config.items() if key in _Settings.model_fields}
    settings = build(_Settings, Tree(read, {"": "config.json"}))
    tensors = _renamed(untrusted.state_dict(untrusted.read(file), file), PREFIXES[kind])
    if "backbone.blocks.0.attn.qkv.bias" not in tensors:
        raise ConfigError("config.json: qkv_bias false is what our backbone lacks")
    eps, size = settings.layer_norm_eps, settings.image_size
    backbone: dict[str, Any] = {"heads": settings.num_attention_heads, "norm_eps": None if eps == 1e-6 else eps}
    if kind == "data2vec-vision":
        backbone["qkv_bias"] = "query_value"
    objective: dict[str, Any] = {}
    if kind == "vit_mae":
        objective = {
            "mask_ratio": settings.mask_ratio,
            "target": "pixels_norm" if settings.norm_pix_loss else "pixels",
            "decoder": {"heads": settings.decoder_num_attention_heads},
        }
    if OF_TAGS.items() <= config.items():
        objective["loss"] = "tags"
    data = {"size": size if isinstance(size, tuple) else (size, size)} | _of_images(folder)
    classes = _names(config.get("id2label"))
    return ForeignWeights(file, _method(kind, tensors), tensors, backbone, objective, data, classes)


def _method(kind: str, tensors: Mapping[str, Tensor]) -> str:
    if "head.weight" in tensors or "backbone.fc_norm.weight" in tensors:
        return "classify"
    return "data2vec" if kind == "data2vec-vision" else "mae"


def _names(labels: Any) -> tuple[str, ...]:
    """Returns what the classes or tags of a head are called; none where one has none, or a made-up one."""
    if not isinstance(labels, Mapping):
        return ()
    names = tuple(str(labels.get(str(number), "")) for number in range(len(labels)))
    return () if any(re.fullmatch(r"(LABEL_\d+)?", name) for name in names) else names


def _of_images(folder: Path) -> dict[str, Any]:
    """Returns the statistics of the images, and what evaluation sees of one, where the folder says them."""
    try:
        images = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(images, dict):
        return {}
    mean, std, augment = images.get("image_mean"), images.get("image_std"), _augment(images)
    found = {"mean": mean, "std": std} if isinstance(mean, list) and isinstance(std, list) else {}
    return found | ({"augment": augment} if augment else {})


def _augment(images: Mapping[str, Any]) -> Any:
    """Returns `data.augment` where all of an image is seen, or of its shorter side; of other shares there is one."""
    size, crop, is_cropped = (images.get(key) for key in ("size", "crop_size", "do_center_crop"))
    if size is None or images.get("do_resize") is False:
        return None
    shorter = size.get("shortest_edge") if isinstance(size, Mapping) else None
    sides, cut = (list(one.values()) if isinstance(one, Mapping) else [one, one] for one in (size, crop))
    if shorter is None:  # height and width, or one number for both: the whole image is squeezed into them
        return "resize" if not is_cropped or cut == sides else None
    sides = cut
    is_whole = is_cropped and all(side == shorter for side in cut)
    return {"name": "crop", "whole_from": 1} if is_whole else None


def _renamed(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns weights under mrp's names; a name that is not known is an error, never dropped."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        plain = name.removeprefix(prefix)
        if re.fullmatch(_IGNORED, plain):
            continue
        for newer, older in _NEWER:
            plain = re.sub(newer, older, plain)
        ours = NAMES.ours(plain)
        if ours is None:
            raise ConfigError(f"'{name}' is no weight of ViTMAE, ViT or Data2VecVision as transformers saves them")
        renamed[ours] = tensor
    return join_projections(renamed)
