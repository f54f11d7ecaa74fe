"""libjpeg-turbo 3 gives the pixels and the verdicts of the usual decoder, and is found, refused or left out by name."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mrp.config import ConfigError
from mrp.data import turbojpeg
from mrp.data.augment import View
from mrp.data.batches import Batches, TrainingPlan
from mrp.data.config import Config
from mrp.data.decode import DecodeError, decode, decode_box
from mrp.data.open import open_source
from mrp.data.order import Order
from mrp.data.source import Source
from mrp.data.turbojpeg import Box
from tests.data.conftest import encoded

HEIGHT, WIDTH = 101, 147
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
NOISE = np.random.default_rng(0).integers(-20, 20, (HEIGHT, WIDTH, 3))
PHOTO = (np.stack([ROWS * 2, COLUMNS, ROWS + COLUMNS // 2], -1) + NOISE).clip(0, 255).astype(np.uint8)
BOXES = ((0, 0, 40, 30), (17, 33, 50, 61), (60, 90, 41, 57), (50, 0, 1, WIDTH), (0, 70, HEIGHT, 1), (100, 146, 1, 1))


def saved(image: Any, **options: object) -> bytes:
    return encoded(image, "JPEG", **{"quality": 88, **options})


def subsampled(how: str) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(PHOTO, 88, "RGB", how)
    return data


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(PHOTO, exif=exif)


FILES = {
    **{how: subsampled(how) for how in ("444", "422", "420", "440", "411")},
    "grey": saved(PHOTO[..., 0]),
    "progressive": saved(PHOTO, progressive=True),
    "restart markers": saved(PHOTO, restart_marker_blocks=3),
    "restart markers by rows": saved(PHOTO, restart_marker_rows=1, optimize=True),
    "turned": turned(6),
    "CMYK": saved(Image.fromarray(PHOTO).convert("CMYK")),
    "one MCU": saved(PHOTO[:9, :7]),
    "trailing bytes": subsampled("420") + b"more",
}


@pytest.fixture(scope="module")
def installed() -> None:
    if turbojpeg.library() is None:
        pytest.skip("no libturbojpeg of version 3 is installed, nor named by MRP_TURBOJPEG")


@pytest.fixture
def afresh() -> Iterator[None]:
    """Looks for the library again, now and after the test."""
    turbojpeg.library.cache_clear()
    yield
    turbojpeg.library.cache_clear()


def within(box: Box, size: tuple[int, int]) -> Box:
    """Returns what of a box lies in an image of this size, at least one pixel."""
    top, left = min(box[0], size[0] - 1), min(box[1], size[1] - 1)
    return top, left, min(box[2], size[0] - top), min(box[3], size[1] - left)


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", FILES)
def test_a_box_has_the_pixels_of_the_whole_image(kind: str, channels: int, sound: bool) -> None:
    whole = decode(FILES[kind], channels)
    for box in BOXES:
        top, left, height, width = within(box, (whole.shape[1], whole.shape[2]))
        part = decode_box(FILES[kind], channels, lambda size, box=box: within(box, size), sound=sound)
        assert torch.equal(part, whole[:, top : top + height, left : left + width])


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("kind", [kind for kind in FILES if kind not in ("turned", "CMYK", "one MCU")])
def test_the_library_takes_what_it_should(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrp.data.decode._decode_jpeg", lambda *_: pytest.fail("the whole image was decoded"))
    assert decode_box(FILES[kind], 3, lambda size: (17, 33, 50, 61)).shape == (3, 50, 61)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(sorted(FILES)),
    position=st.floats(0, 1, exclude_max=True),
    junk=st.binary(max_size=8),
    cut=st.integers(0, 40),
)
def test_damage_gets_the_verdict_of_the_whole_image(kind: str, position: float, junk: bytes, cut: int) -> None:
    data = FILES[kind]
    start = int(position * len(data))
    data = data[:start] + junk + data[start + cut :]
    box = (17, 33, 50, 61)
    whole, part = outcome(lambda: decode(data, 3)), outcome(lambda: decode_box(data, 3, lambda size: within(box, size)))
    if isinstance(whole, str) or isinstance(part, str):
        assert part == whole
    else:
        top, left, height, width = within(box, (whole.shape[1], whole.shape[2]))
        assert torch.equal(part, whole[:, top : top + height, left : left + width])


def outcome(decoding: Callable[[], torch.Tensor]) -> torch.Tensor | str:
    try:
        return decoding()
    except DecodeError as error:
        return str(error)


def test_a_size_that_would_exhaust_the_memory_is_refused_from_the_header() -> None:
    data = bytearray(FILES["420"])
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65500, 65500)
    with pytest.raises(DecodeError, match="could be an attack on the memory"):
        decode_box(bytes(data), 3, lambda size: pytest.fail("a box was chosen"))


@pytest.mark.usefixtures("afresh")
def test_a_variable_that_names_no_such_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.so").write_text("no library")
    other = np.__config__.__file__  # a file, and no library
    for path in (tmp_path / "text.so", tmp_path / "missing.so", other):
        monkeypatch.setenv(turbojpeg.VARIABLE, str(path))
        with pytest.raises(ConfigError, match=r"MRP_TURBOJPEG: .* cannot be used: .*; name a libturbojpeg") as error:
            turbojpeg.library()
        assert "\n" not in str(error.value)


@pytest.mark.usefixtures("afresh")
def test_a_library_of_another_version_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2, which most distributions have, lacks the functions of version 3; here the C library stands for it."""
    monkeypatch.delenv(turbojpeg.VARIABLE, raising=False)
    monkeypatch.setattr(turbojpeg, "_places", lambda: ["libc.so.6", "/nowhere/libturbojpeg.so.0"])
    assert turbojpeg.library() is None
    assert "version 3" in turbojpeg.described()
    monkeypatch.setenv(turbojpeg.VARIABLE, "libc.so.6")
    turbojpeg.library.cache_clear()
    with pytest.raises(ConfigError, match="no libturbojpeg of version 3: it has no tj3Init"):
        turbojpeg.library()


