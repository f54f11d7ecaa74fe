"""Which patches of which image are hidden: integer hashes of (key, draw, patch), the same on every device.

Everything is computed in int64 lanes that never exceed 63 bits: multipliers stay below 2**31 and each product is cut
back to 32 bits, because signed overflow is undefined in compiled CPU code. In a mask, True means hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def _mix(words: Tensor) -> Tensor:
    """A bijective 32-bit hash (xor-shift and multiply), on int64 tensors."""
    words = words ^ (words >> 16)
    words = (words * 0x7FEB352D) & _LOW
    words = words ^ (words >> 15)
    words = (words * 0x46AC12FD) & _LOW
    words = words ^ (words >> 16)
    words = (words * 0x4C957F2D) & _LOW
    return words ^ (words >> 15)


def fold(keys: Tensor, *parts: int | Tensor) -> Tensor:
    """32 random bits for each (63-bit key, part, ...), broadcast together, as int64."""
    state = _mix((keys & _LOW) ^ 0x1B56C4E9)
    state = _mix(state ^ (keys >> 32))
    for part in parts:
        state = _mix((state + 0x3C6EF372 + part) & _LOW)
    return state


def random_mask(keys: Tensor, num_patches: int, num_hidden: int, draw: int = 0) -> Tensor:
    """Hide exactly `num_hidden` patches of each image, every subset equally likely (MAE's masking)."""
    patch = torch.arange(num_patches, device=keys.device)
    order = (fold(keys[:, None], draw, patch) * num_patches + patch).argsort(
        dim=1
    )  # no ties: no dependence on the sort
    mask = torch.zeros(order.shape, dtype=torch.bool, device=keys.device)
    return mask.scatter(1, order[:, :num_hidden], True)


def visible_places(mask: Tensor, num_visible: int) -> Tensor:
    """Indices of the visible patches, ascending; `num_visible` is known beforehand, so shapes stay static."""
    patch = torch.arange(mask.shape[1], device=mask.device)
    return (mask.long() * mask.shape[1] + patch).argsort(dim=1)[:, :num_visible]  # B V


def gather_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """The tokens at these places of each image."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))  # B V D


def scatter_tokens(background: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
    """A copy of the background with these tokens written at their places."""
    return background.scatter(1, places[..., None].expand(-1, -1, tokens.shape[-1]), tokens)  # B N D
