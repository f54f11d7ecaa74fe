"""The damage matrix: what each kind of damage comes to. Nothing runs, and nothing is silently lost.

The same rows stand as a table in docs/damage.md; `test_the_table_in_the_documentation_is_this_one` compares them.
"""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mrp.cli import main
from mrp.config import ConfigError
from mrp.data import manifest
from mrp.data.augment import View
from mrp.data.config import CacheConfig, Config
from mrp.data.decode import DecodeError, decode
from mrp.data.index import RECORD, seal
from mrp.data.manifest import ManifestError, parse
from mrp.data.mixtures import order
from mrp.data.open import open_source
from mrp.data.quarantine import Quarantine
from mrp.data.shardtool import scan, tars
from mrp.data.shardtool.index import index
from mrp.data.shardtool.inspect import verify
from mrp.data.shardtool.scan import ShardError
from mrp.data.sources.shards import Config as ShardsConfig
from mrp.data.sources.shards import Source as Shards
from mrp.data.storage.cache import Cache
from mrp.data.storage.http import HttpStore
from mrp.data.storage.open import open_store
from mrp.data.storage.store import StorageError
from mrp.data.subset import select
from tests.data.conftest import SkippingClock, encoded, evaluated, jpeg, loaded, make, photographs_with, python, tar
from tests.servers import serving

Open = Callable[..., Shards]
DOCUMENT = Path(__file__).parents[2] / "docs" / "damage.md"


def whole(count: int = 4) -> list[tuple[str, bytes]]:
    names = [(f"s{number}", number) for number in range(count)]
    return [member for name, number in names for member in ((f"{name}.cls", b"1"), (f"{name}.jpg", jpeg(number)))]


