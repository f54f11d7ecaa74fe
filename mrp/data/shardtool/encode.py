"""How an image is stored in a shard: with its own bytes wherever they can stay."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import torch
from PIL import Image

from mrp.data.augment import resize
from mrp.data.decode import DecodeError, decode, header
from mrp.data.source import Pixels


def encode(
    content: bytes | Pixels, named: str, max_side: int | None, quality: int, notes: Counter[str]
) -> tuple[str, bytes]:
    """Returns the ending of the file's name and its bytes; `named` is the ending that the original has."""
    if not isinstance(content, bytes):
        return "png", _png(content)
    try:
        image = header(content)
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


def _smaller(data: bytes, channels: int, side: int, quality: int) -> bytes:
    image = decode(data, channels)
    if image.dtype != torch.uint8:
        image = (image.int() // 257).to(torch.uint8)
    height, width = image.shape[1:]
    scale = side / max(height, width)
    image = resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    space, sampling = ("GRAY", "Gray") if channels == 1 else ("RGB", "420")
    encoded: bytes = simplejpeg.encode_jpeg(array, quality, space, sampling)
    return encoded
