"""Making an index for a set of any size: one shard in memory at a time, and keys that are compared exactly."""

from __future__ import annotations

import contextlib
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrp.config import ConfigError
from mrp.data.index import RECORD
from mrp.data.manifest import Shard
from mrp.data.open import open_source
from mrp.data.shardtool.finish import FinishedShard, write_set
from mrp.data.shardtool.index import index
from mrp.data.shardtool.keys import Keys
from mrp.data.storage.open import open_store
from tests.data.conftest import jpeg, tar


def test_keys_of_equal_hashes_are_compared_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hashes for all keys; only two keys that are the same are one too many."""
    monkeypatch.setattr("mrp.data.shardtool.scan._hash", lambda key: 2**63 if key[-1] in "02468" else 7)
    names = [f"{shard}.tar" for shard in range(6)]
    for shard, name in enumerate(names):
        tar(tmp_path / name, [(f"s{3 * shard + number}.jpg", jpeg(number)) for number in range(3)])
    made = index(open_store(str(tmp_path)), names, tmp_path, "", None)
    assert made.count == 18
    source = open_source(str(tmp_path), "train")
    assert [source.read(number)[0] for number in range(18)] == [jpeg(number % 3) for number in range(18)]
    tar(tmp_path / "6.tar", [("s20.jpg", jpeg(0)), ("s4.jpg", jpeg(1))])
    with pytest.raises(ConfigError, match=r"^6\.tar: sample 's4' has the key of one in 1\.tar; keys stand once$"):
        index(open_store(str(tmp_path)), [*names, "6.tar"], tmp_path, "", None)
    assert open_source(str(tmp_path), "train").identity == made.identity  # what was there is as it was
    assert not list(tmp_path.glob(".*"))


@given(shards=st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=8), files=st.integers(1, 5))
def test_hashes_that_stand_twice_are_found(shards: list[list[int]], files: int) -> None:
    with contextlib.ExitStack() as stack:
        keys = Keys([stack.enter_context(tempfile.TemporaryFile()) for _ in range(files)])
        values = np.array([0, 1, 2**32, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1, 5, 6, 7], np.uint64)
        for shard in shards:
            keys.add(values[np.array(shard, np.int64)])
        every = [value for shard in shards for value in shard]
        found = sorted(group.tolist() for group in keys.repeated())
    wanted = [[n for n, value in enumerate(every) if value == repeated] for repeated in set(every)]
    assert found == sorted(group for group in wanted if len(group) > 1)


def test_an_index_is_made_without_holding_it(tmp_path: Path) -> None:
    """A million samples: 32 MB of records and 16 MB of hashes, of which no more than a tenth is held at once."""
    count, each = 200, 5000
    noise = np.random.default_rng(0)

    def finished(keys: Keys) -> Iterator[FinishedShard]:
        for number in range(count):
            records = np.zeros(each, RECORD)
            records["label"] = number
            keys.add(noise.integers(0, 2**64, each, np.uint64))
            yield FinishedShard(Shard(f"{number}.tar", 1, "0" * 64, each), records, np.zeros((3, 3)), Counter(grey=2))
        assert not list(keys.repeated())

    with contextlib.ExitStack() as stack:
        keys = Keys([stack.enter_context(tempfile.TemporaryFile()) for _ in range(100)])
        tracemalloc.start()
        try:
            made = write_set(tmp_path, finished(keys), None, "")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert (made.count, len(made.classes), made.notes) == (count * each, count, {"grey": 2 * count})
    records = np.fromfile(tmp_path / "index.bin", RECORD)
    assert (records["shard"] == np.repeat(np.arange(count), each)).all()
    assert (records["label"] == records["shard"]).all()
    assert peak < 4.4e6


def test_what_differs_in_every_sample_is_counted_and_not_listed(tmp_path: Path) -> None:
    members = [(f"s{n}.{ending}", b"x") for n in range(150) for ending in ("jpg", f"other{n}")]
    names = ["a.tar", "b.tar"]
    tar(tmp_path / "a.tar", members[:120])
    tar(tmp_path / "b.tar", members[120:])
    notes = index(open_store(str(tmp_path)), names, tmp_path, "", None).notes
    assert notes["unreadable"] == 150
    assert sum(note.startswith("unreadable: ") for note in notes) == 20
    assert sum(note.startswith("passed over: .") for note in notes) == 100
    assert notes["passed over: others"] == 50


def test_shards_with_and_without_labels_are_not_one_set(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [("s0.jpg", jpeg(0))])
    tar(tmp_path / "b.tar", [("s1.jpg", jpeg(1)), ("s1.cls", b"0")])
    with pytest.raises(ConfigError, match="some shards have labels and some have none; index them apart"):
        index(open_store(str(tmp_path)), ["a.tar", "b.tar"], tmp_path / "out", "", None)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="holds no shards"):
        index(open_store(str(tmp_path)), [], tmp_path / "out", "", None)
    tar(tmp_path / "c.tar", [])
    with pytest.raises(ConfigError, match="its shards hold no samples"):
        index(open_store(str(tmp_path)), ["c.tar"], tmp_path / "out", "", None)
