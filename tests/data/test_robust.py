"""What must not escape, hang, be lost or be stopped for: manifests and tars of others, caches, single bad samples."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mrp.cli import main
from mrp.config import ConfigError
from mrp.data import manifest
from mrp.data.augment import Crop, View
from mrp.data.config import CacheConfig, Config
from mrp.data.decode import decode, header
from mrp.data.loader import Loader
from mrp.data.manifest import ManifestError, parse
from mrp.data.mixtures import Mixture, order
from mrp.data.open import open_source
from mrp.data.quarantine import Bad, Quarantine
from mrp.data.shardtool import scan
from mrp.data.shardtool.imagenet import open_original, shortfall
from mrp.data.shardtool.index import index
from mrp.data.shardtool.scan import ShardError
from mrp.data.source import Source
from mrp.data.sources.shards import Config as ShardsConfig
from mrp.data.sources.shards import Source as Shards
from mrp.data.storage.cache import Cache, Prefetch
from mrp.data.storage.open import open_store
from mrp.data.storage.store import LocalStore
from mrp.data.subset import Subset, fixed_sample
from mrp.data.workers import received
from mrp.evaluate.config import Diagnose
from mrp.evaluators.diagnose import Evaluator
from mrp.plan import plan_run
from mrp.processes.join import join
from mrp.run import load
from tests.data.conftest import encoded, jpeg, loaded, make, photographs_with, tar
from tests.evaluators.settings import setting
from tests.servers import serving

Open = Callable[..., Shards]


# Manifests.


def sealed(**changes: Any) -> bytes:
    values = json.loads(manifest.Manifest((manifest.Shard("a.tar", 1, "0" * 64, 1),), "a" * 64).dump())
    values |= changes
    rest = json.dumps({k: v for k, v in values.items() if k != "digest" and v is not None}, indent=0)[2:].encode()
    return manifest._seal(rest).encode() + rest


SHARD = {"name": "a.tar", "bytes": 1, "sha256": "0" * 64, "count": 1}


@pytest.mark.parametrize(
    "changes",
    [
        *({key: None} for key in ("shards", "index", "classes", "location", "mean", "std", "notes")),
        *({key: 3} for key in ("shards", "index", "classes", "location", "mean", "std", "notes")),
        {"index": {}}, {"classes": [3]}, {"mean": ["x"]}, {"shards": [3]},
        *({"index": {"sha256": text}} for text in ("/../../x/pwned", "/etc/x", "A" * 64, "a" * 63, "a" * 64 + "\n", 3)),
        *({"shards": [SHARD | {"sha256": text}]} for text in ("../x", "a" * 65, 3)),
        *({"shards": [SHARD | {key: value}]} for key in ("bytes", "count") for value in (-1, 1.5, True, "1", None)),
    ],
    ids=str,
)  # fmt: skip
def test_a_sealed_manifest_is_still_checked_in_every_part(changes: dict[str, Any]) -> None:
    parse(sealed())
    with pytest.raises(ManifestError):
        parse(sealed(**changes))


def test_nothing_is_written_outside_of_the_cache(made: Path, tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "index.bin").write_bytes((made / "index.bin").read_bytes())
    (tmp_path / "remote" / "manifest.json").write_bytes(sealed(index={"sha256": str(tmp_path / "pwned")}))
    with serving(tmp_path / "remote") as server, pytest.raises(ConfigError, match="is no sha256"):
        Shards(ShardsConfig(path=server.url), "train", Cache(CacheConfig(folder=str(tmp_path / "cache"))), 2.0)
    cache = Cache(CacheConfig(folder=str(tmp_path / "cache")))
    with pytest.raises(ConfigError, match="is no sha256"):
        cache.get(LocalStore(made), "index.bin", "../pwned", 1920)
    assert not (tmp_path / "pwned").exists()


# Tars.


def pax_tar(path: Path, size: str) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as out:
        info = tarfile.TarInfo("a.jpg")
        info.size, info.pax_headers = len(jpeg(0)), {"size": size}
        out.addfile(info, io.BytesIO(jpeg(0)))
    return path


@pytest.mark.parametrize("size", ["abc", "-1536", "1_0", " 1", "9" * 5000, "²"])
def test_a_size_in_an_extended_header_is_a_number(tmp_path: Path, size: str) -> None:
    with pytest.raises(ShardError, match="has no readable size"):
        scan.scan(pax_tar(tmp_path / "a.tar", size))


@pytest.mark.parametrize("size", [b"-0000001000\0", b"0o000001000\0", b"00_00001000\0"])
def test_a_size_in_a_header_is_octal(tmp_path: Path, size: bytes) -> None:
    content = bytearray(tar(tmp_path / "a.tar", {"a.jpg": jpeg(0)}).read_bytes())
    content[124:136] = size
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + 8 * 32 + sum(content[156:512]))
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ShardError, match="has no readable size"):
        scan.scan(tmp_path / "a.tar")


def test_members_may_have_any_name_that_stays_inside(tmp_path: Path) -> None:
    names = ["-AbC", "a:b", "a|b", "c\\d"]
    tar(tmp_path / "a.tar", [(f"{name}.jpg", jpeg(number)) for number, name in enumerate(names)])
    index(open_store(str(tmp_path)), ["a.tar"], tmp_path, "", None)
    source = open_source(str(tmp_path), "train")
    assert [source.read(number)[0] for number in range(4)] == [jpeg(number) for number in range(4)]


# The cache.


def test_a_full_cache_never_lets_an_index_go(made: Path, opened: Open, tmp_path: Path) -> None:
    largest = max(shard.bytes for shard in parse((made / "manifest.json").read_bytes()).shards)
    with serving(made) as server:
        source = opened(server.url, gib=1.5 * largest / 2**30)
        for number in range(0, 60, 8):
            source.read(number)
        assert [path.name for path in (tmp_path / "cache").glob("*.index")] == [f"{source.manifest.index_sha256}.index"]
        assert server.seen["index.bin"] == 1
        with pytest.raises(ConfigError, match=r"machine\.cache\.gib: .* has no room for shard-000000\.tar .* beside"):
            opened(server.url, gib=(largest + 100) / 2**30).read(0)


def training(source: Source, config: Config, quarantine: Quarantine, batch: int = 6, **options: Any) -> Loader:
    return loaded(source, View(config, True), order(source, config, batch, 0), quarantine=quarantine, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_index_that_is_gone_is_one_line(
    made: Path, opened: Open, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shards, "fetch", lambda *_: None)  # whose thread would outlive the server
    with serving(made) as server:
        source = opened(server.url)
        loader = training(source, Config(train="x", size=16), Quarantine(), workers=workers)
        source.index.path.unlink()
        with pytest.raises(ConfigError, match=r"sample \d+: cannot be read: No such file or directory; mend it"):
            list(loader.steps(0, 1))
        loader.close()


class _Batches(list[Any]):
    def __init__(self, error: Exception, num_workers: int) -> None:
        self.error, self.num_workers = error, num_workers

    def __iter__(self) -> Iterator[Any]:
        raise self.error


@pytest.mark.parametrize(
    ("error", "workers", "dead"),
    [
        (FileNotFoundError(2, "No such file or directory"), 1, True),
        (ConnectionResetError(104, "Connection reset by peer"), 1, True),
        (FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0."), 1, False),
        (FileNotFoundError(2, "No such file or directory", "/data/x"), 1, False),
        (FileNotFoundError(2, "No such file or directory"), 0, False),
    ],
)
def test_only_a_dead_worker_is_called_dead(error: Exception, workers: int, dead: bool) -> None:
    with pytest.raises(ConfigError if dead else FileNotFoundError):
        list(received(_Batches(error, workers)))  # type: ignore[arg-type]


# Samples that are no images, and what takes their place.


@pytest.mark.parametrize("sharded", [True, False])
def test_a_diagnosis_goes_on_after_a_bad_image(tmp_path: Path, sharded: bool) -> None:
    place = photographs_with(tmp_path / "images", {5: b"", 11: b"no image"})
    if sharded:
        make(place, tmp_path / "shards", seed=None, shard_size=6)
    source = open_source(str(tmp_path / "shards" if sharded else place), "train")
    config = Config(train="x", size=16)
    view = View(config, False)
    batches = list(Evaluator(Diagnose(images=12), setting(config, source, None, join()))._loader)
    found = torch.cat([batch.images for batch in batches])
    sample = fixed_sample(source, 12)
    good = [view(decode(source.read(number)[0], 3), 0) for number in range(12) if number not in (5, 11)]
    for row in range(12):
        place_ = int(sample.chosen[row])
        assert torch.equal(found[row], good[{5: 5, 11: 0}.get(place_, place_ - (place_ > 5))])


def test_a_diagnosis_takes_its_samples_from_a_few_shards(made: Path) -> None:
    source = open_source(str(made), "train")
    ends = np.cumsum(source.shard_sizes)

    def touched(count: int, of: Source = source) -> tuple[int, int]:
        places = fixed_sample(of, count).chosen.tolist()
        assert len(set(places)) == count
        return len(places), len(set(np.searchsorted(ends, places, side="right").tolist()))

    assert touched(24) == (24, 4)
    assert touched(60) == (60, 8)
    assert touched(40)[1] in (5, 6)
    assert np.ptp(fixed_sample(open_source("digits", "test"), 100).chosen) > 300


def test_a_sample_alone_in_its_shard_is_replaced_by_one_of_the_next(tmp_path: Path) -> None:
    make(photographs_with(tmp_path / "images", {5: b""}), tmp_path / "shards", seed=None, shard_size=1)
    source = open_source(str(tmp_path / "shards"), "train")
    assert [source.replacement(number) for number in (0, 5, 11)] == [1, 6, 0]
    quarantine = Quarantine()
    list(training(source, Config(train="x", size=16), quarantine).steps(0, 2))
    assert [bad.sample for bad in quarantine.state()] == [5]


def test_substitutes_are_looked_for_after_a_fault_only(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(made), "train")
    part = Subset(source, np.arange(0, 60, 2), np.zeros(30, np.int32), source.classes)
    assert part.shard_sizes is part.shard_sizes
    monkeypatch.setattr(Shards, "replacement", None)
    monkeypatch.setattr(Subset, "replacement", None)
    for one in (source, part):
        list(training(one, Config(train="x", size=16), Quarantine()).steps(0, 2))


def test_what_does_not_fit_the_configuration_stops_and_is_no_bad_image(tmp_path: Path) -> None:
    deep = encoded(np.full((24, 20), 54321, np.uint16), "PNG")
    make(photographs_with(tmp_path / "images", {5: deep}), tmp_path / "shards", seed=None, shard_size=6)
    source = open_source(str(tmp_path / "shards"), "train")
    quarantine = Quarantine()
    coloured = Config(train="x", size=16, augment=Crop(jitter=0.4))
    with pytest.raises(ConfigError, match=r"sample 5 \(byte \d+\): augment\.jitter and .* leave them out$"):
        list(training(source, coloured, quarantine).steps(0, 2))
    with pytest.raises(ConfigError, match=r"channels where 4 are wanted; set data\.channels to \d$"):
        list(training(source, Config(train="x", size=16, channels=4), quarantine).steps(0, 2))
    assert not len(quarantine)


def test_too_little_memory_is_no_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", full)
    for attempt in (lambda: decode(b"GIF89a", 3), lambda: header(b"GIF89a")):
        with pytest.raises(MemoryError):
            attempt()


def test_a_line_of_the_list_that_a_kill_has_torn_ends_no_later_run(tmp_path: Path) -> None:
    quarantine, path = Quarantine(), tmp_path / "quarantine.jsonl"
    quarantine.add(Bad(number, f"sample {number}", "no image") for number in range(2))
    assert quarantine.write(tmp_path) == 2
    path.write_bytes(path.read_bytes()[:-9])
    assert [quarantine.write(tmp_path) for _ in range(2)] == [1, 0]
    assert json.loads(path.read_text().splitlines()[-1])["sample"] == 1


def test_a_run_over_the_limit_leaves_its_list(tmp_path: Path, capsys: Any) -> None:
    make(photographs_with(tmp_path / "images", {5: b""}), tmp_path / "shards", seed=None, shard_size=6)
    words = [f"data.train={tmp_path / 'shards'}", "data.test=null", "data.damaged=0", "batch=6", "length=2 steps"]
    words += ["optim.warmup=0 steps", "machine.workers=0", "diagnose.images=8", "--folder", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main(["pretrain", "demo", *words])
    assert "data.damaged: 1 samples are no images, and 0 are allowed" in capsys.readouterr().err
    (line,) = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["sample"] == 5


# What is fetched ahead, and what cannot be arranged.


def test_the_shards_of_all_micro_batches_are_fetched_ahead(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, asked = open_source(str(made), "train"), set[int]()
    monkeypatch.setattr(Prefetch, "ask", lambda self, shard: asked.add(shard))
    config = Config(train="x", size=16, lanes=4, window=1)
    loader = training(source, config, Quarantine(), batch=8, group=8, micro_batch=2)
    list(loader.steps(0, 1))
    needed = np.searchsorted(np.cumsum(source.shard_sizes), order(source, config, 8, 0).slots(0).samples, side="right")
    assert set(needed.tolist()) <= asked


def test_a_source_smaller_than_the_lanes_is_refused(made: Path) -> None:
    source = open_source(str(made), "train")
    few = Subset(source, np.arange(3), np.zeros(3, np.int32), source.classes)
    with pytest.raises(ConfigError, match=r"data\.lanes: 4, and a source has only 3 samples"):
        order(Mixture([source, few], [1, 1]), Config(train="x", size=16, lanes=4), 16, 0)


def test_views_are_mixed_with_views_of_other_samples() -> None:
    words = ["mix.mixup=0.8", "batch=24", "data.views=2", "backbone.depth=1"]
    for micro_batch in (4, 8, 12):
        plan_run(load("supervised_vit_tiny_cifar10", [*words, f"machine.micro_batch={micro_batch}"]), 10.0, 1, 0)
    with pytest.raises(ConfigError, match=r"mix: .* takes 6 at once, which are 2 views of an odd number of samples"):
        plan_run(load("supervised_vit_tiny_cifar10", [*words, "machine.micro_batch=6"]), 10.0, 1, 0)


# Making and checking.


def test_a_finished_build_is_called_complete(photographs: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["shards", "build", str(photographs), str(tmp_path / "out"), "--shard-size", "20", "--workers", "1"]
    main(words)
    assert "is complete" not in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    main(words)
    assert "is complete, from this source and with these options; nothing was done" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    for other in (["--seed", "1"], ["--max-side", "10"]):
        with pytest.raises(SystemExit):
            main([*words, *other])
        assert "is not empty" in capsys.readouterr().err
    (tmp_path / "out" / "shard-000001.tar").unlink()
    with pytest.raises(SystemExit):
        main(words)


def test_an_index_over_remote_shards_is_verified(made: Path, tmp_path: Path, capsys: Any) -> None:
    with serving(made) as server:
        names = sorted(path.name for path in made.glob("*.tar"))
        index(open_store(server.url), names, tmp_path / "out", server.url, None)
        main(["shards", "verify", str(tmp_path / "out")])
        main(["shards", "verify", str(tmp_path / "out"), "--sample", "5"])
        assert capsys.readouterr().out.count("sound") == 2
        server.always = "flip"
        with pytest.raises(SystemExit):
            main(["shards", "verify", str(tmp_path / "out")])
        assert f"{server.url}/shard-000007.tar: its sha256 is not the manifest's" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            main(["shards", "verify", server.url])
        assert "is remote; verify a folder" in capsys.readouterr().err


def test_an_archive_that_is_not_all_of_imagenet_says_so(tmp_path: Path, capsys: Any) -> None:
    inner = tar(tmp_path / "n01.tar", {"n01_1.JPEG": jpeg(1)})
    path = tar(tmp_path / "train.tar", {"n01.tar": inner.read_bytes()})
    lacking = shortfall(open_original(str(path), "train", None))
    assert lacking is not None
    assert "1 samples of 1 classes, where ImageNet-1K has 1,281,167 of 1,000" in lacking
    assert shortfall(open_source("digits", "train")) is None
    main(["shards", "build", str(path), str(tmp_path / "out"), "--workers", "1"])
    assert f"warning: {path}: 1 samples" in capsys.readouterr().err


def test_an_archive_without_samples_is_one_line(tmp_path: Path) -> None:
    empty = tar(tmp_path / "empty.tar", {})
    of_empty = tar(tmp_path / "of_empty.tar", {"n01.tar": empty.read_bytes()})
    for path in (of_empty, tar(tmp_path / "folders.tar", {"x.tar": b""})):
        with pytest.raises(ConfigError, match=r"holds no samples; download it again"):
            open_original(str(path), "train", None)
