"""A trained backbone as a model of timm's own, where timm has one that computes the same."""

from __future__ import annotations

from typing import Any, TypeVar

from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mrp.config import ConfigError
from mrp.models.blocks import PostNormBlock
from mrp.models.vit import grid

M = TypeVar("M", bound=nn.Module)
_EPS = 1e-6
_TABLE = "relative_position_bias_table"


def export(vit: VisionTransformer) -> VisionTransformer | Beit:
    """The same weights in timm's VisionTransformer, or, with a relative position bias, in its Beit."""
    blocks: Any = vit.blocks
    if isinstance(blocks[0], PostNormBlock):
        raise ConfigError("backbone.norm: post is what timm has no model for, so it cannot be exported to timm")
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm) and module.eps != _EPS:
            raise ConfigError(f"backbone.name: its norms have eps {module.eps}, which timm's model would not have")
    if type(blocks[0].mlp.act) is not nn.GELU or blocks[0].mlp.act.approximate != "none":
        raise ConfigError("backbone.name: its activation is not exact GELU, which timm's model would have")
    state = {name: tensor.detach().clone() for name, tensor in vit.state_dict().items()}
    patch = vit.patch_embed
    options: dict[str, Any] = {
        "img_size": tuple(size * side for size, side in zip(grid(vit), patch.patch_size, strict=True)),
        "patch_size": patch.patch_size,
        "in_chans": patch.proj.in_channels,
        "num_classes": 0,
        "embed_dim": vit.embed_dim,
        "depth": len(blocks),
        "num_heads": blocks[0].attn.num_heads,
        "mlp_ratio": blocks[0].mlp.fc1.out_features / vit.embed_dim,
        "init_values": getattr(blocks[0].ls1, "init_values", None),
        "global_pool": vit.global_pool,
    }
    shared, own = hasattr(vit, "rel_pos_bias"), hasattr(blocks[0], "rel_pos_bias")
    if shared or own:
        return _beit(vit, options | {"use_shared_rel_pos_bias": shared, "use_rel_pos_bias": own}, state)
    options |= {
        "class_token": vit.has_class_token,
        "reg_tokens": vit.num_reg_tokens,
        "no_embed_class": vit.no_embed_class,
        "pos_embed": "none" if vit.pos_embed is None else "learn",
        "fc_norm": isinstance(vit.fc_norm, nn.LayerNorm),
    }
    return _loaded(VisionTransformer(**options), state)


def _beit(vit: VisionTransformer, options: dict[str, Any], state: dict[str, Tensor]) -> Beit:
    if not vit.has_class_token or vit.num_reg_tokens:
        wrong = f"registers: {vit.num_reg_tokens}" if vit.num_reg_tokens else "class_token: false"
        raise ConfigError(f"backbone.{wrong} with a relative_bias is what timm has no model for")
    options["use_abs_pos_emb"] = vit.pos_embed is not None
    after_pooling = isinstance(vit.fc_norm, nn.LayerNorm)
    if after_pooling != (vit.global_pool == "avg"):
        options["use_fc_norm"] = after_pooling
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("attn.qkv.bias"):  # a bias of keys adds the same to all scores of a query: Beit has none
            query, _, value = tensor.chunk(3)
            place = name.removesuffix("qkv.bias")
            renamed |= {f"{place}q_bias": query, f"{place}v_bias": value}
        elif name.startswith("blocks."):
            name = name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
            renamed[name.replace(f"rel_pos_bias.{_TABLE}", f"attn.{_TABLE}")] = tensor
        else:
            renamed[name] = tensor
    return _loaded(Beit(**options), renamed)


def _loaded(model: M, state: dict[str, Tensor]) -> M:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(f"this backbone has parts that its export to timm does not know: {error}") from None
    return model.eval()
