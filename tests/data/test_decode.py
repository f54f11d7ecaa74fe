"""Whatever the file is, the pixels are right or there is an error."""

import io
import struct
import warnings
from contextlib import suppress

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mrp.data.decode import DecodeError, UnfitError, decode, header, upright_size
from tests.data.conftest import encoded

HEIGHT, WIDTH = 40, 56
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([ROWS * 6, COLUMNS * 4, (ROWS + COLUMNS) * 2], -1).astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
DEEP = (ROWS * 1600 + COLUMNS).astype(np.uint16)


def by_pillow(data: bytes, mode: str = "RGB") -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        array = np.array(ImageOps.exif_transpose(image).convert(mode))
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def distance(a: torch.Tensor, b: torch.Tensor) -> int:
    assert a.shape == b.shape
    return int((a.int() - b.int()).abs().max())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats(kind: str, channels: int) -> None:
    data = encoded(RGB, kind)
    image = decode(data, channels)
    assert image.dtype == torch.uint8
    assert distance(image, by_pillow(data, "RGB" if channels == 3 else "L")) == 0


@pytest.mark.parametrize(("kind", "options"), [("WEBP", {"lossless": True}), ("WEBP", {}), ("GIF", {})])
def test_other_formats(kind: str, options: dict[str, object]) -> None:
    data = encoded(RGB, kind, **options)
    assert distance(decode(data, 3), by_pillow(data)) == 0


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_jpeg(options: dict[str, object]) -> None:
    data = encoded(RGB, "JPEG", **options)
    assert distance(decode(data, 3), by_pillow(data)) <= 2
    assert distance(decode(data, 1), by_pillow(data, "L")) <= 2


