"""TIFF: every layout of channels gives the same pixels, whole or by windows, and a missing channel is known."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps

from mrp.check import sources
from mrp.config import ConfigError
from mrp.data.decode import decode, header
from mrp.data.open import open_source
from mrp.data.source import DecodeError, Partial, Source
from mrp.data.sources import SOURCES
from mrp.data.tifffiles import Tiff, Window
from tests.data.conftest import python

tifffile = pytest.importorskip("tifffile", reason="an extra: pip install 'mrp-vit[tiff]'")

CELLS = np.random.default_rng(0).integers(0, 65536, (5, 70, 90), np.uint16)  # C H W
NAMES = ["dapi", "er", "rna", "agp", "mito"]
NONE = ["unspecified"] * 4
LAYOUTS: dict[str, dict[str, Any]] = {
    "pages": {},
    "big-endian": {"byteorder": ">"},
    "tiled": {"tile": (16, 32), "compression": "zlib", "predictor": True},
    "strips": {"rowsperstrip": 13, "compression": "zlib"},
    "planar": {"planarconfig": "separate", "extrasamples": NONE},
    "planar-tiles": {"planarconfig": "separate", "extrasamples": NONE, "tile": (32, 16), "compression": "zlib"},
    "pixels": {"planarconfig": "contig", "extrasamples": NONE},
    "pixels-tiles": {"planarconfig": "contig", "extrasamples": NONE, "tile": (16, 16), "compression": "zlib"},
    "imagej": {"imagej": True, "metadata": {"axes": "CYX", "Labels": NAMES}},
    "ome": {"ome": True, "metadata": {"axes": "CYX", "Channel": {"Name": NAMES}}},
    "ome-tiles": {"ome": True, "metadata": {"axes": "CYX", "Channel": {"Name": NAMES}}, "tile": (32, 32),
                  "compression": "zlib"},
}  # fmt: skip


def written(path: Path, pixels: Any = CELLS, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = pixels.transpose(1, 2, 0) if options.get("planarconfig") == "contig" else pixels
    tifffile.imwrite(path, pixels, **{"photometric": "minisblack"} | options)
    return path


def ome(path: Path, names: list[str]) -> Path:
    """A file that says what its channels are called, each of which is full of the number of its name."""
    planes = np.stack([np.full((8, 8), 1 + NAMES.index(name), np.uint8) for name in names])
    return written(path, planes, ome=True, metadata={"axes": "CYX", "Channel": {"Name": names}})


def opened(path: Path, **options: Any) -> Source:
    return open_source(SOURCES.read({"name": "tiff", "path": str(path), **options}), "train")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pixels(tmp_path: Path, layout: str) -> None:
    tiff = Tiff(written(tmp_path / f"{layout}.tif", **LAYOUTS[layout]))
    wanted = CELLS.transpose(1, 2, 0)
    assert (tiff.size, tiff.channels) == ((70, 90), 5)
    np.testing.assert_array_equal(tiff.read(), wanted)
    for top, left, height, width in ((0, 0, 1, 1), (15, 31, 18, 33), (60, 58, 10, 32), (69, 0, 1, 90)):
        part = tiff.read(Window(top, left, height, width))
        np.testing.assert_array_equal(part, wanted[top : top + height, left : left + width])
    assert tiff.names == (tuple(NAMES) if layout.startswith(("ome", "imagej")) else ())


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float16", "float32", "float64", "uint32"])
def test_kinds_of_numbers(tmp_path: Path, kind: str) -> None:
    pixels = (CELLS[:1] // 300).astype(kind)
    read = Tiff(written(tmp_path / "a.tif", pixels)).read()
    assert read.dtype == (kind if kind in ("uint8", "uint16") else "float32")
    np.testing.assert_array_equal(read[..., 0], pixels[0])


def test_a_window_decodes_the_tiles_that_it_touches_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiff = Tiff(written(tmp_path / "a.tif", **LAYOUTS["tiled"]))
    numbers: list[int] = []
    copy = Tiff._copy_segment

    def noted(self: Tiff, page: Any, number: int, *rest: Any) -> None:
        numbers.append(number)
        copy(self, page, number, *rest)

    monkeypatch.setattr(Tiff, "_copy_segment", noted)
    tiff.read(Window(16, 32, 16, 32))
    assert numbers == [4] * 5  # of 15 tiles, the one in the second row and column of each page


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright_as_pillow_shows_them(tmp_path: Path, orientation: int) -> None:
    """Also where a window of a tiled file is read, of which only some tiles are decoded."""
    cells = np.arange(40 * 56 * 3, dtype=np.uint8).reshape(40, 56, 3)
    path = tmp_path / "turned.tif"
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(path, cells, photometric="rgb", tile=(16, 16), extratags=tags)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    tiff = Tiff(path)
    assert tiff.size == expected.shape[:2]
    assert np.array_equal(tiff.read(), expected)
    assert np.array_equal(tiff.read(Window(3, 20, 30, 11)), expected[3:33, 20:31])


def test_windows_cover_a_file_on_a_grid(tmp_path: Path) -> None:
    written(tmp_path / "cells" / "large.tif")
    written(tmp_path / "cells" / "small.tif", CELLS[:, :20, :20])
    source = opened(tmp_path / "cells", window=[32, 40])
    places = [(top, left) for top in (0, 32, 38) for left in (0, 40, 50)]  # the last ones end where the file does
    assert len(source) == len(places) + 1
    for number, (top, left) in enumerate(places):
        np.testing.assert_array_equal(
            source.read(number)[0], CELLS.transpose(1, 2, 0)[top : top + 32, left : left + 40]
        )
    assert source.read(9)[0].shape == (20, 20, 5)  # type: ignore[union-attr]
    assert source.where(4) == f"{tmp_path}/cells/large.tif: window at row 32, column 40"
    halved = opened(tmp_path / "cells", window=[32, 40], stride=[16, 40])
    assert len(halved) == 4 * 3 + 1
    assert halved.identity != source.identity == opened(tmp_path / "cells", window=[32, 40]).identity
    alone = opened(tmp_path / "cells" / "large.tif", window=35)
    assert len(alone) == 2 * 3


@pytest.mark.parametrize("options", [{}, {"window": 32}])
def test_it_does_what_a_source_must(tmp_path: Path, options: dict[str, Any]) -> None:
    for number in range(4):
        written(tmp_path / "cells" / "ab"[number % 2] / f"{number}.tif", CELLS[:, number:])
    for each in sources.CHECKS:
        each(SOURCES.read({"name": "tiff", "path": str(tmp_path / "cells"), **options}))
    source = opened(tmp_path / "cells", **options)
    assert source.classes == ("a", "b")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(0)[0], source.read(0)[0])


def test_a_file_per_channel(tmp_path: Path) -> None:
    for sample, names in {"x/one": ["er", "dapi"], "y/two": ["dapi"], "y/three_b": ["rna", "er", "dapi"]}.items():
        for name in names:
            written(tmp_path / f"{sample}_{name}.tif", np.full((1, 8, 8), 1 + NAMES.index(name), np.uint8))
    source = opened(tmp_path, files="{sample}_{channel}.tif")
    assert (source.channels, source.classes, source.partial) == (("dapi", "er", "rna"), ("x", "y"), True)
    one, label = source.read(0)
    assert isinstance(one, Partial)
    assert (one.present.tolist(), one.pixels[0, 0].tolist(), label) == ([True, True, False], [1, 2, 0], 0)
    whole, label = source.read(1)
    assert not isinstance(whole, Partial)
    assert (whole[0, 0].tolist(), label) == ([1, 2, 3], 1)  # type: ignore[index]
    assert source.where(1) == f"{tmp_path}/y/three_b_dapi.tif"
    chosen = opened(tmp_path, files="{sample}_{channel}.tif", channels=["rna", "er"])
    assert [chosen.where(number) for number in range(len(chosen))] == [
        f"{tmp_path}/x/one_er.tif", f"{tmp_path}/y/three_b_rna.tif",
    ]  # fmt: skip
    for each in sources.CHECKS:
        each(SOURCES.read({"name": "tiff", "path": str(tmp_path), "files": "{sample}_{channel}.tif"}))


def test_folders_of_channels(tmp_path: Path) -> None:
    for name in NAMES:
        written(tmp_path / name / "plate" / "1.tif", np.full((1, 8, 8), 1 + NAMES.index(name), np.uint8))
    source = opened(tmp_path, files="{channel}/{sample}.tif", channels=NAMES)
    pixels, _ = source.read(0)
    assert (source.classes, source.partial, pixels[0, 0].tolist()) == (("plate",), False, [1, 2, 3, 4, 5])  # type: ignore[index]


def test_channels_are_matched_by_the_names_in_files(tmp_path: Path) -> None:
    ome(tmp_path / "1.tif", ["dapi", "er", "rna"])
    ome(tmp_path / "2.tif", ["rna", "dapi"])
    source = opened(tmp_path)
    assert (source.channels, source.partial) == (("dapi", "er", "rna"), True)
    second, _ = source.read(1)
    assert isinstance(second, Partial)
    assert (second.present.tolist(), second.pixels[0, 0].tolist()) == ([True, False, True], [1, 0, 3])
    ome(tmp_path / "3.tif", ["dapi", "er", "mito"])
    source = opened(tmp_path)
    assert source.channels == ("dapi", "er", "rna", "mito")
    ome(tmp_path / "3.tif", ["dapi", "er", "agp"])  # since it was opened
    with pytest.raises(DecodeError, match="has a channel 'agp', unlike the first files; name all of them"):
        source.read(2)
    ome(tmp_path / "3.tif", ["dapi", "er", "mito"])
    third, _ = opened(tmp_path, channels=["mito", "rna"]).read(2)
    assert isinstance(third, Partial)
    assert (third.present.tolist(), third.pixels[0, 0].tolist()) == ([True, False], [5, 0])
    with pytest.raises(DecodeError, match="has none of the channels mito"):
        opened(tmp_path, channels=["mito"]).read(0)
    with pytest.raises(ConfigError, match="has none of the channels agp; it has dapi, er, rna, mito"):
        opened(tmp_path, channels=["agp"])


def test_names_that_are_stated_are_those_of_files_without_names(tmp_path: Path) -> None:
    written(tmp_path / "1.tif", CELLS[:2])
    source = opened(tmp_path, channels=["a", "b"])
    assert (source.channels, source.partial) == (("a", "b"), False)
    with pytest.raises(DecodeError, match="has 2 channels without names, where 3 are named"):
        opened(tmp_path, channels=["a", "b", "c"]).read(0)


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    def message(path: Path, **options: Any) -> str:
        with pytest.raises((ConfigError, DecodeError)) as caught:
            opened(path, **options).read(0)
        assert "\n" not in str(caught.value)
        return str(caught.value).replace(f"{tmp_path}/", "")

    noise = tmp_path / "noise.tif"
    noise.write_bytes(b"noise")
    assert "noise.tif: no TIFF, or a damaged one" in message(noise)
    assert "has the axes 2 Z x 5 C x 8 Y x 8 X; besides Y and X there may be one" in message(
        written(tmp_path / "deep.tif", np.zeros((2, 5, 8, 8), np.uint8), imagej=True, metadata={"axes": "ZCYX"})
    )
    white = tmp_path / "white.tif"
    tifffile.imwrite(white, CELLS[0], photometric="miniswhite")
    assert "0 is white; save the pixels themselves" in message(white)
    cut = written(tmp_path / "cut.tif", **LAYOUTS["strips"])
    with tifffile.TiffFile(cut) as file:
        place = file.pages[0].dataoffsets[2]
    content = bytearray(cut.read_bytes())
    content[place : place + 40] = b"\0" * 40
    cut.write_bytes(content)
    assert "damaged (" in message(cut)
    written(tmp_path / "set" / "a_er.tif", CELLS[:1])
    assert "set: has none of the channels err; it has er" in message(
        tmp_path / "set", files="{sample}_{channel}.tif", channels=["err"]
    )
    assert "set/a_er.tif: is not called as 'files' says, {sample}-{channel}.tif" in message(
        tmp_path / "set", files="{sample}-{channel}.tif"
    )
    written(tmp_path / "set" / "a_rna.tif", CELLS[:1, :9])
    assert "its channels differ: uint16 (70, 90) and uint16 (9, 90)" in message(
        tmp_path / "set", files="{sample}_{channel}.tif"
    )


@pytest.mark.parametrize("layout", ["pages", "imagej", "planes", "colours"])
def test_a_folder_of_images_takes_no_tiff_of_which_pillow_reads_a_part(tmp_path: Path, layout: str) -> None:
    """It gave the first channel for grey, and mixed up the bytes of uncompressed colours of 16 bits."""
    options: dict[str, Any] = {
        "planes": {"planarconfig": "separate", "extrasamples": NONE, "compression": "zlib"},
        "colours": {"planarconfig": "separate", "photometric": "rgb"},
    }.get(layout, LAYOUTS.get(layout))
    path = written(tmp_path / "a.tif", CELLS[:3] if layout == "colours" else CELLS, **options)
    fault = {"planes": "5 channels that are no colours", "colours": "one colour after another"}.get(
        layout, "pages of one"
    )
    with pytest.raises(DecodeError, match=f"{fault}.*{{name: tiff, path: FOLDER}}"):
        decode(path.read_bytes(), 3)
    np.testing.assert_array_equal(Tiff(path).read(), (CELLS[:3] if layout == "colours" else CELLS).transpose(1, 2, 0))


def test_smaller_copies_and_masks_behind_an_image_do_not_matter(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(CELLS[0], photometric="minisblack")
        file.write(CELLS[0, ::2, ::2], photometric="minisblack")
        file.write(CELLS[0] > 30_000, photometric="mask", subfiletype=4)
    data = (tmp_path / "a.tif").read_bytes()
    np.testing.assert_array_equal(decode(data, 1)[0].numpy(), CELLS[0])
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        second = file.pages[1].offset
    np.testing.assert_array_equal(decode(data[: second + 9], 1)[0].numpy(), CELLS[0])


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="an older Pillow refuses such a file")
def test_grey_that_was_multiplied_by_its_alpha_is_grey(tmp_path: Path) -> None:
    """Pillow reads it in a mode of its own, which it cannot turn into grey at once."""
    grey = np.full((8, 8), 90, np.uint8)
    pixels = np.stack([grey, np.full_like(grey, 255)])
    data = written(tmp_path / "a.tif", pixels, planarconfig="contig", extrasamples=["assocalpha"]).read_bytes()
    assert header(data).grey
    np.testing.assert_array_equal(decode(data, 1)[0], grey)


@pytest.mark.parametrize("kind", ["colours", "bilevel"])
def test_of_several_photographs_or_scanned_pages_the_first_is_taken(tmp_path: Path, kind: str) -> None:
    """{name: tiff} reads neither, so that a refusal would leave no way."""
    first = CELLS[:3].transpose(1, 2, 0) // 257 if kind == "colours" else CELLS[0] > 30_000
    pages = [Image.fromarray(page.astype(np.uint8) if page.ndim == 3 else page) for page in (first, ~first)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    pixels = decode((tmp_path / "a.tif").read_bytes(), 3).permute(1, 2, 0)
    np.testing.assert_array_equal(pixels, first if kind == "colours" else 255 * np.repeat(first[..., None], 3, 2))


@pytest.mark.parametrize("nothing", ["-9999", "-3.4028234663852886e+38"])
def test_pixels_that_stand_for_no_data_are_no_pixels(tmp_path: Path, nothing: str) -> None:
    """Windows at the border of a scene were trained on with numbers of minus ten thousand, or 1e38."""
    pixels = np.random.default_rng(0).random((64, 64), np.float32)
    pixels[:8, :8] = np.float32(nothing)
    for value, kind in ((nothing, np.float32), ("0", np.float32), ("none", np.float32), ("200", np.uint8)):
        known = np.where(pixels < 0, 0, pixels) if kind is np.uint8 or value == "0" else pixels
        tifffile.imwrite(tmp_path / "a.tif", known.astype(kind), extratags=[(42113, "s", 0, value, True)])
        source = opened(tmp_path, window=32)
        if value != nothing:
            assert np.array_equal(source.read(0)[0][..., 0], known.astype(kind)[:32, :32])  # type: ignore[index, call-overload]
            continue
        with pytest.raises(
            DecodeError, match=r"pixels without data, which are -\S+ by the file's tag for GDAL; replace"
        ):
            source.read(0)
        assert np.array_equal(source.read(3)[0][..., 0], pixels[32:, 32:])  # type: ignore[index, call-overload]


def test_a_path_in_the_metadata_is_not_followed(tmp_path: Path) -> None:
    written(tmp_path / "secret.tif", np.full((1, 8, 8), 77, np.uint8))
    path = ome(tmp_path / "a" / "1.ome.tif", ["dapi", "er"])
    with tifffile.TiffFile(path) as file:
        text = file.ome_metadata
    lured = text.replace('<TiffData IFD="0" PlaneCount="2"/>', "").replace(
        "</Pixels>", '<TiffData FirstC="0" IFD="0"><UUID FileName="../secret.tif">urn:uuid:1</UUID></TiffData></Pixels>'
    )
    tifffile.imwrite(path, np.zeros((2, 8, 8), np.uint8), photometric="minisblack", description=lured, metadata=None)
    assert not Tiff(path).read().any()


def test_the_index_of_a_set_of_files_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.tif", CELLS[:1], metadata=None)
    (tmp_path / "NDTiff.index").touch()  # as beside a file of Micro-Manager's
    monkeypatch.setattr(tifffile.TiffFile, "is_ndtiff", True)
    monkeypatch.setattr("tifffile.tifffile.read_ndtiff_index", lambda _: pytest.fail("other files are opened"))
    np.testing.assert_array_equal(Tiff(path).read()[..., 0], CELLS[0])


@pytest.mark.parametrize("pages", [1, 150])
def test_pages_in_a_circle_are_damage(tmp_path: Path, pages: int) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as out:
        for _ in range(pages):
            out.write(CELLS[0, :8, :8], contiguous=False, metadata=None)
    with tifffile.TiffFile(path) as file:
        last, tiff = file.pages[-1], file.tiff
        end = last.offset + tiff.tagnosize + len(last.tags) * tiff.tagsize
    content = bytearray(path.read_bytes())
    content[end : end + 4] = last.offset.to_bytes(4, "little")
    path.write_bytes(content)
    command = f"from mrp.data.tifffiles import Tiff; from pathlib import Path; Tiff(Path({str(path)!r}))"
    done = python(command)
    assert "DecodeError: damaged: its pages follow each other in a circle" in done.stderr


def test_names_of_channels_are_looked_for_in_one_pass(tmp_path: Path) -> None:
    text = "<OME " + "<Channel " * 100_000 + '<Channel ID="0" Name="dapi"/></OME>'
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, CELLS[0, :8, :8], description=text, metadata=None)
    command = f"from mrp.data.tifffiles import Tiff; from pathlib import Path; print(Tiff(Path({str(path)!r})).names)"
    done = python(command)
    assert done.stdout.strip() == "('dapi',)"


def test_without_tifffile_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.tif")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ConfigError, match=r"a.tif: is read by tifffile; install it: pip install 'mrp-vit\[tiff\]'"):
        opened(path)
