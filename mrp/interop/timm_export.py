"""A folder that timm loads with its own call: its VisionTransformer, Eva, or Beit where there is a relative bias."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.models import create_model
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mrp.config import ConfigError
from mrp.interop.folders import CONFIG, OF_TAGS, WEIGHTS, Preprocessing, save_json, save_tensors
from mrp.interop.heads import tensors_of
from mrp.interop.names import NameTable, split_projections
from mrp.interop.official import CLASSIFY
from mrp.interop.timm import EPS
from mrp.interop.traits import Traits, refuse
from mrp.interop.weights import BACKBONE
from mrp.models.vit import Backbone, Eva, grid, norm_eps

_SIDE = "timm"
_BEIT = NameTable(CLASSIFY)
# The architecture whose arguments are replaced: any of the same class would do, one of the same size reads best.
_OF_TRAINING = {"attn_drop_rate"}
_ARCHITECTURES = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 1024: "vit_large_patch16_224"}


def write(
    folder: Path,
    vit: Backbone,
    head: nn.Linear | None,
    images: Preprocessing,
    classes: Sequence[str] = (),
    of_tags: bool = False,
) -> str:
    """Writes config.json and model.safetensors in timm's hub format, and returns how to load them.

    timm itself does not read whether the head tells tags; import does.
    """
    model, architecture, arguments = build(vit, head)
    cropped = images.crop is not None
    save_tensors(folder / WEIGHTS, model.state_dict())
    save_json(
        folder / CONFIG,
        {
            "architecture": architecture,
            "num_classes": model.num_classes,
            "num_features": model.num_features,
            "global_pool": model.global_pool,
            "model_args": arguments,
            **({"label_names": list(classes)} if classes and len(classes) == model.num_classes else {}),
            **(OF_TAGS if of_tags and head is not None else {}),
            "pretrained_cfg": {
                "tag": "mrp",
                "input_size": [images.channels, *images.size],
                "fixed_input_size": True,
                "interpolation": "bicubic",
                "crop_pct": images.crop if cropped else 1.0,
                "crop_mode": "center" if cropped else "squash",
                "mean": list(images.mean),
                "std": list(images.std),
                "num_classes": model.num_classes,
                "first_conv": "patch_embed.proj",
                "classifier": "head",
            },
        },
    )
    listed = "".join(f",\n    {key}={value!r}" for key, value in arguments.items())
    return (
        "import timm\n\n"
        'model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or, uploaded: "hf-hub:OWNER/NAME"\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n\n"
        "# The same from the file of weights alone:\n"
        f'model = timm.create_model(\n    "{architecture}",\n    checkpoint_path="FOLDER/{WEIGHTS}"{listed},\n)'
    )


def build(vit: Backbone, head: nn.Linear | None = None) -> tuple[Any, str, dict[str, Any]]:
    """Returns timm's model with these weights, and the architecture and arguments that make timm build it again."""
    if isinstance(vit, Eva):
        return _build_eva(vit, head)
    traits = Traits.of(vit)
    _refuse(vit, traits)
    state = {BACKBONE + name: tensor for name, tensor in vit.state_dict().items()} | tensors_of(head)
    arguments: dict[str, Any] = {
        "img_size": tuple(count * side for count, side in zip(grid(vit), traits.patch, strict=True)),
        "patch_size": traits.patch,
        "in_chans": vit.patch_embed.proj.in_channels,
        "num_classes": 0 if head is None else head.out_features,
        "embed_dim": traits.width,
        "depth": traits.depth,
        "num_heads": traits.heads,
        "mlp_ratio": traits.mlp_width / traits.width,
        "global_pool": vit.global_pool,
    }
    if traits.relative_bias != "none":
        arguments |= _of_beit(vit, traits)
        architecture = "beit_large_patch16_224" if traits.width == 1024 else "beit_base_patch16_224"
        model: VisionTransformer | Beit = Beit(**arguments)
        state = _BEIT.export(split_projections(state, ["bias"], key_bias=False), _SIDE)
    else:
        arguments |= _of_vision_transformer(vit, traits)
        architecture = _ARCHITECTURES.get(traits.width, "vit_base_patch16_224")
        model = VisionTransformer(**arguments)
        state = {name.removeprefix(BACKBONE): tensor for name, tensor in state.items()}
    return _filled(model, state), architecture, arguments


def _build_eva(vit: Eva, head: nn.Linear | None) -> tuple[Any, str, dict[str, Any]]:
    """Returns the model that its name builds, whose norms may stand elsewhere after training."""
    arguments = {key: value for key, value in vit.arguments.items() if key not in _OF_TRAINING} | {
        "num_classes": 0 if head is None else head.out_features,
        "global_pool": vit.global_pool,
        "use_fc_norm": not isinstance(vit.fc_norm, nn.Identity),
        "use_post_transformer_norm": not isinstance(vit.norm, nn.Identity),
    }
    model: Any = create_model(vit.name, **arguments)
    refuse({f"backbone.norm_eps: {norm_eps(vit)}": norm_eps(vit) != norm_eps(model)}, _SIDE)
    return _filled(model, vit.state_dict() | tensors_of(head)), vit.name, arguments


def _filled(model: nn.Module, state: dict[str, Any]) -> nn.Module:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(f"this backbone has parts that its export to timm does not know: {error}") from None
    return model.eval()


def _of_vision_transformer(vit: VisionTransformer, traits: Traits) -> dict[str, Any]:
    return {
        "class_token": traits.class_token,
        "reg_tokens": traits.registers,
        "no_embed_class": vit.no_embed_class,
        "pos_embed": "learn" if traits.absolute_positions else "none",
        "fc_norm": traits.norm_after_pooling,
        "init_values": traits.layer_scale,
    }


def _refuse(vit: VisionTransformer, traits: Traits) -> None:
    """Raises an error that says what timm's models lack."""
    relative = traits.relative_bias != "none"
    eps = next((norm.eps for norm in vit.modules() if isinstance(norm, nn.LayerNorm) and norm.eps != EPS), EPS)
    reasons = {
        "backbone.norm: post": traits.post_norm,
        f"backbone.norm_eps: {eps}": eps != EPS,
        "an activation other than the exact GELU": not traits.exact_gelu,
        f"backbone.registers: {traits.registers} with a relative_bias": relative and traits.registers > 0,
        "backbone.class_token: false with a relative_bias": relative and not traits.class_token,
    }
    refuse(reasons, _SIDE)


def _of_beit(vit: VisionTransformer, traits: Traits) -> dict[str, Any]:
    arguments = {
        "use_shared_rel_pos_bias": traits.relative_bias == "shared",
        "use_rel_pos_bias": traits.relative_bias == "per_block",
        "use_abs_pos_emb": traits.absolute_positions,
        "init_values": traits.layer_scale or 0.0,  # None would be its own default
    }
    if traits.norm_after_pooling != (vit.global_pool == "avg"):
        arguments["use_fc_norm"] = traits.norm_after_pooling
    return arguments