def test_colours_at_a_quarter_of_the_height() -> None:
    """4:4:1, which turning a JPEG of 4:1:1 gives."""
    data = bytearray(simplejpeg.encode_jpeg(np.full((32, 8, 3), 128, np.uint8), 90, "RGB", "444"))
    data[data.index(b"\xff\xc0") + 11] = 0x14  # of the brightness 1 x 4 blocks for each one of a colour
    scan = data.index(b"\xff\xda") + 14
    turned = bytes(data[:scan]) + bytes.fromhex("28a28a00ffd9")  # six blocks of middle grey
    assert header(turned) == ("jpg", 8, 32, False, False)
    assert torch.equal(decode(turned, 3), torch.full((3, 32, 8), 128, dtype=torch.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_becomes_three_equal_channels(kind: str) -> None:
    data = encoded(RGB[..., 0], kind)
    image = decode(data, 3)
    assert image.shape == (3, HEIGHT, WIDTH)
    assert (image == image[:1]).all()
    assert distance(image[:1], decode(data, 1)) == 0


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    data = encoded(Image.fromarray(RGB).convert("CMYK"), kind, **({"quality": 95} if kind == "JPEG" else {}))
    image = decode(data, 3)
    assert distance(image, by_pillow(data)) <= 2
    assert distance(image, torch.from_numpy(RGB).permute(2, 0, 1)) <= 12


def ycck(image: Image.Image) -> bytes:
    """A JPEG of four inks of which three are stored as brightness and colour: Adobe's transform 2, Pillow writes 0."""
    data = bytearray(encoded(image, "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


@pytest.mark.parametrize(
    "inks", [np.dstack([NOISE, NOISE[::-1, :, :1]]), np.dstack([RGB, 255 - ROWS.astype(np.uint8)])]
)
def test_four_inks_stored_as_brightness_and_colour_are_pillows_pixels(inks: NDArray[np.uint8]) -> None:
    data = ycck(Image.fromarray(inks, "CMYK"))
    assert header(data).inks
    assert distance(decode(data, 3), by_pillow(data)) == 0
    assert distance(decode(data, 1), by_pillow(data, "L")) <= 1


def test_alpha_is_dropped_unless_four_channels_are_wanted() -> None:
    alpha = np.concatenate([RGB, (COLUMNS[..., None] * 4).astype(np.uint8)], -1)
    data = encoded(alpha, "PNG")
    assert distance(decode(data, 3), torch.from_numpy(RGB).permute(2, 0, 1)) == 0
    assert distance(decode(data, 4), torch.from_numpy(alpha).permute(2, 0, 1)) == 0
    grey = encoded(Image.fromarray(alpha).convert("LA"), "PNG")
    assert distance(decode(grey, 1), by_pillow(grey, "L")) == 0


@pytest.mark.parametrize("options", [{}, {"transparency": 0}, {"transparency": b"\x00\x80"}])
def test_palette(options: dict[str, object]) -> None:
    image = Image.fromarray(RGB).quantize(16)
    data = encoded(image, "PNG", **options)
    assert distance(decode(data, 3), torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)) == 0


def test_black_and_white() -> None:
    data = encoded(Image.fromarray(RGB).convert("1"), "PNG")
    assert set(decode(data, 1).unique().tolist()) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_stay(kind: str) -> None:
    data = encoded(DEEP, kind)
    image = decode(data, 1)
    assert image.dtype == torch.uint16
    assert distance(image, torch.from_numpy(DEEP)[None]) == 0
    assert decode(data, 3).shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(RGB, kind, exif=exif, **options)
    image = decode(data, 3)
    assert image.shape == ((3, HEIGHT, WIDTH) if orientation < 5 else (3, WIDTH, HEIGHT))
    assert upright_size(data) == image.shape[1:]
    assert distance(image, by_pillow(data)) <= 2


def test_a_tiff_that_is_turned_by_xmp_alone() -> None:
    data = encoded(RGB, "TIFF", tiffinfo={700: xmp(6)})
    assert decode(data, 3).shape[1:] == upright_size(data) == (WIDTH, HEIGHT)
    assert distance(decode(data, 3), by_pillow(data)) == 0


def segment(content: bytes, before: bytes = b"") -> bytes:
    return before + b"\xff\xe1" + (len(content) + 2).to_bytes(2) + content


def exif(orientation: int) -> bytes:
    return b"Exif\0\0" + struct.pack(">2sHIHHHIHH", b"MM", 42, 8, 1, 0x0112, 3, 1, orientation, 0) + bytes(4)


def xmp(orientation: int, form: str = 'tiff:Orientation="%d"') -> bytes:
    return b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>" + (form % orientation).encode() + b"</x:xmpmeta>"


FILL = b"\xff" * 5
TURNED = {
    "fill bytes": segment(exif(6), FILL),
    "fill bytes before another segment": segment(b"other", FILL) + segment(exif(6)),
    "XMP": segment(xmp(6)),
    "XMP as an element": segment(xmp(6, "<tiff:Orientation>%d</tiff:Orientation>")),
    "the last XMP": segment(xmp(3)) + segment(xmp(6)),
    "EXIF before XMP": segment(xmp(3)) + segment(exif(6)),
    "EXIF without it, and XMP": segment(b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0") + segment(xmp(6)),
    "EXIF in two segments": segment(exif(6)[:20]) + segment(b"Exif\0\0" + exif(6)[20:]),
    "after other segments of its kind": segment(b"other") + segment(b"Exif") + segment(exif(6)),
}


@pytest.mark.parametrize("how", TURNED)
def test_a_jpeg_is_turned_as_pillow_turns_it(how: str) -> None:
    data = encoded(RGB, "JPEG", quality=95, subsampling=0)
    turned = data[:2] + TURNED[how] + data[2:]
    image = decode(turned, 3)
    assert distance(image, by_pillow(turned)) <= 2
    assert distance(image, decode(data, 3).transpose(1, 2).flip(2)) == 0


@pytest.mark.parametrize("value", [0, 9])
def test_an_orientation_that_is_none_does_not_turn(value: int) -> None:
    data = encoded(RGB, "JPEG")
    for wrong in (segment(exif(value)), segment(xmp(value))):
        assert distance(decode(data[:2] + wrong + data[2:], 3), by_pillow(data)) <= 2


def test_damaged_exif_does_not_matter() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(RGB, "JPEG", exif=exif)
    start = data.index(b"Exif\0\0") + 6
    for junk in (b"\xff" * 8, b"MM\0\x2a\0\0\xff\xff"):
        assert decode(data[:start] + junk + data[start + 8 :], 3).shape == (3, HEIGHT, WIDTH)


def damaged(data: bytes, how: str) -> bytes:
    half = len(data) // 2
    return {
        "empty": b"",
        "head only": data[:24],
        "half": data[:half],
        "last bytes lacking": data[:-20],
        "zeros in the middle": data[:half] + bytes(200) + data[half + 200 :],
        "text": b"<html>404 Not Found</html>",
    }[how]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("how", ["empty", "head only", "half", "last bytes lacking", "zeros in the middle", "text"])
def test_damage_is_an_error_of_one_line(kind: str, how: str) -> None:
    data = encoded(NOISE, kind)
    with pytest.raises(DecodeError) as error:
        decode(damaged(data, how), 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("how", ["head only", "half"])
def test_what_is_cut_short_is_an_error(kind: str, how: str) -> None:
    with pytest.raises(DecodeError):
        decode(damaged(encoded(NOISE, kind), how), 3)


@pytest.mark.parametrize("options", [{"progressive": True}, {"quality": 95}])
def test_a_progressive_scan_cut_short_is_an_error(options: dict[str, object]) -> None:
    data = encoded(NOISE, "JPEG", **options)
    for length in (len(data) // 2, len(data) * 9 // 10, len(data) - 2):
        with pytest.raises(DecodeError, match="damaged JPEG"):
            decode(data[:length], 3)


def separate(scans: int) -> bytes:
    """A grey square of 8 x 8 pixels, in a scan of its own for each component, of which so many are there."""

    def part(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content

    one_symbol = bytes([1, *[0] * 15, 0])  # the code 0 stands for no difference, and for the end of the block
    frame = struct.pack(">BHHB", 8, 8, 8, 3) + bytes(value for n in (1, 2, 3) for value in (n, 0x11, 0))
    head = part(0xDB, bytes([0] + [1] * 64)) + part(0xC0, frame)
    tables = part(0xC4, b"\0" + one_symbol) + part(0xC4, b"\x10" + one_symbol)
    scan = [part(0xDA, bytes([1, n, 0, 0, 63, 0])) + b"\x3f" for n in range(1, scans + 1)]
    return b"\xff\xd8" + head + tables + b"".join(scan) + b"\xff\xd9"


def test_a_sequential_jpeg_without_the_scan_of_a_component_is_an_error() -> None:
    assert (decode(separate(3), 3) == 128).all()
    for scans in (1, 2):
        with pytest.raises(DecodeError, match="damaged JPEG: it ends before its last scan"):
            decode(separate(scans), 3)


SAMPLES = {
    "JPEG": encoded(
        Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    ),
    "PNG": encoded(RGB, "PNG"),
    "TIFF": encoded(RGB, "TIFF"),
    "WEBP": encoded(RGB, "WEBP"),
    "BMP": encoded(RGB, "BMP"),
    "GIF": encoded(RGB, "GIF"),
}


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(SAMPLES)),
    position=st.floats(0, 1, exclude_max=True),
    junk=st.binary(min_size=1, max_size=8),
)
def test_any_damage_gives_pixels_or_a_decode_error(kind: str, position: float, junk: bytes) -> None:
    data = SAMPLES[kind]
    start = int(position * len(data))
    with suppress(DecodeError):
        assert decode(data[:start] + junk + data[start + len(junk) :], 3).shape[0] == 3


def test_arrays_pass_when_the_channels_agree() -> None:
    many = np.zeros((5, 6, 7), np.uint16)
    assert decode(many, 7).shape == (7, 5, 6)
    grey: NDArray[np.uint8] = RGB[..., :1].copy()
    assert distance(decode(grey, 3)[:1], torch.from_numpy(grey).permute(2, 0, 1)) == 0
    assert distance(decode(RGB.copy(), 1), torch.from_numpy(np.array(Image.fromarray(RGB).convert("L")))[None]) == 0
    white = np.full((2, 2, 3), 0xFFFF, np.uint16)
    assert (decode(white, 1).int() == 0xFFFF).all()
    with pytest.raises(UnfitError, match=r"7 channels where 3 are wanted; set data\.channels to 7"):
        decode(many, 3)


def test_colour_is_not_four_channels() -> None:
    with pytest.raises(UnfitError, match="3 channels where 4 are wanted"):
        decode(encoded(RGB, "JPEG"), 4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_decompression_bomb_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(RGB, kind)
    for limit in (HEIGHT * WIDTH - 1, HEIGHT * WIDTH // 3):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DecodeError, match="attack"):
            decode(data, 3)


def test_a_program_in_an_image_is_not_run() -> None:
    with pytest.raises(DecodeError, match="not an image that can be read"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", 3)


def test_no_warning_escapes() -> None:
    exif = struct.pack(">2sHIH", b"MM", 42, 8, 9)  # says nine entries and holds none
    data = encoded(RGB, "PNG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(data, 3)
