"""Shards: written by webdataset's writer and read by any webdataset, made by several processes, and gone on with."""

from __future__ import annotations

import errno
import gc
import hashlib
import io
import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mrp.cli import main
from mrp.config import ConfigError
from mrp.data import manifest
from mrp.data.augment import View, resize
from mrp.data.config import CacheConfig, Config
from mrp.data.decode import decode
from mrp.data.index import RECORD, Index
from mrp.data.manifest import Manifest, Shard, parse
from mrp.data.open import open_source
from mrp.data.order import Order
from mrp.data.shardtool import scan
from mrp.data.shardtool.build import Options, Plan, build
from mrp.data.shardtool.index import index
from mrp.data.shardtool.inspect import verify
from mrp.data.shardtool.statistics import moments, sums_of
from mrp.data.sources.shards import Config as ShardsConfig
from mrp.data.sources.shards import Source as Shards
from mrp.data.storage.cache import Cache, Prefetch
from mrp.data.storage.descriptors import OpenFiles, _allowed
from mrp.data.storage.open import open_store
from tests.data.conftest import encoded, jpeg, loaded, make, python
from tests.servers import serving
from tests.waiting import LONG

Open = Callable[..., Shards]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_image_is_in_the_shards_as_it_was(photographs: Path, made: Path) -> None:
    folder, source = open_source(str(photographs), "train"), open_source(str(made), "train")
    assert isinstance(source, Shards)
    assert len(source) == len(folder) == 60
    assert source.classes == folder.classes
    assert source.shard_sizes.tolist() == [8] * 7 + [4]
    assert sorted(source.read(n) for n in range(60)) == sorted(folder.read(n) for n in range(60))
    assert [source.read(n)[1] for n in range(60)] == source.labels.tolist()
    assert source.where(9).startswith(f"{made}/shard-000001.tar: sample 9 (byte ")
    assert [source.replacement(n) for n in (0, 7, 8, 58, 59)] == [1, 0, 9, 59, 56]
    records = source.index.mapped()
    assert set(zip(records["width"].tolist(), records["height"].tolist(), strict=True)) == {(20, 24)}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
def test_a_stock_webdataset_reads_our_shards(made: Path) -> None:
    names = sorted(str(path) for path in made.glob("*.tar"))
    found = list(webdataset.WebDataset(names, shardshuffle=False).decode("rgb").to_tuple("jpg", "cls"))
    source = open_source(str(made), "train")
    assert [int(label) for _, label in found] == [source.read(n)[1] for n in range(60)]
    for number, (image, _) in enumerate(found):
        data = source.read(number)[0]
        assert isinstance(data, bytes)
        np.testing.assert_array_equal(image, np.array(Image.open(io.BytesIO(data)), np.float32) / 255)
    gc.collect()


def test_we_read_shards_written_by_webdataset_alone(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "theirs-%04d.tar"), maxcount=7, verbose=0) as writer:
        for number in range(30):
            writer.write({"__key__": f"some/key{number:04}", "jpg": jpeg(number), "cls": number % 4, "json": {"a": 1}})
    names = sorted(path.name for path in tmp_path.glob("*.tar"))
    index(open_store(str(tmp_path)), names, tmp_path, "", ("a", "b", "c", "d"))
    source = open_source(str(tmp_path), "train")
    assert [source.read(n) for n in range(30)] == [(jpeg(n), n % 4) for n in range(30)]
    assert source.classes == ("a", "b", "c", "d")


def test_shards_elsewhere_are_found_through_their_manifest(made: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in made.glob("*.tar"))
    index(open_store(str(made)), names, tmp_path, str(made), ("a", "b", "c"))
    source, here = open_source(str(tmp_path), "train"), open_source(str(made), "train")
    assert source.identity == here.identity
    assert source.read(11) == here.read(11)


def test_several_processes_make_the_same_bytes(photographs: Path, made: Path, tmp_path: Path) -> None:
    make(photographs, tmp_path / "two", workers=2)
    assert content(tmp_path / "two") == content(made)


