"""From the bytes of an image file to pixels: a damaged file is an error, never a guess.

The format is told from the content, not from the name. JPEG goes through libjpeg-turbo in strict mode, since Pillow
says nothing about a damaged scan; PNG has its checksums verified first for the same reason.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from mrp.data import jpeg, tifftags, turbojpeg
from mrp.data.config import Size
from mrp.data.source import DecodeError as DecodeError
from mrp.data.source import Partial, Pixels, RawImage, one_line
from mrp.data.source import UnfitError as UnfitError
from mrp.data.turbojpeg import Box

_FORMATS = ("BMP", "GIF", "PNG", "PPM", "TIFF", "WEBP")  # no format that runs another program, as EPS does
_MOST_ASPECT = 100  # of the longer side over the shorter: evaluation enlarges the shorter one to its crop
LUMA = np.array([19595, 38470, 7471], np.uint32)  # ITU-R 601 in units of 2^-16
# An array of bytes (H W C) as numpy writes it, which `mrp shards build --raw` stores.
_NPY = re.compile(
    rb"\x93NUMPY\x01\0..\{'descr': '\|u1', 'fortran_order': False, "
    rb"'shape': \(([1-9]\d{0,9}), ([1-9]\d{0,9}), ([1-9]\d{0,9})\), \} *\n",
    re.DOTALL,
)
_SIDES = ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength  # tags of a TIFF
_INKS = ("CMYK", "YCCK")  # four inks, as they are or turned into brightness and colour


class Header(NamedTuple):
    """Format and size of an image, from its first bytes."""

    format: str  # as a file's ending: jpg, png, ...
    width: int  # as stored, before EXIF turns it
    height: int
    grey: bool
    inks: bool  # four inks (CMYK), which are turned into RGB


def header(data: bytes) -> Header:
    """Returns format and size without decoding the pixels."""
    if _is_jpeg(data):
        width, height, space = _jpeg_header(data)
        return Header("jpg", width, height, space == "Gray", space in _INKS)
    if _is_npy(data):
        height, width, channels = _stored_pixels(data).shape
        return Header("npy", width, height, channels == 1, inks=False)
    with _opened(data) as image:
        grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
        return Header(str(image.format).lower(), *image.size, grey, image.mode == "CMYK")


def upright_size(data: bytes) -> tuple[int, int]:
    """Returns height and width of the upright image without decoding its pixels."""
    if _is_jpeg(data):
        width, height, _ = _jpeg_header(data)
        orientation = jpeg.orientation(data)
    elif _is_npy(data):
        (height, width, _), orientation = _stored_pixels(data).shape, 1
    else:
        with _opened(data) as image:
            # Of a TIFF with the tag Pillow says the upright size, and of one that says it in XMP the stored one.
            tags = getattr(image, "tag_v2", {})
            width, height = (tags.get(tag, side) for tag, side in zip(_SIDES, image.size, strict=True))
            orientation = jpeg.turn(image.getexif().get(ExifTags.Base.Orientation))
    return (width, height) if orientation >= 5 else (height, width)


def indices(data: bytes) -> NDArray[np.int32]:
    """Returns the numbers of a PNG with one channel as they are stored (H W): those of a palette, not its colours."""
    one_number = DecodeError("not a PNG with one number per pixel (grey of 8 or 16 bits, or a palette)")
    if _is_jpeg(data):
        raise one_number
    with _opened(data) as image:
        check_size(*image.size)
        if image.format != "PNG" or image.mode not in ("1", "L", "P", "I", "I;16"):
            raise one_number
        with _opened(data) as checked:
            checked.verify()  # as for images
        return np.asarray(image).astype(np.int32)


def _is_jpeg(data: bytes) -> bool:
    return data[:2] == b"\xff\xd8"


def _is_npy(data: bytes) -> bool:
    return data[:6] == b"\x93NUMPY"


def _stored_pixels(data: bytes) -> Pixels:
    """Returns the pixels that are stored as they are, without a copy."""
    match = _NPY.match(data)
    shape = tuple(map(int, match.groups())) if match else (0, 0, 0)
    if match is None or len(data) - match.end() != math.prod(shape):
        raise DecodeError("not the pixels (height, width, channels) of 8 bits that a .npy should hold")
    return np.frombuffer(data, np.uint8, offset=match.end()).reshape(shape)


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Opens an image with Pillow; whatever is wrong with it becomes a DecodeError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                tifftags.check(image, data)
                yield image
        except (DecodeError, MemoryError):
            raise
        except UnidentifiedImageError:
            known = f"not an image that can be read; readable are JPEG, {', '.join(_FORMATS)}"
            if data[:4] in (b"II*\0", b"MM\0*"):
                known = (
                    "a TIFF of a form that a folder of images does not take; try {name: tiff, path: FOLDER} as the data"
                )
            raise DecodeError(known if data else "a file without content") from None
        except Exception as error:  # on damaged files Pillow raises almost anything
            raise DecodeError(f"damaged image: {one_line(error)}") from None


def _jpeg_header(data: bytes) -> tuple[int, int, str]:
    """Returns width, height and colour space."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except KeyError:  # it has no name for the rare subsampling 4:4:1, which it decodes
        width, height, components = jpeg.frame(data)
        space = "CMYK" if components == 4 else "YCbCr"
    except ValueError as error:
        raise DecodeError(f"damaged JPEG: {one_line(error)}") from None
    return width, height, space