def refused(path: Path) -> str:
    with pytest.raises(ShardError) as error:
        scan.scan(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# Tars, looked at when they are indexed.


def test_a_tar_cut_at_any_member_boundary_is_refused(tmp_path: Path) -> None:
    content = tar(tmp_path / "a.tar", whole()).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as found:
        cuts = [member.offset for member in found] + [found.offset]
    assert len(scan.scan(tmp_path / "a.tar").records) == 4
    for cut in cuts:
        (tmp_path / "cut.tar").write_bytes(content[:cut])
        assert "cut short" in refused(tmp_path / "cut.tar")


def test_a_tar_cut_inside_a_header_or_inside_data_is_refused(tmp_path: Path) -> None:
    content = tar(tmp_path / "a.tar", whole()).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as found:
        for member in found:
            for cut in (member.offset + 100, member.offset + 511, member.offset_data + 1):
                (tmp_path / "cut.tar").write_bytes(content[:cut])
                assert "cut short" in refused(tmp_path / "cut.tar")
                padded = content[:cut] + bytes(-cut % 512)  # as a file system that gives out whole blocks would
                (tmp_path / "cut.tar").write_bytes(padded)
                refused(tmp_path / "cut.tar")
    (tmp_path / "cut.tar").write_bytes(content[: member.offset_data + 1])
    assert "cut short: 's3.jpg' at byte" in refused(tmp_path / "cut.tar")
    (tmp_path / "cut.tar").write_bytes(content[: member.offset + 7])
    assert "the last whole sample before it is 's2'" in refused(tmp_path / "cut.tar")


def test_hidden_members_which_a_mac_adds_are_passed_over(tmp_path: Path) -> None:
    hidden = {"._s0.cls": b"", "._s0.jpg": b"\0\5\x16\7", "a/.DS_Store": b""}
    mixed = [member for pair in zip(hidden.items(), whole(), strict=False) for member in pair] + whole()[3:]
    found = scan.scan(tar(tmp_path / "a.tar", mixed))
    assert found.records["label"].tolist() == [1] * 4
    assert found.records["size"].tolist() == [len(jpeg(number)) for number in range(4)]
    tar(tmp_path / "._a.tar", {"x": b""})
    main(["shards", "index", str(tmp_path)])
    assert open_source(str(tmp_path), "train").shard_sizes.tolist() == [4]


def test_a_flipped_byte_anywhere_in_a_header_is_refused(tmp_path: Path) -> None:
    content = bytearray(tar(tmp_path / "a.tar", whole()).read_bytes())
    with tarfile.open(tmp_path / "a.tar") as found:
        third = found.getmembers()[3].offset
    for place in range(0, 500, 7):
        damaged = bytearray(content)
        damaged[third + place] ^= 0x10
        (tmp_path / "b.tar").write_bytes(damaged)
        assert f"the header at byte {third} is damaged" in refused(tmp_path / "b.tar")


def test_a_zeroed_header_is_not_the_end(tmp_path: Path) -> None:
    content = bytearray(tar(tmp_path / "a.tar", whole()).read_bytes())
    with tarfile.open(tmp_path / "a.tar") as found:
        third = found.getmembers()[4].offset
    content[third : third + 512] = bytes(512)
    (tmp_path / "b.tar").write_bytes(content)
    assert "end mark" in refused(tmp_path / "b.tar")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([m for m in whole() if m[0] != "s2.cls"], "sample 's2': its label is missing"),
        ([m for m in whole() if m[0] != "s0.cls"], "the samples before 's1' have no label"),
        ([m for m in whole() if m[0] != "s2.jpg"], "sample 's2': no image among its files (cls)"),
        ([*whole(), *whole(1)], "sample 's0': its key stands twice"),
        ([*whole(1), ("s0.jpg", jpeg(5))], "sample 's0': its key stands twice ('s0.jpg')"),
        ([("s0.cls", b"cat"), ("s0.jpg", jpeg(0))], "sample 's0': its label b'cat' is no number"),
        ([("../evil.jpg", jpeg(0))], "the name '../evil.jpg' is refused"),
        ([("/etc/evil.jpg", jpeg(0))], "the name '/etc/evil.jpg' is refused"),
        ([("a/../../evil.jpg", jpeg(0))], "the name 'a/../../evil.jpg' is refused"),
    ],
    ids=["missing label", "label from the second on", "missing image", "duplicate key", "duplicate member",
         "label no number", "parent folder", "absolute", "parent inside"],
)  # fmt: skip
def test_members_that_do_not_make_samples_are_named(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    assert refused(tar(tmp_path / "a.tar", members)).startswith(message)


def test_a_key_in_two_shards_is_named(tmp_path: Path) -> None:
    for name, count in (("a.tar", 4), ("b.tar", 2)):
        tar(tmp_path / name, whole(count))
    with pytest.raises(ConfigError, match=r"^b\.tar: sample 's[01]' has the key of one in a\.tar; keys stand once$"):
        index(open_store(str(tmp_path)), ["a.tar", "b.tar"], tmp_path / "out", "", None)
    assert not (tmp_path / "out").exists()


def test_same_base_names_in_two_folders_are_two_samples(tmp_path: Path) -> None:
    members = [("cat/1.jpg", jpeg(0)), ("dog/1.jpg", jpeg(1))]
    assert len(scan.scan(tar(tmp_path / "a.tar", members)).records) == 2


def test_a_link_in_a_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as out:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(info)
    assert "is a link or a device" in refused(tmp_path / "a.tar")


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0", "old"])
def test_a_sparse_member_is_refused(tmp_path: Path, version: str) -> None:
    """What is stored of it are the parts that are not zero, perhaps after a list of them: never the image."""
    info, headers = tarfile.TarInfo("s0.jpg"), {}
    if version == "old":
        info.type = tarfile.GNUTYPE_SPARSE
    elif version == "1.0":
        headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s0.jpg"}
        info.name = "GNUSparseFile.7/s0.jpg"
    else:
        headers = {"GNU.sparse.size": "9000", "GNU.sparse.numblocks": "1", "GNU.sparse.name": "s0.jpg"}
        info.name = "s0.jpg" if version == "0.0" else "GNUSparseFile.7/s0.jpg"
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as out:
        info.size, info.pax_headers = 600, headers
        out.addfile(info, io.BytesIO(jpeg(0)[:600]))
    assert refused(tmp_path / "a.tar").startswith("'s0.jpg' at byte ")
    assert refused(tmp_path / "a.tar").endswith("is stored as a sparse file; make the tar without --sparse")


def test_an_extended_header_for_all_members_may_not_say_what_they_are(tmp_path: Path) -> None:
    for said, sound in ({"comment": "x"}, True), ({"size": "1"}, False), ({"path": "x"}, False):
        tar(tmp_path / "a.tar", whole(), format=tarfile.PAX_FORMAT, pax_headers=said)
        if sound:
            assert len(scan.scan(tmp_path / "a.tar").records) == 4
        else:
            assert f"gives every member the same {next(iter(said))}" in refused(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", ["octal", "binary", "pax"])
def test_a_member_of_many_gigabytes_is_passed_over_and_an_image_of_that_size_is_refused(
    tmp_path: Path, kind: str
) -> None:
    """A file with a hole: nothing of that size is written, or read."""
    giant = (5 if kind == "octal" else 9) << 30  # 8 GiB are the most that eleven octal digits can say
    form = tarfile.PAX_FORMAT if kind == "pax" else tarfile.GNU_FORMAT

    def put(file: Any, name: str, size: int) -> None:
        info = tarfile.TarInfo(name)
        info.size = size
        file.write(info.tobuf(form))

    def made(giants_name: str) -> Path:
        with (tmp_path / "a.tar").open("wb") as file:
            for name, content in whole(1):
                put(file, name, len(content))
                file.write(content + bytes(-len(content) % 512))
            put(file, giants_name, giant)
            file.seek(giant, 1)
            if giants_name != "s1.cls":
                put(file, "s1.cls", 1)
                file.write(b"1" + bytes(511))
            put(file, "s1.jpg", len(jpeg(1)))
            file.write(jpeg(1) + bytes(-len(jpeg(1)) % 512 + 1024))
        return tmp_path / "a.tar"

    path = made("s0.bin")
    records = scan.scan(path).records
    assert records["offset"][1] > giant
    with path.open("rb") as file:
        for number, record in enumerate(records):
            assert os.pread(file.fileno(), int(record["size"]), int(record["offset"])) == jpeg(number)
    assert refused(made("s9.jpg")).startswith(f"sample 's9': its image has {giant} bytes")
    assert refused(made("s1.cls")) == f"sample 's1': its label has {giant} bytes, and is no number"


def test_a_size_in_an_extended_header_is_that_of_the_member_alone() -> None:
    """And not that of the long name that comes between them."""
    extended, named = tarfile.TarInfo("x"), tarfile.TarInfo(f"{'n' * 150}.jpg")
    extended.pax_headers, named.size = {"size": "5"}, 5
    head = extended.tobuf(tarfile.PAX_FORMAT)[:-512] + named.tobuf(tarfile.GNU_FORMAT)
    content = head + b"bytes" + bytes(507 + 1024)
    (found,) = tars.members(lambda size, start: content[start : start + size], len(content))
    assert found == tars.Member(named.name, len(head), 5)


def test_a_long_extended_header_is_read_once() -> None:
    """A mebibyte of 16,384 records: what was cut off to read them came to eight gibibytes."""

    class Counted(bytes):
        copied = 0

        def noted(self, content: bytes) -> bytes:
            Counted.copied += len(content)
            return Counted(content)

        def __getitem__(self, place: Any) -> Any:
            return self.noted(super().__getitem__(place)) if isinstance(place, slice) else super().__getitem__(place)

        def partition(self, separator: Any) -> Any:
            return tuple(map(self.noted, super().partition(separator)))

        def strip(self, *what: Any) -> bytes:
            return self.noted(super().strip(*what))

        def rstrip(self, *what: Any) -> bytes:
            return self.noted(super().rstrip(*what))

    records = b"".join(b"64 key%05d=%s\n" % (number, b"x" * 51) for number in range(1 << 14))
    assert len(records) == 1 << 20
    found = tars._pax(Counted(records), 0)
    assert (len(found), found["key16383"]) == (1 << 14, "x" * 51)
    assert Counted.copied <= 4 << 20


@pytest.mark.parametrize("records", [b"7 a=bc\n8 a=bc\n", b"7 a=bc ", b"99 a=b\n", b"0 a=b\n", b"a=b\n", b"\xb2 a=b\n"])
def test_a_damaged_extended_header_is_refused(records: bytes) -> None:
    with pytest.raises(tars.TarError, match="the extended header at byte 512 is damaged"):
        tars._pax(records, 512)
    assert tars._pax(b"7 a=bc\n6 d=e\n\0\0", 0) == {"a": "bc", "d": "e"}


def test_a_pickle_in_a_tar_is_never_opened(tmp_path: Path) -> None:
    """What webdataset's usual decoding would run: a member that makes a file when it is unpickled."""
    mark = tmp_path / "ran"
    evil = b"cposix\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    members = [("s0.jpg", jpeg(0)), ("s0.pyd", evil), ("s0.cls", b"0"), ("s0.pickle", evil)]
    tar(tmp_path / "a.tar", members)
    made = index(open_store(str(tmp_path)), ["a.tar"], tmp_path, "", None)
    assert made.notes["passed over: .pyd"] == made.notes["passed over: .pickle"] == 1
    source = open_source(str(tmp_path), "train")
    assert source.read(0) == (jpeg(0), 0)
    assert not mark.exists()


@pytest.mark.parametrize("place", ["pipe:touch ran", "pipe:cat x |", "file:///etc", "ftp://host/x", "data://x"])
def test_an_address_is_never_a_command(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for attempt in (open_store, lambda place: open_source(place, "train")):
        with pytest.raises(ConfigError, match=r"commands are not run|is unknown; give a folder"):
            attempt(place)
    assert not list(tmp_path.iterdir())


# Images inside sound shards.


def shards_of(tmp_path: Path, odd: bytes, ending: str = "jpg") -> Path:
    """Eleven good images and an odd one, as sample 5."""
    make(photographs_with(tmp_path / "images", {5: odd}, ending), tmp_path / "shards", seed=None, shard_size=6)
    return tmp_path / "shards"


def train(place: Path, quarantine: Quarantine, workers: int = 0, steps: tuple[int, int] = (0, 2)) -> torch.Tensor:
    config = Config(train=str(place), size=16)
    source = open_source(str(place), "train")
    options = {"workers": workers, "quarantine": quarantine}
    loader = loaded(source, View(config, True), order(source, config, 6, 0), **options)
    images = torch.cat([batch.images for batches in loader.steps(*steps) for batch in batches])
    loader.close()
    return images


def mid_scan(data: bytes) -> bytes:
    middle = len(data) * 2 // 3
    return data[:middle] + bytes(200) + data[middle + 200 :]


@pytest.mark.parametrize(
    ("odd", "fault"),
    [
        (b"", "a file without content"),
        (jpeg(5, (200, 200))[:-4000], "damaged JPEG"),
        (mid_scan(jpeg(5, (200, 200))), "damaged JPEG"),
        (b"<html>not found</html>", "not an image that can be read"),
    ],
    ids=["zero bytes", "truncated", "zeroed mid-scan", "no image"],
)
def test_an_intact_sample_that_is_no_image_is_replaced_alike_and_written_down(
    tmp_path: Path, odd: bytes, fault: str
) -> None:
    place = shards_of(tmp_path, odd)
    first, again, in_workers = Quarantine(), Quarantine(), Quarantine()
    images = train(place, first)
    assert images.any(dim=(1, 2, 3)).all()
    assert torch.equal(images, train(place, again))
    assert torch.equal(images, train(place, in_workers, workers=2))
    (bad,) = first.state()
    assert first.state() == again.state() == in_workers.state()
    assert (bad.sample, fault in bad.fault) == (5, True)
    assert "shard-000000.tar: sample 5 (byte " in bad.where
    # A resumed run does not try it again, and replaces it by the same one.
    resumed = Quarantine(state=json.loads(json.dumps(first.state())))
    assert torch.equal(images[6:], train(place, resumed, steps=(1, 2)))
    assert resumed.state() == first.state()
    first.write(tmp_path)
    resumed.write(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert lines == [{"sample": 5, "where": bad.where, "fault": bad.fault}]
    with pytest.raises(ConfigError, match=r"data\.damaged: 1 samples are no images, and 0 are allowed: .*sample 5"):
        train(place, Quarantine(limit=0))


def test_evaluation_replaces_nothing(tmp_path: Path) -> None:
    place = shards_of(tmp_path, b"")
    source = open_source(str(place), "test")
    view = View(Config(train=str(place), size=16), False)
    with pytest.raises(
        ConfigError, match=r"sample 5 \(byte \d+\): a file without content; mend it under the same name and run again"
    ):
        list(evaluated(source, view, 4))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_that_would_exhaust_the_memory_is_refused_before_it_is_decoded(tmp_path: Path, kind: str) -> None:
    """17 kB, and evaluation would enlarge the side of one pixel to 256, the other to 16,768,000."""
    place = shards_of(tmp_path, encoded(Image.new("RGB", (65500, 1)), kind))
    quarantine = Quarantine()
    assert train(place, quarantine).any(dim=(1, 2, 3)).all()
    (bad,) = quarantine.state()
    assert bad.fault == "65500 x 1 pixels: one side is over 100 times the other; crop the image"
    view = View(Config(train=str(place), size=224), False)
    with pytest.raises(ConfigError, match=r"sample 5 \(byte \d+\): 65500 x 1 pixels: one side is over 100 times"):
        list(evaluated(open_source(str(place), "test"), view, 4))


def test_memory_that_is_lacking_is_one_line(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch raises RuntimeError where it finds no memory, and Python MemoryError."""
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):

        def failing(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(View, "decoded", failing)
        with pytest.raises(ConfigError, match=r"machine\.workers: there is no memory left to decode images in"):
            train(made, Quarantine())


@pytest.mark.parametrize("size", [1, 12])
def test_a_shard_without_any_image_stops(tmp_path: Path, size: int) -> None:
    none = photographs_with(tmp_path / "images", dict.fromkeys(range(12), b""))
    make(none, tmp_path / "shards", seed=None, shard_size=size)
    with pytest.raises(ConfigError, match="no sample of its shard is an image"):
        train(tmp_path / "shards", Quarantine())


TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # by 90 degrees


def noise(mode: str, kind: str, **options: object) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    return encoded(Image.fromarray(values).convert(mode), kind, **options)


@pytest.mark.parametrize(
    ("odd", "ending", "note"),
    [
        (noise("CMYK", "JPEG"), "jpg", "recovered: CMYK"),
        (noise("CMYK", "JPEG").replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\2"), "jpg", "recovered: CMYK"),
        (noise("L", "JPEG"), "jpg", "grey"),
        (noise("RGB", "PNG"), "jpg", "recovered: png named jpg"),
        (noise("RGB", "JPEG", exif=TURNED), "jpg", ""),
    ],
    ids=["CMYK", "YCCK", "grey", "PNG named JPEG", "EXIF-rotated"],
)  # fmt: skip
def test_odd_images_are_read_and_counted(tmp_path: Path, odd: bytes, ending: str, note: str) -> None:
    place = shards_of(tmp_path, odd, ending)
    quarantine = Quarantine()
    train(place, quarantine)
    assert not quarantine.state()
    notes = manifest.parse((place / "manifest.json").read_bytes()).notes
    assert not note or notes[note] == 1
    assert open_source(str(place), "train").read(5)[0] == odd


def without_its_last_scan(data: bytes) -> bytes:
    """The file ends as a whole one does, where its last scan began."""
    return data[: data.rindex(b"\xff\xda")] + b"\xff\xd9"


def test_a_progressive_jpeg_without_its_last_scan_is_damaged(tmp_path: Path) -> None:
    """A decoder shows what the other scans hold, blurred or coarse, and says nothing."""
    data = jpeg(5, (200, 200), progressive=True)
    place = shards_of(tmp_path, without_its_last_scan(data))
    quarantine = Quarantine()
    train(place, quarantine)
    (bad,) = quarantine.state()
    assert (bad.sample, bad.fault) == (5, "damaged JPEG: it ends before its last scan")
    assert decode(data, 3).shape == (3, 200, 200)
    while data.count(b"\xff\xda") > 1:
        data = without_its_last_scan(data)
        with pytest.raises(DecodeError, match="it ends before its last scan"):
            decode(data, 3)


def tiff(values: Any, **tags: int) -> bytes:
    """A grey TIFF without compression, with whatever its tags claim."""
    data = values.tobytes()
    height, width = values.shape
    known = {"width": (256, width), "height": (257, height), "bits": (258, values.itemsize * 8), "packed": (259, 1),
             "zero": (262, 1), "start": (273, 8), "channels": (277, 1), "rows": (278, height),
             "bytes": (279, len(data)), "format": (339, {"u": 1, "i": 2, "f": 3}[values.dtype.kind])}  # fmt: skip
    entries = sorted((tag, tags.get(name, value)) for name, (tag, value) in known.items())
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory + bytes(4)


GREY = np.arange(24 * 20).reshape(24, 20) % 256


@pytest.mark.parametrize(
    ("odd", "fault"),
    [
        (tiff(GREY.astype("<i4")), "pixels of 32 bits"),
        (tiff(GREY.astype("<u4")), "pixels of 32 bits"),
        (tiff(GREY.astype("<f4")), "floating-point pixels"),
        (tiff(GREY.astype("<i2")), "pixels with a sign"),
        (tiff(GREY.astype("u1")[:, :12], width=8, bits=12), "pixels of 12 bits"),
        (tiff(GREY.astype("<u2"), zero=0), "pixels of 16 bits in which 0 is white"),
    ],
    ids=["32 bits", "32 bits without a sign", "float", "16 bits with a sign", "12 bits", "a negative"],
)
def test_a_tiff_whose_range_cannot_be_known_is_refused(tmp_path: Path, odd: bytes, fault: str) -> None:
    """Their values would all fit into 16 bits, and be shown dark, or as a negative."""
    place = shards_of(tmp_path, odd, "tif")
    (noted,) = [note for note in parse((place / "manifest.json").read_bytes()).notes if note.startswith("unreadable: ")]
    whole_fault = f"{fault}; save the image with 8 or 16 bits per channel, without a sign, 0 for black"
    assert noted.endswith(f" ({whole_fault})")
    quarantine = Quarantine()
    train(place, quarantine)
    assert [(bad.sample, bad.fault) for bad in quarantine.state()] == [(5, whole_fault)]
    deep = tiff((GREY * 256).astype("<u2"))
    assert (decode(deep, 1).int()[0].numpy() == GREY * 256).all()


# Shards that change after they were indexed.


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_flipped_data_byte_is_a_fault_of_the_storage(made: Path, tmp_path: Path, opened: Open) -> None:
    place = Path(shutil.copytree(made, tmp_path / "copy"))
    source = opened(place)
    record = source.index[3]
    flip(place / "shard-000000.tar", int(record["offset"]) + 10)
    with pytest.raises(StorageError) as error:
        source.read(3)
    assert str(error.value).startswith(f"{place}/shard-000000.tar: the bytes from {record['offset']} on are not those")
    source.read(4)
    with pytest.raises(ConfigError, match="are not those that were indexed"):
        train(place, Quarantine(), steps=(0, 10))


def test_a_shard_that_is_missing_or_short_is_named(made: Path, tmp_path: Path, opened: Open) -> None:
    place = Path(shutil.copytree(made, tmp_path / "copy"))
    os.truncate(place / "shard-000001.tar", 2048)
    source = opened(place)
    with pytest.raises(StorageError, match=r"shard-000001\.tar: has 2048 bytes and not \d+; put back the whole shard"):
        source.read(8)
    (place / "shard-000002.tar").unlink()
    with pytest.raises(StorageError, match=r"shard-000002\.tar: the shard is missing; put it back"):
        opened(place)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"count": 8', '"count": 9', "it was edited or damaged"),
        ('"name": "shard-000000.tar"', '"name": "../../etc/passwd"', "it was edited or damaged"),
        ('"format": "mrp-shards"', '"format": "other"', "not a manifest"),
        ('"version": 1', '"version": 2', "made for version 2"),
        ("{", "", "not valid JSON"),
    ],
)
def test_an_edited_manifest_is_refused(
    made: Path, tmp_path: Path, opened: Open, old: str, new: str, message: str
) -> None:
    place = Path(shutil.copytree(made, tmp_path / "copy"))
    text = (place / "manifest.json").read_text()
    assert old in text
    (place / "manifest.json").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=rf"manifest\.json: .*{message}.*; make it anew with 'mrp shards index'"):
        opened(place)


def test_a_manifest_sealed_around_a_bad_name_is_refused_too() -> None:
    for name in ("../x.tar", "/x.tar", "a/../../x.tar", "pipe:x", "x|y.tar", "-x.tar", "a\\..\\x.tar"):
        text = manifest.Manifest((manifest.Shard(name, 1, "0" * 64, 1),), "0" * 64).dump()
        with pytest.raises(ManifestError, match="could lead out of its folder"):
            parse(text.encode())


def test_an_index_that_was_changed_is_refused(made: Path, tmp_path: Path, opened: Open) -> None:
    place = Path(shutil.copytree(made, tmp_path / "copy"))
    flip(place / "index.bin", 40)
    with pytest.raises(ConfigError, match=r"index\.bin is damaged"):
        opened(place)
    os.truncate(place / "index.bin", 64)
    with pytest.raises(ConfigError, match=r"index\.bin: 64 bytes where 1920 are expected for 60 samples"):
        opened(place)


def test_a_remote_index_is_compared_with_its_hash_whenever_it_is_opened(made: Path, opened: Open) -> None:
    """One flipped bit in every record's label, and the size is right: 60 of 60 labels would be wrong."""
    with serving(made) as server:
        first = opened(server.url)
        right = [first.read(number)[1] for number in range(60)]
        (path,) = first.cache.folder.glob("*.index")
        for number in range(60):
            flip(path, number * RECORD.itemsize + 20)
        again = opened(server.url)
        assert [again.read(number)[1] for number in range(60)] == right
        assert server.seen["index.bin"] == 2


@pytest.mark.parametrize("remote", [False, True])
def test_a_large_index_is_checked_chunk_by_chunk(
    photographs: Path, tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    for module in ("index", "sources.shards"):
        monkeypatch.setattr(f"mrp.data.{module}.SMALL", 1000)
    monkeypatch.setattr("mrp.data.index._CHUNK", 10 * RECORD.itemsize)
    made = tmp_path / "made"
    make(photographs, made)
    assert (made / "index.sha256").stat().st_size == 6 * 32
    with serving(made) as server:
        place: Any = server.url if remote else made
        source = opened(place)
        folder = source.cache.folder if remote else made
        (path,) = [path for path in (*folder.glob("*.index"), *folder.glob("index.bin")) if path.stat().st_size == 1920]
        flip(path, 45 * RECORD.itemsize + 20)
        source = pickle.loads(pickle.dumps(opened(place)))
        assert source.read(39)[1] in (0, 1, 2)
        with pytest.raises(ConfigError, match=r": is damaged after byte 1280; put it back"):
            source.read(44)
        with pytest.raises(ConfigError, match=r": is damaged after byte 1280; put it back"):
            _ = opened(place).labels
    flip(made / "index.sha256", 3)
    with pytest.raises(ConfigError, match=r"index\.sha256 is damaged"):
        opened(made)


# Servers.


@pytest.mark.parametrize("fault", ["500", "503", "429", "cut", "drop", "shifted"])
def test_what_passes_is_tried_again(made: Path, opened: Open, fault: str) -> None:
    local = open_source(str(made), "train")
    with serving(made) as server:
        server.faults = [fault]
        source = opened(server.url)
        server.faults = [fault, fault]
        assert [source.read(number) for number in range(8)] == [local.read(number) for number in range(8)]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("404", r"the server answers 404 \(Not Found\); check the address"),
        ("403", r"the server answers 403 .*right to read, still after 100 seconds"),
        ("ignored", r"the server ignores ranges \(status 200\)"),
        ("gzip", r"the server sends it compressed \(gzip\)"),
        ("500", r"the server answers 500 .*, still after 100 seconds"),
        ("503", r"the server answers 503 .*, still after 100 seconds"),
        ("cut", r"cut short|the connection broke"),
        ("shifted", r"the server sends 'bytes 1-\d+/\d+' where bytes 0 to"),
        ("flip", r"its sha256 is [0-9a-f]{12}\.\.\., not [0-9a-f]{12}\.\.\. as the manifest says, in two fetches"),
    ],
)
def test_what_lasts_stops_the_job_and_is_never_a_bad_sample(made: Path, opened: Open, fault: str, message: str) -> None:
    with serving(made) as server:
        source = opened(server.url)
        server.always = fault
        with pytest.raises(StorageError, match=rf"{server.url}/shard-000000\.tar: .*({message})"):
            source.read(0)
        server.always = ""
        assert zlib.crc32(source.read(0)[0]) == source.index[0]["crc32"]


def test_a_server_that_stalls_is_given_up(made: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrp.data.storage.http.STALL", 2.0)
    with serving(made) as server:
        source = opened(server.url)
        server.always = "stall"
        with monkeypatch.context() as patch:
            patch.setattr("mrp.data.storage.store._FIRST_WAIT", 1000.0)  # there is no time for a second try
            with pytest.raises(StorageError, match=r"shard-000000\.tar: the connection broke after 1 of \d+ bytes"):
                source.read(0)
        server.always, server.faults = "", ["stall"]
        source.read(0)


@pytest.mark.parametrize("fault", ["drip", "continue"])
def test_an_answer_that_never_ends_is_ended_at_the_deadline(made: Path, fault: str) -> None:
    """Each byte would start the socket's own timeout anew."""
    with serving(made) as server:
        server.always = fault
        with pytest.raises(StorageError, match=r"the answer did not come in time, still after 0\.5 seconds"):
            HttpStore(server.url, 0.5).read("index.bin", 0, 32)
        server.always, server.faults = "", []
        assert len(HttpStore(server.url, 30).read("index.bin", 0, 32)) == 32


def test_a_server_that_asks_to_wait_is_obeyed(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SkippingClock()
    monkeypatch.setattr("mrp.data.storage.store.time", clock)
    with serving(made) as server:
        server.faults = ["later", "later"]
        assert len(HttpStore(server.url, 60).read("index.bin", 0, 32)) == 32
        assert 14 <= clock.skipped < 20
        server.always = "later"
        with pytest.raises(StorageError, match=r"answers 503 .*\(it asks to wait 7 seconds\), still after 5 seconds"):
            HttpStore(server.url, 5).read("index.bin", 0, 32)


def test_odd_answers_of_a_server_are_one_line(made: Path) -> None:
    with serving(made) as server:
        store = HttpStore(server.url, 5)
        server.always = "circle"
        with pytest.raises(StorageError, match=r"sends the request on without end, or to no web address") as error:
            store.read("index.bin", 0, 32)
        assert "\n" not in str(error.value)
        for length in ("\xb2", "-1", "1.5", "9" * 5000, "1, 1"):
            server.length = length
            with pytest.raises(StorageError, match="does not say how long it is"):
                store.size("index.bin")
    for address in ("http://[::1", "http://[x]"):
        with pytest.raises(StorageError, match="is no web address"):
            HttpStore(address, 5).size("index.bin")


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000])
def test_a_manifest_of_a_hundred_thousand_brackets_is_refused(text: bytes) -> None:
    with pytest.raises(ManifestError, match="not valid JSON"):
        parse(text)


def test_a_manifest_with_a_shard_twice_is_refused() -> None:
    shard = manifest.Shard("a.tar", 1, "0" * 64, 1)
    with pytest.raises(ManifestError, match=r"the shard 'a\.tar' is named twice"):
        parse(manifest.Manifest((shard, shard), "0" * 64).dump().encode())


@pytest.mark.parametrize(("field", "value"), [("offset", 2**63), ("offset", 2**64 - 1), ("shard", 99), ("size", 2**31)])
def test_a_record_that_points_outside_of_its_shard_is_named(
    made: Path, tmp_path: Path, opened: Open, field: str, value: int
) -> None:
    """Sealed by whoever made it, and wrong."""
    place = Path(shutil.copytree(made, tmp_path / "copy"))
    reseal(place, field, value)
    source = opened(place)
    with pytest.raises(StorageError, match=r"index\.bin: sample 3 is not inside a shard .*; make the index anew"):
        source.read(3)
    (fault,) = verify(place, 60, lambda *_: None)
    assert fault.startswith(f"{place}/index.bin: sample 3 is not inside a shard (shard ")


def reseal(place: Path, field: str, value: int) -> None:
    records = np.fromfile(place / "index.bin", RECORD)
    records[field][3] = value
    before = parse((place / "manifest.json").read_bytes())
    records.tofile(place / "index.bin")
    sha256, _ = seal(place / "index.bin")
    (place / "manifest.json").write_text(dataclasses.replace(before, index_sha256=sha256).dump())


def test_a_label_outside_of_the_classes_is_named(made: Path, tmp_path: Path, opened: Open) -> None:
    place = Path(shutil.copytree(made, tmp_path / "copy"))
    reseal(place, "label", 3)
    wanted = r"sample 3 \(byte \d+\): has the label 3, and 3 classes have the labels 0 to 2"
    with pytest.raises(ConfigError, match=wanted):
        train(place, Quarantine(), steps=(0, 10))
    (tmp_path / "classes.txt").write_text("a\nc\n")
    with pytest.raises(ConfigError, match="there is a label outside of the 3 classes"):
        select(opened(place), "data.train", str(tmp_path / "classes.txt"), None)


@pytest.mark.parametrize(
    ("classes", "wanted"),
    [(None, "is not below 1,000,000, the number of classes"), (("a", "b"), "is not below 2, the number of classes")],
)
def test_a_label_beyond_all_classes_is_refused_without_a_list_of_them(
    tmp_path: Path, classes: tuple[str, ...] | None, wanted: str
) -> None:
    """A thousand million names of classes would be made of it."""
    path = tar(tmp_path / "a.tar", [*whole(1), ("s9.cls", b"999999999"), ("s9.jpg", jpeg(9))])
    with pytest.raises(ConfigError, match=rf"a\.tar: sample 's9': its label 999999999 {wanted}"):
        index(open_store(str(path.parent)), ["a.tar"], tmp_path / "out", "", classes)
    assert not (tmp_path / "out").exists()


def test_a_shard_that_is_named_twice_is_indexed_once(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", whole())
    with pytest.raises(ConfigError, match=r"a\.tar: the shard is named twice"):
        index(open_store(str(path.parent)), ["a.tar", "a.tar"], tmp_path, "", None)


# The node's cache.


def test_a_shard_that_is_cut_in_the_cache_while_it_is_open_is_fetched_again(made: Path, opened: Open) -> None:
    with serving(made) as server:
        source = opened(server.url)
        right = [source.read(number) for number in range(8)]
        name, sha256 = source.manifest.shards[0].name, source.manifest.shards[0].sha256
        os.truncate(source.cache.folder / sha256, 1000)
        assert [source.read(number) for number in range(8)] == right
        assert server.seen[name] == 2


def test_what_killed_fetches_have_left_is_removed_and_what_is_being_fetched_counts(made: Path, opened: Open) -> None:
    with serving(made) as server:
        source = opened(server.url)
        folder, size = source.cache.folder, source.manifest.shards[0].bytes
        abandoned, running = (folder / f".{letter * 64}.unfinished" for letter in "ab")
        for path in (abandoned, running):
            path.write_bytes(bytes(10 * size))
        with (folder / f".{'b' * 64}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            tight = opened(server.url, gib=11.5 * size / 2**30)
            tight.read(0)
            assert (abandoned.exists(), running.exists()) == (False, True)
            with pytest.raises(ConfigError, match=r"has no room for shard-00000\d\.tar"):
                opened(server.url, gib=10.5 * size / 2**30).read(8)
        opened(server.url, gib=11.5 * size / 2**30).read(8)
        assert not running.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user")
def test_a_complete_cache_of_another_user_is_read_and_an_incomplete_one_is_one_line(made: Path, tmp_path: Path) -> None:
    """`os.utime` is for the owner alone, and so is writing."""
    code = (
        "import encodings.idna, os, sys\n"
        "from mrp.data.config import CacheConfig\n"
        "from mrp.data.sources.shards import Config, Source\n"
        "from mrp.data.storage.cache import Cache\n"
        "from mrp.config import ConfigError\n"
        "from mrp.data.storage import http\n"
        "os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
        "source = Source(Config(path=sys.argv[1]), 'train', Cache(CacheConfig(folder=sys.argv[2])))\n"
        "print(len(source.read(0)[0]))\n"
        "try: source.read(59)\n"
        "except ConfigError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory() as shared, serving(made) as server:
        folder = Path(shared) / "cache"
        source = Shards(ShardsConfig(path=server.url), "train", Cache(CacheConfig(folder=str(folder))))
        first = source.read(0)[0]
        os.chmod(shared, 0o755)
        done = python(code, server.url, folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            str(len(first)),
            f"{folder}: cannot be written: Permission denied; set machine.cache.folder to a disk with space",
        ]
        os.chmod(folder, 0o777)  # two users who may both write share it
        done = python(code, server.url, folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [str(len(first))]


def test_a_damaged_file_in_the_cache_is_fetched_again(made: Path, opened: Open) -> None:
    with serving(made) as server:
        source = opened(server.url)
        first = source.read(0)
        entry = source.manifest.shards[0]
        flip(source.cache.folder / entry.sha256, int(source.index[0]["offset"]) + 3)
        assert opened(server.url).read(0) == first
        assert server.seen[entry.name] == 2
        # But a shard whose own content does not fit its index is fatal.
        source.index[0]
        flip(source.cache.folder / entry.sha256, int(source.index[0]["offset"]) + 3)
        server.always = "404"
        with pytest.raises(StorageError, match="404"):
            opened(server.url).read(0)


def test_a_missing_shard_on_a_server_is_named(made: Path, tmp_path: Path, opened: Open) -> None:
    place = Path(shutil.copytree(made, tmp_path / "copy"))
    (place / "shard-000003.tar").unlink()
    with serving(place) as server:
        source = opened(server.url)
        with pytest.raises(StorageError, match=rf"{server.url}/shard-000003\.tar: the server answers 404"):
            source.read(24)


def rows() -> list[str]:
    """The tests of this file, as the documentation's table names them."""
    return [name for name in globals() if name.startswith("test_") and "documentation" not in name]


@pytest.mark.skipif(not DOCUMENT.is_file(), reason="an installed package has no documentation")
def test_the_table_in_the_documentation_is_this_one() -> None:
    text = DOCUMENT.read_text()
    missing = [name for name in rows() if f"`{name.removeprefix('test_')}`" not in text]
    assert not missing, f"give these a row in {DOCUMENT.name}: {missing}"