def test_seed_and_order_are_options(photographs: Path, made: Path, tmp_path: Path) -> None:
    make(photographs, tmp_path / "kept", seed=None)
    make(photographs, tmp_path / "other", seed=5)
    kept, other = (open_source(str(tmp_path / name), "train") for name in ("kept", "other"))
    folder = open_source(str(photographs), "train")
    assert [kept.read(n) for n in range(60)] == [folder.read(n) for n in range(60)]
    assert len({kept.identity, other.identity, open_source(str(made), "train").identity}) == 3


class _Killed(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 5, 7])
def test_an_interrupted_build_goes_on_and_leaves_no_half_shard(
    photographs: Path, made: Path, tmp_path: Path, after: int
) -> None:
    plan = Plan(open_source(str(photographs), "train"), Options(shard_size=8), tmp_path / "out")

    def stop(done: int, total: int) -> None:
        if done == after:
            raise _Killed

    with pytest.raises(_Killed):
        build(plan, 1, stop)
    sound = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.tar")}
    assert len(sound) == after
    assert all(found == (made / name).read_bytes() for name, found in sound.items())
    # What a kill in the middle of a shard leaves: a file under another name, or a shard that nobody noted.
    (tmp_path / "out" / ".shard-000007.tar.unfinished").write_bytes(b"half")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    (tmp_path / "out" / "shard-000007.tar").write_bytes(b"half") if after < 7 else None
    build(plan, 1, lambda done, total: None)
    assert content(tmp_path / "out") == content(made)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_another_build_is_not_gone_on_with(photographs: Path, tmp_path: Path) -> None:
    source = open_source(str(photographs), "train")
    with pytest.raises(_Killed):
        build(Plan(source, Options(shard_size=8), tmp_path / "out"), 1, _raise)
    with pytest.raises(ConfigError, match="holds the unfinished build of other data or options"):
        build(Plan(source, Options(shard_size=9), tmp_path / "out"), 1, _raise)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(ConfigError, match=r"is not empty \('mine.txt'\)"):
        build(Plan(source, Options(), tmp_path / "full"), 1, _raise)