def decode(data: RawImage, channels: int) -> Tensor:
    """Returns the upright pixels (C H W) with the wanted channels.

    They are uint8, or uint16 where the file has 16 bits; pixels that a source gives may be float32 too. Grey is
    replicated to RGB, RGB becomes luma, and alpha is dropped unless four channels are wanted. Colour of 16 bits per
    channel is read in 8, as Pillow does.
    """
    return decode_box(data, channels, lambda size: (0, 0, *size))


def decode_box(data: RawImage, channels: int, choose: Callable[[Size], Box], *, sound: bool = False) -> Tensor:
    """Returns the pixels in the box that is chosen once the upright image's size is known, decoding little else.

    They are those of the whole image, and damage anywhere in the file is an error, as it is there. Only in a file that
    is known to be sound, since it was decoded before, nothing is looked at below the box.
    """
    if isinstance(data, Partial):
        if data.pixels.shape[2] != channels:
            raise UnfitError(f"{data.pixels.shape[2]} channels where {channels} are wanted; set data.channels")
        pixels, present = data
        # Where a channel is missing there may be no numbers at all.
        data = np.where(present | np.isfinite(pixels), pixels, 0) if pixels.dtype == np.float32 else pixels
    if isinstance(data, np.ndarray) or _is_npy(data):
        array = data if isinstance(data, np.ndarray) else _stored_pixels(data)
        check_size(array.shape[1], array.shape[0])
        top, left, height, width = choose((array.shape[0], array.shape[1]))
        array = array[top : top + height, left : left + width]
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise DecodeError("pixels that are not finite numbers; replace them, or leave the image out")
        return _planes(array if array.flags.writeable else array.copy(), channels)
    if _is_jpeg(data):
        width, height, space = _jpeg_header(data)
        check_size(width, height)
        orientation = jpeg.orientation(data)
        box = choose((height, width)) if orientation == 1 else (0, 0, height, width)
        if box != (0, 0, height, width) and (part := _decode_part(data, channels, space, box, sound)) is not None:
            return _planes(part, channels)
        array = _decode_jpeg(data, channels, space)
    else:
        array, orientation = _decode_other(data, channels)
    image = _upright(_planes(array, channels), orientation)
    top, left, height, width = choose((image.shape[1], image.shape[2]))
    return image[:, top : top + height, left : left + width]


