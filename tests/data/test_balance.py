"""Batches of few classes are noticed before the run begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrp.cli import main
from mrp.data.balance import balance_warning
from mrp.data.config import Config
from mrp.data.mixtures import order
from mrp.data.open import open_source
from tests.data.conftest import jpeg, make


@pytest.fixture
def by_class(tmp_path: Path) -> Path:
    """512 images of 64 classes."""
    for number in range(512):
        path = tmp_path / "images" / f"{number // 8:02}" / f"{number % 8}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number, (8, 8)))
    return tmp_path / "images"


@pytest.mark.parametrize(("seed", "window", "warns"), [(None, 2, True), (None, 64, False), (0, 2, False)])
def test_shards_that_are_sorted_by_class_are_noticed(
    by_class: Path, tmp_path: Path, seed: int | None, window: int, warns: bool
) -> None:
    make(by_class, tmp_path / "shards", seed=seed, shard_size=8)
    source = open_source(str(tmp_path / "shards"), "train")
    warning = balance_warning(source, order(source, Config(train="x", size=8, window=window), 16, 0))
    assert (warning is not None) == warns
    if warning is not None:
        assert warning.startswith("warning: a batch of 16 holds samples of 2 classes, and a random one would hold 14: ")
        assert "\n" not in warning


def test_a_folder_is_permuted_whole_and_never_noticed(by_class: Path) -> None:
    source = open_source(str(by_class), "train")
    assert balance_warning(source, order(source, Config(train="x", size=8), 20, 0)) is None


def test_the_index_and_the_run_say_so(
    by_class: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(by_class, tmp_path / "shards", seed=None, shard_size=8)
    for name in ("manifest.json", "index.bin"):
        (tmp_path / "shards" / name).unlink()
    monkeypatch.setattr("mrp.verbs.shards._BATCH", 128)
    main(["shards", "index", str(tmp_path / "shards")])
    assert (
        "warning: a batch of 128 holds samples of 16 classes, and a random one would hold 55" in capsys.readouterr().err
    )
    words = ["demo", f"data.train={tmp_path / 'shards'}", "data.test=null", "data.channels=3", "data.window=1",
             "length=1 steps", "optim.warmup=0 steps", "batch=8", "machine.workers=0",
             "diagnose.every=null"]  # fmt: skip
    main(["pretrain", *words, "--folder", str(tmp_path / "run")])
    assert "warning: a batch of 8 holds samples of" in capsys.readouterr().out
