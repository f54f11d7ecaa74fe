"""The initial weights that the official recipes start from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

STD = 0.02
_PATCHES = "patch_embed.proj"
_TOKENS = frozenset({"cls_token", "reg_token", "mask_token"})


def initialise(module: nn.Module) -> None:
    """Draws MAE's: Xavier-uniform matrices (the patch embedding too), zero biases of matrices, N(0, .02) tokens."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            _clear_bias(child)
        elif name.endswith(_PATCHES):
            _draw_flat(child)
    for parameter in _named(module, _TOKENS | {"pos_embed"}):
        nn.init.normal_(parameter, std=STD)


def initialise_normal(module: nn.Module) -> None:
    """Draws I-JEPA's and MaskFeat's: N(0, .02) matrices, patch embedding and tokens, zero biases."""
    _initialise_by(module, lambda tensor: nn.init.normal_(tensor, std=STD))


def initialise_truncated(module: nn.Module) -> None:
    """Draws BEiT's, from which SimMIM and data2vec start: as N(0, .02) up to one deviation, less where a block adds."""
    _initialise_by(module, draw_truncated)
    blocks: Any = getattr(module, "blocks", ())
    with torch.no_grad():
        for layer, block in enumerate(blocks, start=1):
            for added in (block.attn.proj, block.mlp.fc2):
                added.weight.div_((2 * layer) ** 0.5)


def initialise_bert(module: nn.Module) -> None:
    """Draws data2vec 2's: N(0, .02) matrices, a Xavier-uniform patch embedding (its bias is 0 here), N(0, 1) tokens."""
    initialise_normal(module)
    _draw_flat(module.get_submodule(_PATCHES))
    for parameter in _named(module, _TOKENS):
        nn.init.normal_(parameter)


INITIAL = {
    "xavier": initialise,
    "truncated": initialise_truncated,
    "normal": initialise_normal,
    "bert": initialise_bert,
}


def draw_truncated(tensor: Tensor) -> None:
    """Draws from N(0, .02) what lies within one deviation; the deviation of what is drawn is .0108.

    It is not left to torch, whose `trunc_normal_` draws other numbers in version 2.11 than in later ones.
    """
    if tensor.is_meta:  # which holds no numbers
        return
    with torch.no_grad():
        tensor.normal_(std=STD)
        while (outside := tensor.abs() > STD).any():
            tensor.copy_(torch.where(outside, torch.empty_like(tensor).normal_(std=STD), tensor))


def _initialise_by(module: nn.Module, draw: Callable[[Tensor], object]) -> None:
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Conv2d):
            draw(child.weight)
            _clear_bias(child)
    for parameter in _named(module, _TOKENS | {"pos_embed"}):
        draw(parameter)


def _draw_flat(patches: nn.Module) -> None:
    """Draws the patch embedding as a matrix whose columns are the pixels of a patch."""
    assert isinstance(patches, nn.Conv2d)
    nn.init.xavier_uniform_(patches.weight.view(patches.weight.shape[0], -1))


def _clear_bias(layer: nn.Linear | nn.Conv2d) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _named(module: nn.Module, names: frozenset[str]) -> Iterator[nn.Parameter]:
    return (parameter for name, parameter in module.named_parameters() if name.rpartition(".")[2] in names)
