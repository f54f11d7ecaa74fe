"""Erases rectangles of images, leaves out channels and mixes neighbours, on the device, in training.

What is erased or left out follows from the image's key, a mixture from (seed, step, place in the global batch);
partners are the images 2i and 2i + 1 of that. So nothing depends on the number of processes or on the micro-batch,
which is even.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mrp.batch import Batch
from mrp.models.masking import below, block_shapes, fold, keyed_noise, noise_table
from mrp.prepare.config import Mixing

_QUANTILES = 4096  # equally likely shares, one of which is drawn
_ERASE, _MIX, _DROP = 0xE7A5, 0x313C, 0xD20B  # keep these hashes different from each other and from those of masks
_AREA, _NARROWEST = (0.02, 1 / 3), 0.3  # of the rectangle, in the image and by its sides


class Erase(nn.Module):
    """Replaces a rectangle of some images by normal noise (Zhong et al., 2020)."""

    shapes: Tensor
    noise: Tensor

    def __init__(self, share: float, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.share = share
        area = size[0] * size[1]
        shapes = block_shapes(size, math.ceil(_AREA[0] * area), math.floor(_AREA[1] * area), _NARROWEST)
        self.register_buffer("shapes", shapes, persistent=False)
        self.register_buffer("noise", noise_table(channels * area), persistent=False)

    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """Returns the images, some of them with a rectangle of noise."""
        rows, columns = images.shape[-2:]
        height, width = self.shapes[below(len(self.shapes), keys, _ERASE, 0)].unbind(-1)
        top, left = below(rows - height + 1, keys, _ERASE, 1), below(columns - width + 1, keys, _ERASE, 2)
        row = torch.arange(rows, device=keys.device) - top[:, None]
        column = torch.arange(columns, device=keys.device) - left[:, None]
        inside = ((row >= 0) & (row < height[:, None]))[:, :, None] & ((column >= 0) & (column < width[:, None]))[
            :, None
        ]
        chosen = fold(keys, _ERASE, 3) < int(self.share * 2**32)
        noise = rearrange(keyed_noise(self.noise, keys, rows * columns), "b (h w) c -> b c h w", h=rows)
        return torch.where((inside & chosen[:, None, None])[:, None], noise, images)


class DropChannels(nn.Module):
    """Leaves out some channels of each image, so that a model learns to do without them."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, batch: Batch) -> Tensor:
        """Returns the channels that are left of each image (B C), at least one of those that it has."""
        channel = torch.arange(batch.images.shape[1], device=batch.keys.device)
        chance = fold(batch.keys[:, None], _DROP, channel)
        chance = chance if batch.present is None else torch.where(batch.present, chance, -1)
        return (chance >= int(self.share * 2**32)) | (chance == chance.amax(1, keepdim=True))


class Mix(nn.Module):
    """Mixup and cutmix: mixes each image with its neighbour, and their labels in the same proportion."""

    seed: Tensor
    shares: Tensor
    boxes: Tensor

    def __init__(self, config: Mixing, classes: int, size: tuple[int, int], seed: int) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        boxes = [(int(size[0] * side), int(size[1] * side)) for side in np.sqrt(1 - beta_quantiles(config.cutmix))]
        self.register_buffer("seed", torch.tensor([seed]), persistent=False)
        shares = torch.tensor(beta_quantiles(config.mixup).tolist(), dtype=torch.float32)
        self.register_buffer("shares", shares, persistent=False)
        self.register_buffer("boxes", torch.tensor(boxes), persistent=False)

    def forward(self, batch: Batch) -> Batch:
        """Returns the batch with mixed images, and labels as shares of classes.

        Of a mixture it is not known whether it has a tag unless it is known of both images.
        """
        assert batch.labels is not None
        images, labels = batch.images, batch.labels
        if labels.ndim == 1:
            labels = functional.one_hot(labels, self.classes).float()
        mask, share = self.draw(batch)
        mixed = labels.lerp(swapped(labels), share[:, None])
        if batch.labels.ndim > 1:  # what is not known of its neighbour is no matter for an image that stays as it is
            mixed = torch.where(share[:, None] == 0, labels, mixed)
        return replace(
            batch,
            images=images.lerp(swapped(images), mask[:, None]),
            present=None if batch.present is None else batch.present | swapped(batch.present),
            labels=mixed,
        )

    def draw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the partner's share in each pixel, and its share in the labels: for each image, or one for all."""
        rows, columns = batch.images.shape[-2:]
        place: tuple[Tensor, ...] = ()
        if self.config.together is not None:
            assert batch.places is not None
            place = (batch.places // self.config.together,)

        def number(limit: int, purpose: int) -> Tensor:
            # The seed has one entry, not none: indexing with a single number would make the host wait for the device.
            return below(limit, self.seed, _MIX, batch.step, purpose, *place)

        share = self.shares[number(_QUANTILES, 0)]
        height, width = self.boxes[number(_QUANTILES, 1)].unbind(-1)
        # A box of this size around a drawn pixel, cut at the edges of the image.
        inside = _span(rows, number(rows, 2), height)[:, :, None] & _span(columns, number(columns, 3), width)[:, None]
        box = inside.to(share.dtype)
        whole = share[:, None, None].expand_as(box)
        if self.config.mixup and self.config.cutmix:
            cutting = number(2, 4) == 1
            mask = torch.where(cutting[:, None, None], box, whole)
        else:
            mask = box if self.config.cutmix else whole
        if self.config.chance < 1:
            used = number(2**31 - 1, 5) < self.config.chance * (2**31 - 1)
            mask = mask * used[:, None, None]
        return mask, mask.mean((1, 2))


def _span(length: int, centre: Tensor, extent: Tensor) -> Tensor:
    """Returns which of this many pixels lie in a span of an even extent around each centre."""
    offset = torch.arange(length, device=centre.device) - (centre - extent // 2)[:, None]
    return (offset >= 0) & (offset < extent[:, None] // 2 * 2)


def swapped(rows: Tensor) -> Tensor:
    """Returns each row's neighbour in its position: rows 2i and 2i + 1 are exchanged."""
    return rearrange(rearrange(rows, "(b two) ... -> b two ...", two=2).flip(1), "b two ... -> (b two) ...")


def beta_quantiles(alpha: float) -> NDArray[np.float64]:
    """Returns equally likely values of a Beta(alpha, alpha) variable; one half where alpha is 0 and none is drawn."""
    if alpha == 0:
        return np.full(_QUANTILES, 0.5)
    # With x = sin^2 t the density has no poles that a sum over midpoints would miss.
    cells = 2**18
    angle = (np.arange(cells) + 0.5) * (np.pi / 2 / cells)
    density = (np.sin(angle) * np.cos(angle)) ** (2 * alpha - 1)
    cumulated = np.cumsum(density)
    chance = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    quantiles: NDArray[np.float64] = np.sin(np.interp(chance, (cumulated - density / 2) / cumulated[-1], angle)) ** 2
    return quantiles
