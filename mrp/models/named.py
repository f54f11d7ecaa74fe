"""What the name of one of timm's Vision Transformers says beyond its size."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from timm.models import create_model, is_model, list_models
from timm.models.eva import Eva
from timm.models.vision_transformer import Block
from torch import nn

from mrp.config import ConfigError, nearest

MODULES = ("vision_transformer", "eva")  # of timm: the models that can be built here
# Options that need blocks of mrp's own; of those, the blocks of timm's Eva have the first two.
_OF_USUAL_BLOCKS = ("drop_path", "init", "norm", "qkv_bias", "relative_bias")


class Named(NamedTuple):
    """The parts of a named model that its configuration does not repeat."""

    eva: bool  # whether it is a model of timm's module `eva`
    class_token: bool
    registers: int
    pool: str  # timm's word: token or avg
    positions: str  # of an Eva, those that it has beside rotary ones: learned or none
    rotary: str  # none, fixed, or learned: their frequencies
    width: int
    block: str  # the class of its blocks
    lacks: tuple[str, ...]  # the options that such blocks do not have

    @property
    def followed(self) -> dict[str, object]:
        """The options that follow the name, where a configuration does not say them."""
        values: dict[str, object] = {"class_token": self.class_token, "registers": self.registers}
        return values | ({"positions": self.positions} if self.eva else {})


def all_names() -> list[str]:
    """Returns the names of timm's that may build a backbone."""
    return [name for module in MODULES for name in list_models(module=module)]


@cache
def look_up(name: str) -> Named:
    """Builds the model without memory for its weights, if it can with one block, and reads what it has."""
    names = all_names()
    if name not in names:
        raise ConfigError(f"unknown backbone '{name}'{_reason(name, names)}")
    model: Any = _without_weights(name)
    if model.attn_pool is not None:
        raise ConfigError(f"{name} pools its tokens by attention, which no method here trains; take another backbone")
    block, eva = type(model.blocks[0]), isinstance(model, Eva)
    lacks = _OF_USUAL_BLOCKS[2:] if eva else () if block is Block else _OF_USUAL_BLOCKS
    registers = 0 if model.reg_token is None else model.reg_token.shape[1]
    positions = "none" if model.pos_embed is None else "learned"
    rope = getattr(model, "rope", None)
    return Named(
        eva=eva,
        class_token=model.cls_token is not None,
        registers=registers,
        pool=model.global_pool,
        positions=positions,
        rotary="none" if rope is None else "learned" if list(rope.parameters()) else "fixed",
        width=model.embed_dim,
        block=block.__name__,
        lacks=lacks,
    )


def _without_weights(name: str) -> nn.Module:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        try:
            return create_model(name, depth=1)
        except AssertionError:  # its blocks differ, so that their number cannot be changed
            return create_model(name)


def _reason(name: str, names: list[str]) -> str:
    if is_model(name):
        return f": timm has it, but only models of its modules {' and '.join(MODULES)} are built here"
    return nearest(name, names) or "; for example vit_base_patch16_224"
