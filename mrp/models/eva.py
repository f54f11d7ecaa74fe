"""timm's Eva as a backbone: Vision Transformers with rotary positions or gated MLPs (EVA, EVA-02, DINOv3, PE, ...).

timm builds the model, and its parameters keep timm's names. timm lets nobody choose the class of its blocks, so those
of a built model are exchanged: that changes what they compute in training, and no weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from timm.models import eva as timm
from torch import Tensor

from mrp.models.blocks import KeyedBlock


class Eva(timm.Eva):
    """timm's Eva, with what timm's VisionTransformer says of itself too."""

    name: str  # of the model in timm
    arguments: dict[str, Any]  # with which timm has built it

    @property
    def has_class_token(self) -> bool:
        """Whether the first prefix token is a class token."""
        return self.cls_token is not None

    @property
    def num_reg_tokens(self) -> int:
        """The number of registers, which come after the class token."""
        return self.num_prefix_tokens - self.has_class_token

    def rotations(self) -> Sequence[Tensor | None]:
        """Returns, per block, the sines and cosines by which the queries and keys of each patch are turned.

        They have the shape N 2d, or heads N 2d; None stands for a model without rotary positions.
        """
        if self.rope is None:
            return [None] * len(self.blocks)
        rope: Any = self.rope
        whole: Tensor = rope.get_embed() if hasattr(rope, "feat_shape") else rope.get_embed(self.patch_embed.grid_size)
        return list(whole) if self.rope_mixed else [whole] * len(self.blocks)


class EvaBlock(KeyedBlock, timm.EvaBlock):  # type: ignore[misc]  # rotations are a keyword of ours
    """timm's block, with norms at the beginning of the branches."""

    def _attended(self, x: Tensor, attn_mask: Tensor | None, rope: Tensor | None, places: Tensor | None) -> Any:
        branch = self.attn(self.norm1(x), rope=at(rope, places), attn_mask=attn_mask)
        return branch if self.gamma_1 is None else self.gamma_1 * branch

    def _transformed(self, x: Tensor) -> Any:
        branch = self.mlp(self.norm2(x))
        return branch if self.gamma_2 is None else self.gamma_2 * branch


class EvaPostNormBlock(KeyedBlock, timm.EvaBlockPostNorm):  # type: ignore[misc]
    """The same with norms at the end of the branches."""

    def _attended(self, x: Tensor, attn_mask: Tensor | None, rope: Tensor | None, places: Tensor | None) -> Any:
        return self.norm1(self.attn(x, rope=at(rope, places), attn_mask=attn_mask))

    def _transformed(self, x: Tensor) -> Any:
        return self.norm2(self.mlp(x))


_BLOCKS = {timm.EvaBlock: EvaBlock, timm.EvaBlockPostNorm: EvaPostNormBlock}


def adopted(model: Any, name: str, arguments: Mapping[str, Any]) -> Eva:
    """Returns timm's model, with the same weights and of the classes above."""
    model.__class__ = Eva
    model.name, model.arguments = name, dict(arguments)
    for block in model.blocks:
        block.__class__ = _BLOCKS[type(block)]
    if model.rope is not None:  # Sapiens 2's moves all places of a batch at random in training, by no sample's key
        model.rope.aug_active = False
    return cast(Eva, model)


def at(rope: Tensor | None, places: Tensor | None) -> Tensor | None:
    """Returns the rotations of the patches at these places (B V) as attention takes them: B 1|heads V 2d."""
    if rope is None or places is None:
        return rope
    heads = rope if rope.ndim == 3 else rope[None]
    return heads[:, places].transpose(0, 1)
