"""The `backbone:` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mrp.config import ConfigError, Node

_SIZE = ("width", "depth", "heads", "patch")

Side = Annotated[int, Field(gt=0)]


class Config(Node):
    """The Vision Transformer: a model of timm by its name, or one of any width, depth, heads and patch.

    The size of the images is that of `data.size`. With a name, keys that are not given follow the name.
    """

    name: str | None = None  # the name of a model of timm, in place of width, depth, heads and patch
    width: int | None = Field(None, gt=0)  # numbers per token
    depth: int | None = Field(None, gt=0)  # how many blocks
    heads: int | None = Field(None, gt=0)  # attention heads per block
    patch: Side | tuple[Side, Side] | None = None  # pixels on each side of a patch, or height and width
    # The hidden width of an MLP, as a multiple of the width; null: as the name says, or 4.
    mlp_ratio: float | None = Field(None, gt=0)
    # Positions of the patches, beside any rotary ones: fixed sines and cosines, learned, or none. By default those of
    # the name, where it is one of timm's module `eva`.
    positions: Literal["sincos", "learned", "none"] = "sincos"
    class_token: bool = True  # whether there is a class token; with a name, by default as it says
    registers: int = Field(0, ge=0)  # how many register tokens; with a name, by default as it says
    layer_scale: float | None = Field(None, gt=0)  # initial LayerScale; null: as the name says, or none
    # Stochastic depth: the rate of the last block; rates grow evenly from 0 at the first.
    drop_path: float = Field(0.0, ge=0, lt=1)
    attention_dropout: float = Field(0.0, ge=0, lt=1)  # the share of attention weights that is dropped
    # A learned bias per pair of patches: one for all blocks, or one per block.
    relative_bias: Literal["none", "shared", "per_block"] = "none"
    qkv_bias: Literal["all", "query_value"] = "all"  # which of query, key and value have a bias
    norm_eps: float | None = Field(None, gt=0)  # epsilon of the norms; null: as the name says, or 1e-6
    # Initial weights as in MAE (xavier), BEiT (truncated), I-JEPA (normal) or data2vec 2 (bert).
    init: Literal["xavier", "truncated", "normal", "bert"] = "xavier"
    # post: the blocks of data2vec 2, with a norm before the first block and none after the last.
    norm: Literal["pre", "post"] = "pre"

    @model_validator(mode="before")
    @classmethod
    def _follow_name(cls, values: Any) -> Any:
        """Takes from the name what prefix tokens and positions there are, unless the section says it."""
        name = values.get("name") if isinstance(values, Mapping) else None
        if not isinstance(name, str):
            return values
        from mrp.models.named import look_up  # loads timm, and with it torch

        return {**look_up(name).followed, **values}

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if self.name is not None:
            given = [key for key in _SIZE[:3] if getattr(self, key) is not None]
            if given:
                raise ConfigError(
                    f"name: {self.name} already says its {', '.join(given)}; remove the name or those keys"
                )
            return self
        missing = [key for key in _SIZE if getattr(self, key) is None]
        if missing:
            raise ConfigError(f"give a name (such as vit_base_patch16_224), or also: {', '.join(missing)}")
        assert self.width is not None
        assert self.heads is not None
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not a multiple of heads {self.heads}; change one of them")
        return self
