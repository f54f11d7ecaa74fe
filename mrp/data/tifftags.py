"""What Pillow would give out of a TIFF otherwise than it is meant, told from its tags before any pixel is read."""

from __future__ import annotations

import io

from PIL import Image
from PIL.ExifTags import Base

from mrp.data.source import DecodeError

_KIND, _COPY_OR_MASK, _PLANES = 254, 0b101, 284  # tags that Pillow has no name for, and two bits of the first
_SAVE = "save the image with 8 or 16 bits per channel, without a sign, 0 for black"
_CHANNELS = "give the folder as {name: tiff, path: FOLDER}, which reads all channels, or save one image per file"


def check(image: Image.Image, data: bytes) -> None:
    """Refuses pixels whose range is unknown, and those that would be too dark, a negative, mixed up, or only a part."""
    tags = getattr(image, "tag_v2", {})
    bits, samples = max(tags.get(Base.BitsPerSample, (1,))), tags.get(Base.SamplesPerPixel, 1)
    grey, negative = tags.get(Base.PhotometricInterpretation, 1) < 2, tags.get(Base.PhotometricInterpretation) == 0
    alpha = tags.get(Base.ExtraSamples) in ((1,), (2,))
    if image.mode == "F":
        fault = f"floating-point pixels; {_SAVE}"
    elif bits not in (1, 2, 4, 8, 16):
        fault = f"pixels of {bits} bits; {_SAVE}"
    elif {*tags.get(Base.SampleFormat, (1,))} != {1}:
        fault = f"pixels with a sign; {_SAVE}"
    elif bits == 16 and negative:
        fault = f"pixels of 16 bits in which 0 is white; {_SAVE}"
    elif grey and samples > 1 + alpha:
        fault = f"a TIFF of {samples} channels that are no colours; {_CHANNELS}"
    elif bits == 16 and samples > 1 and (tags.get(_PLANES), tags.get(Base.Compression, 1)) == (2, 1):
        fault = f"a TIFF of 16 bits, uncompressed, with one colour after another; {_CHANNELS}"
    elif grey and bits in (8, 16) and _has_pages(image, data):  # of scanned text and colours, the first page is taken
        fault = f"a TIFF of several pages of one size; {_CHANNELS}"
    else:
        return
    raise DecodeError(fault)


def _has_pages(image: Image.Image, data: bytes) -> bool:
    """Returns whether a page as large follows the first: another channel or slice, no smaller copy and no mask."""
    if not getattr(getattr(image, "tag_v2", None), "next", 0):  # where the tags of the next page begin
        return False
    with Image.open(io.BytesIO(data), formats=("TIFF",)) as second:  # `image` stays at its first page
        try:
            second.seek(1)
        except Exception:  # what follows is no page that Pillow knows
            return False
        return second.size == image.size and not getattr(second, "tag_v2", {}).get(_KIND, 0) & _COPY_OR_MASK
