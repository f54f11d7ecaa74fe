"""How an image is stored in a shard: with its own bytes, made smaller, or as its pixels."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import torch
from PIL import Image
from torch import Tensor

from mrp.config import ConfigError
from mrp.data.augment import covering, resize
from mrp.data.decode import DecodeError, decode, header
from mrp.data.source import Partial, Pixels, RawImage


def encode(
    content: RawImage, named: str, max_side: int | None, quality: int, raw: int | None, notes: Counter[str]
) -> tuple[str, bytes]:
    """Returns the ending of the file's name and its bytes; `named` is the ending that the original has."""
    if not isinstance(content, bytes):
        if isinstance(content, Partial) or content.dtype == np.float32 or not (raw or content.shape[2] in (1, 3)):
            raise ConfigError("shards hold images of 1 or 3 channels of whole numbers; train on these data as they are")
        if not raw and content.dtype == np.uint16 and content.shape[2] == 3:
            raise ConfigError("no PNG of 16-bit colours is read back whole; give --raw SIDE, which stores 8 bits")
        return ("npy", _raw(content, content.shape[2], raw)) if raw else ("png", _png(content))
    try:
        image = header(content)
        if raw:
            return "npy", _raw(content, 1 if image.grey else 3, raw)
        if max_side and max(image.width, image.height) > max_side:
            notes["encoded again"] += 1
            return "jpg", _smaller(content, 1 if image.grey else 3, max_side, quality)
    except DecodeError:
        return "image", content  # kept, counted when the shard is scanned, and replaced in training
    if image.format == "png" and named in ("jpg", "jpeg"):
        notes["recovered: png named jpg"] += 1
    return image.format, content


def _png(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(out, "PNG")
    return out.getvalue()


def _raw(content: bytes | Pixels, channels: int, side: int) -> bytes:
    """Returns the pixels as a .npy, made smaller as evaluation does it where the shorter side exceeds `side`."""
    image = in_eight_bits(content, channels)
    size = image.shape[1], image.shape[2]
    out = io.BytesIO()
    np.save(out, _rows(resize(image, covering(size, (side, side))) if min(size) > side else image))
    return out.getvalue()


def in_eight_bits(content: bytes | Pixels, channels: int) -> Tensor:
    """Returns the pixels of an image, those of 16 bits in 8."""
    image = decode(content, channels)
    return image if image.dtype == torch.uint8 else (image.int() // 257).to(torch.uint8)


def _rows(image: Tensor) -> Pixels:
    """Returns the pixels (H W C) in one piece."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _smaller(data: bytes, channels: int, side: int, quality: int) -> bytes:
    image = in_eight_bits(data, channels)
    height, width = image.shape[1:]
    scale = side / max(height, width)
    image = resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    space, sampling = ("GRAY", "Gray") if channels == 1 else ("RGB", "420")
    encoded: bytes = simplejpeg.encode_jpeg(_rows(image), quality, space, sampling)
    return encoded