@pytest.mark.usefixtures("afresh")
def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(turbojpeg.VARIABLE, "off")
    assert turbojpeg.library() is None


class StandIn:
    """Decodes all and cuts the box out, and remembers which files it was told are sound."""

    path = "stand-in"

    def __init__(self) -> None:
        self.sound: list[bool] = []

    def decode(self, data: bytes, box: Box, channels: int, *, sound: bool) -> NDArray[np.uint8] | None:
        top, left, height, width = box
        self.sound.append(sound)
        whole: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "GRAY" if channels == 1 else "RGB", strict=True)
        return whole[top : top + height, left : left + width]


def batches(source: Source, views: int = 1) -> Batches:
    order = Order(len(source), len(source), 0)
    view = View(Config(train="unused", size=12, views=views), train=True)
    return Batches(source, view, TrainingPlan(order, np.arange(len(source))[None], views), source.replacement)


@pytest.mark.parametrize("views", [1, 3])
def test_training_sees_the_same_with_and_without_it(
    made: Path, views: int, monkeypatch: pytest.MonkeyPatch, stand_in: Callable[[], StandIn]
) -> None:
    source = open_source(str(made), "train")
    monkeypatch.setattr(turbojpeg, "library", lambda: None)
    usual = [batches(source, views)[number].batch.images for number in range(2)]
    used = stand_in()
    others = batches(source, views)
    assert all(torch.equal(others[number].batch.images, images) for number, images in enumerate(usual))
    assert used.sound


def test_only_a_file_that_was_decoded_to_its_end_counts_as_sound(
    made: Path, photographs: Path, stand_in: Callable[[], StandIn]
) -> None:
    source = open_source(str(made), "train")
    used, each = stand_in(), batches(source)
    for number in range(2):
        used.sound.clear()
        each[number]
        assert set(used.sound) == {number > 0}
    folder, used = batches(open_source(str(photographs), "train")), stand_in()  # whose files may change, unseen
    for number in range(2):
        folder[number]
    assert set(used.sound) == {False}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[], StandIn]:
    def install() -> StandIn:
        library = StandIn()
        monkeypatch.setattr(turbojpeg, "library", lambda: library)
        return library

    return install
