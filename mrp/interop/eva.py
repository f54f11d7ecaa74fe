"""State dicts of timm's module `eva`: their names are mrp's, and do not tell which model it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from timm.models import get_pretrained_cfg
from timm.models.eva import Eva
from torch import Tensor

from mrp.config import ConfigError
from mrp.interop.weights import BACKBONE

_COMPUTED = r"rope\.(?!freqs$).*|.*\.k_bias"  # tables that older versions of timm have saved
_UNMISTAKABLE = {"rope.freqs", "blocks.0.attn.q_proj.weight", "blocks.0.mlp.fc1_g.weight"}
_OF_METHODS = {"lm_head.weight", "mask_token", "decoder_embed.weight"}  # which no model of timm has
# Arguments of timm's constructor that follow from the weights or that a backbone's section can say.
_FOLLOWING = {"patch_size", "class_token", "num_reg_tokens", "use_abs_pos_emb", "use_fc_norm",
              "use_post_transformer_norm"}  # fmt: skip
_SAID = {"mlp_ratio": "mlp_ratio", "init_values": "layer_scale"}


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights as parts of an objective; a head stands beside the backbone."""
    return {
        name if name.startswith("head.") else BACKBONE + name: tensor
        for name, tensor in weights.items()
        if not re.fullmatch(_COMPUTED, name)
    }


def refuse_unnamed(weights: Mapping[str, Tensor]) -> None:
    """Raises an error where weights are those of such a model, and nothing says which one.

    Some have the names of a BEiT whose attention would lack its biases, and would be read as a model without positions,
    or with its norms at the beginning of its branches.
    """
    scaled, separate = "blocks.0.gamma_1" in weights, "blocks.0.attn.q_bias" in weights
    biased = any(name.endswith("relative_position_bias_table") for name in weights)
    masked = bool(_OF_METHODS & weights.keys())
    inner, outer = (weights.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    gated = inner is not None and outer is not None and inner.shape[0] == 2 * outer.shape[1]
    if (
        _UNMISTAKABLE & weights.keys()
        or gated
        or (scaled and ("blocks.0.attn.qkv.bias" in weights or not placed(weights)))
        or (separate and not (scaled or biased or masked))
    ):
        raise ConfigError(
            "holds a model of timm's module eva (rotary positions, a gated MLP or norms after it), and weights do not "
            "tell which; say it with backbone.name=NAME, for example vit_small_patch16_dinov3"
        )


def placed(weights: Mapping[str, Tensor]) -> bool:
    """Returns whether there are positions that belong to one grid of patches; rotary ones fit any."""
    return any(name.endswith(("pos_embed", "relative_position_bias_table")) for name in weights)


def usual(name: str, channels: int) -> dict[str, Any]:
    """Returns what timm says of the images of a model, for weights that do not tell their size."""
    images: Any = get_pretrained_cfg(name)
    statistics = {"mean": images.mean, "std": images.std} if channels == len(images.mean) else {}
    return {"size": tuple(images.input_size[1:])} | statistics


def section(model: Eva, architecture: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the backbone's section for what a config.json of timm says beside its weights."""
    if unknown := arguments.keys() - _FOLLOWING - _SAID.keys():
        raise ConfigError(
            f"config.json: model_args: {min(unknown)} differs from {architecture}, which is not read here"
        )
    if model.attn_pool is not None:
        raise ConfigError(f"config.json: {architecture} pools its tokens by attention, which no method here trains")
    return {"name": architecture} | {ours: arguments[theirs] for theirs, ours in _SAID.items() if theirs in arguments}
