"""A run keeps the version of the order that it began with, in which a mixture's sources were permuted alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrp.cli import main
from mrp.plan import plan_job
from mrp.run import load

MIXTURE = ["demo", "data.train=[{source: digits, weight: 1}, {source: digits, weight: 1}]", "data.test=null",
           "batch=16", "backbone.depth=1", "backbone.width=32", "objective.decoder.depth=1", "optim.warmup=1 steps",
           "machine.workers=0", "diagnose.every=null"]  # fmt: skip


def order_version(folder: Path) -> int:
    version: int = json.loads((folder / "identity.json").read_text())["order_version"]
    return version


def meeting(folder: Path) -> bool:
    """Whether the same samples of both sources stand in a batch."""
    samples = plan_job(load(folder / "config.yaml"), folder, 1, 0).order.slots(0).samples
    return sorted(samples % 1437)[::2] == sorted(samples % 1437)[1::2]


@pytest.mark.parametrize("begun", [1, 2])
def test_a_run_goes_on_with_the_order_it_began_with(
    begun: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mrp.data.mixtures.VERSION", begun)
        main(["pretrain", *MIXTURE, "length=1 steps", "--folder", str(tmp_path / "run")])
    assert order_version(tmp_path / "run") == begun
    main(["pretrain", *MIXTURE, "length=2 steps", "resume.allow=[length]", "--folder", str(tmp_path / "run")])
    assert order_version(tmp_path / "run") == begun
    assert meeting(tmp_path / "run") == (begun == 1)


def test_data_of_one_source_keep_their_version(tmp_path: Path) -> None:
    job = plan_job(load("demo"), tmp_path, 1, 0)
    assert job.run.identity(job.source.identity, job.order.version)["order_version"] == 1
