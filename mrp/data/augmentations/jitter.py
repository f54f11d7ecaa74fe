"""Brightness, contrast, saturation and hue that vary."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mrp.data import augment
from mrp.data.augment import RANGES, as_before, draws
from mrp.data.config import Change, Size
from mrp.data.decode import LUMA, UnfitError


class Config(Change):
    """Changes brightness, contrast, saturation and hue in an order that is drawn.

    Brightness and contrast are for any number of channels and any kind of numbers. Contrast changes about the mean
    brightness of colours, and otherwise about the mean of each channel.
    """

    name: Literal["jitter"] = "jitter"
    brightness: float = Field(0.4, ge=0, le=1)  # the brightness is multiplied by 1 - this to 1 + this
    contrast: float = Field(0.4, ge=0, le=1)  # the contrast is multiplied likewise
    saturation: float = Field(0.2, ge=0, le=1)  # the saturation is multiplied likewise; for 3 channels only
    hue: float = Field(0.1, ge=0, le=0.5)  # the hue is moved by up to this share of its circle; for 3 channels only

    def unfit(self, channels: int, size: Size) -> str | None:
        """Refuses colours that are none."""
        if channels == 3 or not (self.saturation or self.hue):
            return None
        return f"saturation and hue are for 3 channels, and there are {channels}; set jitter's saturation and hue to 0"


class Augmentation(augment.Augmentation):
    """Changes each in turn; after each, numbers of 8 and 16 bits are brought back into their range."""

    config: Config

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns the image in other colours."""
        largest = RANGES.get(image.dtype)
        if largest is None and self.config.hue:
            raise UnfitError("hue is for images of 8 or 16 bits; set jitter's hue to 0")
        numbers = draws(key)
        pixels = image.float() / (largest or 1)
        changes = [(change, most) for name, change in _CHANGES.items() if (most := getattr(self.config, name))]
        for change, most in sorted(changes, key=lambda _: next(numbers)):
            pixels = change(pixels, most * (2 * next(numbers) - 1))
            pixels = pixels if largest is None else pixels.clamp_(0, 1)
        return as_before(pixels * (largest or 1), image.dtype)


def _luma(pixels: Tensor) -> Tensor:
    luma: Tensor = torch.tensordot(torch.from_numpy(LUMA / 65536).float(), pixels, dims=1)
    return luma[None]


def _brightness(pixels: Tensor, share: float) -> Tensor:
    return pixels * (1 + share)


def _contrast(pixels: Tensor, share: float) -> Tensor:
    brightness = _luma(pixels) if len(pixels) == 3 else pixels
    return torch.lerp(brightness.mean((1, 2), keepdim=True).expand_as(pixels), pixels, 1 + share)


def _saturation(pixels: Tensor, share: float) -> Tensor:
    return torch.lerp(_luma(pixels).expand_as(pixels), pixels, 1 + share)


def _hue(pixels: Tensor, share: float) -> Tensor:
    """Returns the colours moved along the circle of hues; value and saturation (HSV) stay."""
    planes = pixels.contiguous()
    red, green, blue = planes
    value = planes.amax(0)
    chroma = value - planes.amin(0)
    there, room = chroma.clamp_min(1e-12), torch.empty_like(value)
    # Which sixth of the circle: that of the largest colour. A weight of 0 or 1 takes one side of `lerp_` as it is.
    sixth = (red - green).div_(there).add_(4)
    sixth.lerp_((blue - red).div_(there).add_(2), torch.eq(value, green, out=room))
    sixth.lerp_((green - blue).div_(there), torch.eq(value, red, out=room)).add_(6 * share)
    moved = torch.empty_like(planes)
    for turns, offset in zip(moved, (5, 3, 1), strict=True):
        torch.add(sixth, offset, out=turns)
        turns.sub_(torch.div(turns, 6, out=room).floor_(), alpha=6)
        torch.minimum(turns, torch.sub(4, turns, out=room), out=turns).clamp_(0, 1).mul_(chroma)
        torch.sub(value, turns, out=turns)
    return moved


_CHANGES = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}
