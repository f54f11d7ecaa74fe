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

    name: str | None = None  # of a model of timm, in place of width, depth, heads and patch
    width: int | None = Field(None, gt=0)  # numbers per token
    depth: int | None = Field(None, gt=0)  # blocks
    heads: int | None = Field(None, gt=0)  # attention heads per block
    patch: Side | tuple[Side, Side] | None = None  # pixels on each side of a patch, or height and width
    mlp_ratio: float | None = Field(None, gt=0)  # null: the name's, or 4
    # Of the patches, beside any rotary ones: fixed sines and cosines, learned, or none; or those of a name of timm's
    # module `eva`.
    positions: Literal["sincos", "learned", "none"] = "sincos"
    class_token: bool = True  # or the name's
    registers: int = Field(0, ge=0)  # or the name's
    layer_scale: float | None = Field(None, gt=0)  # null: the name's, or none
    drop_path: float = Field(0.0, ge=0, lt=1)  # of the last block; rates grow evenly from 0 at the first
    attention_dropout: float = Field(0.0, ge=0, lt=1)  # the share of attention weights that is dropped
    # A learned bias per pair of patches: one for all blocks, or one per block.
    relative_bias: Literal["none", "shared", "per_block"] = "none"
    qkv_bias: Literal["all", "query_value"] = "all"  # which of query, key and value have a bias
    norm_eps: float | None = Field(None, gt=0)  # null: the name's, or 1e-6
    # Initial weights: as MAE's (xavier), BEiT's (truncated), I-JEPA's (normal), or data2vec 2's (bert).
    init: Literal["xavier", "truncated", "normal", "bert"] = "xavier"
    norm: Literal["pre", "post"] = "pre"  # post: data2vec 2's blocks, with a norm before the first and none at the end

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
