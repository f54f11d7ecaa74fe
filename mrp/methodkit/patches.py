"""Images as rows of patches, and back."""

from __future__ import annotations

import torch
from einops import rearrange
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


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of each patch, by which MAE normalises its targets (epsilon 1e-6)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()