def _decode_part(data: bytes, channels: int, space: str, box: Box, sound: bool) -> Pixels | None:
    """Returns the pixels in a box where libjpeg-turbo 3 gives them and the file is sound."""
    library = turbojpeg.library()
    if library is None or space in _INKS:
        return None
    part = library.decode(data, box, 1 if channels == 1 else 3, sound=sound)
    return part if sound or (part is not None and jpeg.is_whole(data)) else None


def _decode_jpeg(data: bytes, channels: int, space: str) -> Pixels:
    wanted = "CMYK" if space in _INKS else "GRAY" if channels == 1 else "RGB"
    try:
        array: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, wanted, strict=True)
    except ValueError as error:
        raise DecodeError(f"damaged JPEG: {one_line(error)}") from None
    if not jpeg.is_whole(data):
        raise DecodeError("damaged JPEG: it ends before its last scan")
    if space in _INKS:  # by Adobe's custom the inks of a JPEG are stored inverted
        array = np.array(Image.fromarray(255 - array, "CMYK").convert("RGB"))
    return array


def _decode_other(data: bytes, channels: int) -> tuple[Pixels, int]:
    with _opened(data) as image:
        check_size(*image.size)
        if image.format == "PNG":
            with _opened(data) as checked:
                checked.verify()  # checks every checksum, and leaves the image unusable
        return _array(image, channels), jpeg.turn(image.getexif().get(ExifTags.Base.Orientation))


def _array(image: Image.Image, channels: int) -> Pixels:
    image.load()
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16)[..., None]
    if image.mode == "La":  # which Pillow turns into nothing but this
        image = image.convert("LA")
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if channels == 4 and image.has_transparency_data:
        mode = "RGBA"
    pixels: NDArray[np.uint8] = np.array(image.convert(mode))
    return pixels[..., None] if mode == "L" else pixels


def _planes(array: Pixels, channels: int) -> Tensor:
    """Returns the pixels (C H W, in memory still H W C) with the wanted channels."""
    return torch.from_numpy(with_channels(array, channels)).permute(2, 0, 1)


def with_channels(array: Pixels, channels: int) -> Pixels:
    """Returns pixels (H W C) with the wanted channels: grey repeated, or the brightness of colours."""
    given = array.shape[2]
    if given == channels:
        return array
    if (given, channels) == (1, 3):
        return np.repeat(array, 3, axis=2)
    if (given, channels) == (3, 1):
        if array.dtype == np.float32:
            return array @ (LUMA / np.float32(1 << 16)).astype(np.float32)[:, None]
        luma = (array.astype(np.uint32) @ LUMA + np.uint32(1 << 15)) >> np.uint32(16)
        return luma.astype(array.dtype)[..., None]
    raise UnfitError(f"{given} channels where {channels} are wanted; set data.channels to {given}")


def _upright(image: Tensor, orientation: int) -> Tensor:
    """Undo what EXIF calls the orientation: 5 to 8 exchange the axes, and then some are mirrored."""
    image = image.transpose(1, 2) if 5 <= orientation <= 8 else image
    return flipped(image, {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation, ()))


def flipped(image: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Returns an image with the two ends of each of some axes exchanged."""
    if image.dtype == torch.uint16:  # which torch 2.11 cannot flip
        return image.view(torch.int16).flip(axes).view(torch.uint16)
    return image.flip(axes) if axes else image


def check_size(width: int, height: int) -> None:
    """Refuses an image whose pixels, or those of its enlarged copy, could exhaust the memory."""
    if Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS:
        raise DecodeError(
            f"{width} x {height} pixels: more than {Image.MAX_IMAGE_PIXELS} could be an attack on the memory; make the "
            "image smaller"
        )
    if max(width, height) > _MOST_ASPECT * min(width, height):
        raise DecodeError(f"{width} x {height} pixels: one side is over {_MOST_ASPECT} times the other; crop the image")
