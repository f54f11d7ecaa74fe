"""Images as rows of patches, and back."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor

# The order of a patch's numbers: MAE's code puts the channels of a pixel side by side, SimMIM's each channel apart.
_ORDER = {False: "(p q c)", True: "(c p q)"}


def patchify(images: Tensor, patch: tuple[int, int], channels_first: bool = False) -> Tensor:
    """Cuts images into patches of `patch` rows and columns and returns each as one flat row."""
    pattern = f"b c (h p) (w q) -> b (h w) {_ORDER[channels_first]}"
    return rearrange(images, pattern, p=patch[0], q=patch[1])  # B N PQC


def unpatchify(patches: Tensor, patch: tuple[int, int], grid: tuple[int, int], channels_first: bool = False) -> Tensor:
    """Returns the images that `patchify` cut into these patches; `grid` is the number of their rows and columns."""
    pattern = f"b (h w) {_ORDER[channels_first]} -> b c (h p) (w q)"
    return rearrange(patches, pattern, h=grid[0], w=grid[1], p=patch[0], q=patch[1])  # B C H W


def pixel_weights(present: Tensor | None, patch: tuple[int, int], channels_first: bool = False) -> Tensor | None:
    """Returns the weight of each number of a patch, 0 in the channels that an image lacks and 1 on average.

    `present` is that of the batch; where it is None no image lacks any, and there are no weights. A patch may
    have other numbers than pixels, as many in each channel.
    """
    if present is None:
        return None
    weights = present / present.float().mean(1, keepdim=True)  # B C
    pattern = f"b c -> b 1 {_ORDER[channels_first]}"
    return repeat(weights, pattern, p=patch[0], q=patch[1])  # B 1 PQC


def patch_statistics(patches: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of each patch, by which MAE normalises its targets (epsilon 1e-6).

    With the weights of pixels they are those of the channels that an image has.
    """
    if weights is None:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    else:
        count = (weights > 0).sum(-1, keepdim=True)
        mean = (patches * weights).mean(-1, keepdim=True)
        variance = ((patches - mean).square() * weights).mean(-1, keepdim=True) * count / (count - 1).clamp(min=1)
    return mean, (variance + 1e-6).sqrt()
