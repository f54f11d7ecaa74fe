"""Parts of a backbone that official recipes need and timm's ViT lacks; parameters have timm's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.models import vision_transformer as timm
from torch import Tensor, nn
from torch.nn import functional

from mrp.models.masking import fold

_PATHS = 0x70A7  # sets the hashes of stochastic depth apart from those of masks


class StochasticDepth(nn.Module):
    """Chooses which residual branches a sample skips in training (Huang et al., 2016).

    The choice depends on the sample's key, the block and the branch only, so it is the same on any number of processes
    and whatever else is in the batch. Rates are tensors, which torch.compile does not specialise on: all blocks share
    one graph.
    """

    layers: Tensor
    branches: Tensor
    thresholds: Tensor
    scales: Tensor

    def __init__(self, rate: float, depth: int) -> None:
        """The last block's branches are skipped at this rate; rates grow evenly from 0 at the first block."""
        super().__init__()
        rates: list[float] = torch.linspace(0, rate, depth, device="cpu").tolist()  # as timm computes them
        scales = torch.stack([torch.ones(()) / (1 - rate) for rate in rates])  # keeps the mean where others are skipped
        self.register_buffer("layers", torch.arange(depth)[:, None, None], persistent=False)
        self.register_buffer("branches", torch.arange(2)[:, None], persistent=False)
        thresholds = torch.tensor([int(rate * 2**32) for rate in rates])
        self.register_buffer("thresholds", thresholds[:, None, None], persistent=False)
        self.register_buffer("scales", scales[:, None, None], persistent=False)

    def forward(self, keys: Tensor) -> Tensor:
        """Returns the factor of each sample's two branches in every block: zero where the branch is skipped."""
        kept = fold(keys, _PATHS, self.layers, self.branches) >= self.thresholds
        return kept * self.scales  # L 2 B


class KeyedBlock(nn.Module):
    """What mrp's own blocks have in common: stochastic depth by key, and that they can say what their MLP has added."""

    # What each kind of block has of its own: what its branch of attention adds, and what that of its MLP does.
    _attended: Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None], Any]
    _transformed: Callable[[Tensor], Any]

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        rope: Tensor | None = None,
        places: Tensor | None = None,
        factors: Tensor | None = None,
        added: bool = False,
    ) -> Any:
        """Returns the tokens, or two tensors where `added` asks for it: the tokens, and what the MLP has added to them.

        `attn_mask` is added to the scores (timm's `is_causal` is unused), `rope` are the rotations of all patches,
        `places` those of the tokens among all patches, and `factors` a block's part of what `StochasticDepth` returns.
        """
        x = self._joined(0, x, self._attended(x, attn_mask, rope, places), factors)
        last = self._transformed(x)
        x = self._joined(1, x, last, factors)
        return (x, last) if added else x

    def _joined(self, index: int, x: Tensor, branch: Tensor, factors: Tensor | None) -> Any:
        """Returns the tokens with what a residual branch adds: nothing for the samples that skip it."""
        if factors is not None and self.training:
            branch = branch * factors[index].to(branch.dtype)[:, None, None]
        return x + branch


class Block(KeyedBlock, timm.Block):
    """timm's block, norms at the beginning of its branches; it may have a relative position bias of its own."""

    # The backbone's bias, which `encode` computes once for all blocks and timm's own forward does not know. It stands
    # in a tuple because a module would be a part of every block, and be saved with each.
    shared_bias: tuple[nn.Module | None] = (None,)

    def _attended(self, x: Tensor, attn_mask: Tensor | None, rope: Tensor | None, places: Tensor | None) -> Any:
        # The bias is computed in here because sharded parameters (FSDP2) exist only while their block runs.
        bias: Any = getattr(self, "rel_pos_bias", None)
        if bias is None and attn_mask is None:
            bias = self.shared_bias[0]
        return self.ls1(self.attn(self._entering(x), attn_mask=attn_mask if bias is None else bias(places)))

    def _entering(self, x: Tensor) -> Any:
        return self.norm1(x)

    def _transformed(self, x: Tensor) -> Any:
        return self.ls2(self.mlp(self.norm2(x)))


class PostNormBlock(Block):
    """The original transformer's order, each norm after its residual: data2vec 2's block (Baevski et al., 2023)."""

    def _entering(self, x: Tensor) -> Any:
        return x

    def _transformed(self, x: Tensor) -> Any:
        return self.ls2(self.mlp(x))

    def _joined(self, index: int, x: Tensor, branch: Tensor, factors: Tensor | None) -> Any:
        return (self.norm2 if index else self.norm1)(super()._joined(index, x, branch, factors))


class QueryValueLinear(nn.Linear):
    """A projection to queries, keys and values whose keys have no bias (BEiT's); its entries in `bias` stay zero."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns queries, keys and values side by side."""
        query, key, value = self.bias.chunk(3)
        return functional.linear(input, self.weight, torch.cat([query, torch.zeros_like(key), value]))
