"""Every lab at toy size, by the command line, on runs that are made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrp import cli
from mrp.run import load
from mrp.train import train
from mrp.verbs.lab import LABS

SMALL = [
    "backbone={width: 32, depth: 2, heads: 2, patch: 2}", "length=2 steps", "batch=32", "optim.warmup=1 steps",
    "diagnose.every=0 steps",
]  # fmt: skip
WORDS = {
    "multiview": "--toy steps_scratch=5",
    "maskgraph": "toy --images 60 --ratios .5",
    "ratio": "predict {runs}/mae/config.yaml --images 24 --pairs 1 --ratios .5",
    "bounds": "{runs}/mae --images 24 --descent 2",
    "coverage": "{runs}/mae {runs}/supervised --images 40 --mosaics 10 --train 100",
    "claims": "--results {runs} --out {out}/claims.md",
}
WRITTEN = {
    "multiview": {"results.json", "capture.png", "correlations.png"},
    "maskgraph": {"results.json", "measures.png", "spectra.png"},
    "ratio": {"classifier", "prediction.json", "prediction.sha256", "prediction.png"},
    "bounds": {"results.json", "bounds.png"},
    "coverage": {"results.json", "coverage.png", "maps.png"},
    "claims": {"claims.json", "claims.md"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(load("demo", [*SMALL, "objective.decoder={width: 16, depth: 1, heads: 2}"]), folder / "mae")
    train(load("supervised_tiny_digits", SMALL), folder / "supervised")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("lab", LABS)
def test_it_runs_and_leaves_what_it_promises(
    lab: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mrp.lab.maskgraph.experiment.WORLDS", 2)  # tests/lab/test_maskgraph.py looks into sixty
    words = WORDS[lab].format(runs=runs, out=tmp_path).split()
    cli.main(["lab", lab, *words, *([] if "--out" in words else ["--out", str(tmp_path)])])
    assert {path.name for path in tmp_path.iterdir()} == WRITTEN[lab]
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir() if path.suffix in {".md", ".png"})
    assert all(json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert str(tmp_path) in capsys.readouterr().out