def test_a_shard_for_which_the_disk_has_no_room_is_named(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(scan, "write", full)
    plan = Plan(open_source(str(photographs), "train"), Options(), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"out/shard-000000\.tar: cannot be written: No space left on device; free"):
        build(plan, 1, lambda done, total: None)


def _raise(done: int, total: int) -> None:
    raise _Killed


def test_large_images_are_made_smaller_and_small_ones_kept(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    originals = {"0.jpg": jpeg(0, (90, 120)), "1.jpg": jpeg(1, (40, 30)), "2.jpg": jpeg(2, (200, 100))}
    for name, data in originals.items():
        (tmp_path / "in" / name).write_bytes(data)
    found = make(tmp_path / "in", tmp_path / "out", seed=None, max_side=60)
    records = open_source(str(tmp_path / "out"), "train").index.mapped()  # type: ignore[attr-defined]
    assert list(zip(records["width"].tolist(), records["height"].tolist(), strict=True)) == [
        (60, 45),
        (30, 40),
        (30, 60),
    ]
    assert found.notes["encoded again"] == 2
    assert open_source(str(tmp_path / "out"), "train").read(1)[0] == originals["1.jpg"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 60 x 90 pixels and odd ones, stored with a shorter side of 36."""
    folder = tmp_path_factory.mktemp("originals")
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(jpeg(number, (60, 90) if number % 2 else (95, 40)))
    (folder / "4-small.jpg").write_bytes(jpeg(4, (30, 90)))
    Image.open(io.BytesIO(jpeg(5, (60, 60)))).convert("L").save(folder / "5-grey.png")
    deep = np.arange(50 * 60, dtype=np.uint16).reshape(50, 60) * 20
    (folder / "6-deep.png").write_bytes(encoded(deep, "PNG"))
    (folder / "7-damaged.jpg").write_bytes(jpeg(7)[:-40])
    make(folder, folder.parent / "raw", seed=None, raw=36)
    return folder


def test_raw_shards_hold_the_pixels_at_one_shorter_side(raw: Path) -> None:
    originals, shards = open_source(str(raw), "train"), open_source(str(raw.parent / "raw"), "train")
    assert isinstance(shards, Shards)
    for number in range(7):
        image = decode(originals.read(number)[0], 1 if number > 4 else 3)
        height, width = image.shape[1:]
        short = min(height, width, 36)
        size = (short, short * width // height) if height <= width else (short * height // width, short)
        wanted = resize((image.int() // 257).to(torch.uint8) if number == 6 else image, size)
        stored = shards.read(number)[0]
        assert isinstance(stored, bytes)
        assert np.array_equal(np.load(io.BytesIO(stored), allow_pickle=False), wanted.permute(1, 2, 0).numpy())
        record = shards.index[number]
        assert (record["height"], record["width"]) == size
    assert shards.read(7)[0] == originals.read(7)[0]  # kept, counted and replaced in training
    assert not verify(raw.parent / "raw", None, lambda done, total: None)


def test_training_and_evaluation_take_raw_shards(raw: Path) -> None:
    """Where the side is the one to which evaluation resizes, evaluation sees the pixels that it sees of the files."""
    config = Config(train=str(raw), size=32)  # 32 of 36 are kept
    originals, shards = open_source(str(raw), "train"), open_source(str(raw.parent / "raw"), "train")
    for number in range(6):
        images = [View(config, train=False).decoded(each.read(number)[0], [0])[0] for each in (originals, shards)]
        assert torch.equal(*images), number
        stored = shards.read(number)[0]
        whole, keys = decode(stored, 3), (5, 6)
        crops = View(config, train=True).decoded(stored, keys)
        for crop, key in zip(crops, keys, strict=True):
            assert torch.equal(crop, View(config, train=True)(whole, key))
    (step,) = loaded(shards, View(config, train=True), Order(8, 8, 0)).steps(0, 1)
    assert step[0].images.shape == (8, 3, 32, 32)


def test_a_build_with_raw_pixels_is_another_build(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source(str(raw), "train")
    plans = [Plan(source, Options(**options), raw) for options in ({}, {"raw": 36}, {"raw": 40})]
    assert len({plan.digest for plan in plans}) == 3
    old = repr((source.identity, source.classes, Options())).replace(", raw=None", "")  # as before there was the option
    assert plans[0].digest == hashlib.sha256(old.encode()).hexdigest()
    with pytest.raises(SystemExit):
        main(["shards", "build", str(raw), str(raw.parent / "both"), "--raw", "36", "--max-side", "40"])
    assert "--raw and --max-side: both say how large images become" in capsys.readouterr().err


def test_an_array_is_the_image_only_where_there_is_no_other(tmp_path: Path) -> None:
    pixels, floats = io.BytesIO(), io.BytesIO()
    np.save(pixels, np.zeros((5, 6, 3), np.uint8))
    np.save(floats, np.zeros((5, 6, 3), np.float32))
    for name, more in (("beside", {"jpg": jpeg(1)}), ("alone", {})):
        with webdataset.TarWriter(str(tmp_path / f"{name}.tar"), encoder=False) as tar:
            tar.write({"__key__": "a", "npy": floats.getvalue() if more else pixels.getvalue(), **more})
    assert scan.scan(tmp_path / "beside.tar").notes["passed over: .npy"] == 1
    (record,) = scan.scan(tmp_path / "alone.tar").records
    assert (record["height"], record["width"]) == (5, 6)
    endless = pixels.getvalue().replace(b"(5, 6, 3)", b"(5, %s, 3)" % (b"6" * 5000))  # more digits than int() takes
    for wrong in (floats.getvalue(), pixels.getvalue()[:-1], b"\x93NUMPY", endless):
        scan.write(tmp_path / "wrong.tar", [scan.Sample("a", "npy", wrong, -1)])
        with pytest.raises(scan.ShardError, match=r"sample 'a': not the pixels \(height, width, channels\) of 8 bits"):
            scan.scan(tmp_path / "wrong.tar")


def test_mean_and_deviation_are_those_of_the_pixels(made: Path, photographs: Path) -> None:
    found = parse((made / "manifest.json").read_bytes())
    pixels = np.stack([np.array(Image.open(path)) for path in sorted(photographs.rglob("*.jpg"))]) / 255
    np.testing.assert_allclose(found.mean, pixels.mean((0, 1, 2)), atol=2e-3)
    np.testing.assert_allclose(found.std, pixels.std((0, 1, 2)), atol=2e-3)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_statistics_have_six_digits_wherever_they_begin(scale: float) -> None:
    """Of very small pixels the deviation was 0, and 1 was taken in its place: a model saw nothing at all."""
    pixels = np.random.default_rng(0).normal(3, 0.01, (4, 2, 50, 50)) * scale
    pixels[:, 1] = 0.1 * scale  # a channel of one value has no deviation
    mean, std = moments(sum(sums_of(torch.from_numpy(image)) for image in pixels))
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(std, [pixels[:, 0].std(), 0], rtol=1e-5)


def test_arrays_of_any_number_of_channels_become_raw_shards(tmp_path: Path) -> None:
    """They were refused after they were written, since the mean of their colours was asked for."""
    pixels = np.arange(6 * 8 * 8 * 4, dtype=np.uint8).reshape(6, 8, 8, 4)
    np.save(tmp_path / "four.npy", pixels)
    np.save(tmp_path / "deep.npy", pixels[..., :3].astype(np.uint16) * 257)
    make(tmp_path / "four.npy", tmp_path / "raw", seed=None, raw=8)
    shards = open_source(str(tmp_path / "raw"), "train")
    for number in range(6):
        assert np.array_equal(decode(shards.read(number)[0], 4).permute(1, 2, 0).numpy(), pixels[number])
    with pytest.raises(ConfigError, match=r"16-bit colours .* --raw SIDE"):
        make(tmp_path / "deep.npy", tmp_path / "deep")


@given(
    counts=st.lists(st.integers(0, 2**40), max_size=6),
    classes=st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=4),
)
def test_a_manifest_says_again_what_it_was_told(counts: list[int], classes: list[str]) -> None:
    shards = tuple(Shard(f"s-{n}.tar", count, f"{n:064x}", count) for n, count in enumerate(counts))
    told = Manifest(shards, "a" * 64, tuple(classes), "s3://x/y", (0.1,), (0.2,), {"x": 1})
    assert parse(told.dump().encode()) == told


@given(data=st.data())
def test_any_change_of_a_manifest_is_noticed(data: st.DataObject) -> None:
    told = Manifest((Shard("s.tar", 10, "0" * 64, 2),), "a" * 64, ("cat",))
    text = told.dump()
    place = data.draw(st.integers(0, len(text) - 1))
    other = text[:place] + data.draw(st.sampled_from("0aZ} ")) + text[place + 1 :]
    if other != text:
        with pytest.raises(manifest.ManifestError):
            parse(other.encode())


SCAN = """
import sys
import numpy as np
from pathlib import Path
from mrp.data.index import Index
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = resident()
index = Index(Path(sys.argv[1]), 100_000_000)
for number in np.random.default_rng(0).integers(0, 100_000_000, 200_000).tolist():
    index[number]
print(resident(), before)
"""


def test_a_hundred_million_records_leave_no_trace_in_memory(tmp_path: Path) -> None:
    """The sparse index is 3.2 GB; a process that has looked up 200,000 records has grown by next to nothing."""
    with (tmp_path / "index.bin").open("wb") as file:
        file.truncate(100_000_000 * RECORD.itemsize)
    after, before = map(int, python(SCAN, tmp_path / "index.bin").stdout.split())
    assert after < 200_000
    assert after - before < 20_000
    assert len(Index(tmp_path / "index.bin", 100_000_000)) == 100_000_000


def test_remote_shards_are_fetched_once_and_kept(made: Path, opened: Open) -> None:
    local = open_source(str(made), "train")
    with serving(made) as server:
        for _ in range(2):
            source = opened(server.url)
            assert [source.read(n) for n in range(60)] == [local.read(n) for n in range(60)]
        assert source.identity == local.identity
        assert all(count == 1 for name, count in server.seen.items() if name != "manifest.json")


def test_a_full_cache_lets_the_longest_unused_go(made: Path, opened: Open, tmp_path: Path) -> None:
    sizes = [shard.bytes for shard in parse((made / "manifest.json").read_bytes()).shards]
    limit = 2.5 * max(sizes) / 2**30
    with serving(made) as server:
        source = opened(server.url, gib=limit)
        for number in (0, 8, 16, 24, 0, 32, 0):
            source.read(number)
            used = [path.stat().st_size for path in (tmp_path / "cache").iterdir()]
            assert sum(used) <= limit * 2**30
        with pytest.raises(ConfigError, match=r"machine\.cache\.gib: .* is less than shard-000000\.tar alone"):
            opened(server.url, gib=max(sizes) / 2**31 + 1e-6).read(0)


@pytest.mark.parametrize(("allowed", "most", "again"), [(4 * 10, 10, 120), (4 * 50, 50, 70), (4 * 60, 60, 0)])
def test_shards_of_a_disk_stay_open_as_far_as_the_system_allows(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch, allowed: int, most: int, again: int
) -> None:
    """Many lanes read from more shards in turn than a process keeps open; opening takes longer than reading."""
    make(photographs, tmp_path / "one", shard_size=1)
    gc.collect()  # files of other tests' sources
    asked = list[tuple[int, int]]()
    monkeypatch.setattr(OpenFiles, "_open", 0)
    monkeypatch.setattr("mrp.data.storage.descriptors._allowed", cache(_allowed.__wrapped__))
    monkeypatch.setattr("mrp.data.storage.descriptors.resource.getrlimit", lambda _: (16, allowed))
    monkeypatch.setattr("mrp.data.storage.descriptors.resource.setrlimit", lambda _, limits: asked.append(limits))
    source, other = (open_source(str(tmp_path / "one"), "train") for _ in range(2))
    assert isinstance(source, Shards)
    opened, open_ = list[int](), source._open

    def noted(shard: int) -> int:
        opened.append(shard)
        return open_(shard)

    monkeypatch.setattr(source, "_open", noted)
    for _ in range(3):
        for number in range(60):
            source.read(number)
            assert OpenFiles._open <= most
    assert asked == [(allowed, allowed)], "what the user may have is asked for, once"
    assert len(opened) - 60 <= again, "not every file is opened again in each round, if there is room for most"
    for number in range(60):
        other.read(number)
    assert OpenFiles._open <= most + 1, "the files of all sources are counted together"


def test_copies_in_the_cache_stay_open_in_small_number(made: Path, opened: Open) -> None:
    """One that was removed to make room takes space until it is closed."""
    with serving(made) as server:
        assert pickle.loads(pickle.dumps(opened(server.url)))._files._most == 64


def test_a_shard_is_fetched_in_the_background(made: Path, opened: Open) -> None:
    with serving(made) as server:
        source = opened(server.url)
        thread = Prefetch(source.fetch)
        for shard in range(8):
            thread.ask(shard)
        thread.close()
        thread._thread.join(LONG)
        assert server.seen["shard-000006.tar"] == 1
        for number in range(60):
            data = source.read(number)[0]
            assert zlib.crc32(data) == source.index[number]["crc32"]
        assert server.seen["shard-000006.tar"] == 1


FETCH = """
import sys
from mrp.data.config import CacheConfig
from mrp.data.storage.cache import Cache
from mrp.data.sources.shards import Config as ShardsConfig
from mrp.data.sources.shards import Source as Shards
source = Shards(ShardsConfig(path=sys.argv[1]), "train", Cache(CacheConfig(folder=sys.argv[2])))
print(sum(len(source.read(number)[0]) for number in range(60)))
"""


def test_processes_share_one_cache(made: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with serving(made) as server:
        command = [sys.executable, "-c", FETCH, server.url, str(tmp_path)]
        running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(3)]
        totals = {process.communicate(timeout=LONG)[0] for process in running}
        assert len(totals) == 1
        assert {process.returncode for process in running} == {0}
        assert all(count == 1 for name, count in server.seen.items() if name != "manifest.json")


def test_a_cache_that_cannot_be_written_is_named(made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = Cache(CacheConfig(folder=str(tmp_path / "file" / "cache")))
    with serving(made) as server, pytest.raises(ConfigError, match=r"set machine\.cache\.folder to a disk with space"):
        Shards(ShardsConfig(path=server.url), "train", cache)


def test_a_billion_samples_are_counted_from_their_manifest_alone(tmp_path: Path) -> None:
    """A hundred thousand shards of a billion samples, remote: their manifest alone is read."""
    shards = tuple(Shard(f"shard-{n:06}.tar", 10**8, f"{n:064x}", 10_000) for n in range(100_000))
    text = Manifest(shards, "a" * 64).dump().encode()
    found = parse(text)
    assert found.count == 10**9
