"""`tools/judge_study.py` from end to end, on a small run on digits."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mrp.config import parse
from mrp.evaluate import sweep
from mrp.folder import CONFIG
from tests.trained import NARROW, pretrained
from tools import judge_study

SMALL = [*NARROW, "length=4 steps", "optim.warmup=1 steps", "backbone.depth=2", "seed=3"]
BUDGET = ["--fraction", "0.3", "--tune", "2", "--paper-epochs", "3"]
ACCURACY = r"\d+\.\d \(\d+\.\d to \d+\.\d\)"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = pretrained(tmp_path_factory.mktemp("judged") / "run", *SMALL)
    (folder / "result.json").write_text('{"minutes": 12.34}')  # as small_study leaves it
    with pytest.MonkeyPatch.context() as patch:  # fewer heads
        patch.setattr(
            sweep.choose,
            "__defaults__",
            ((1e-1,), (0.0,), sweep.Schedule(epochs=2, steps=20), *sweep.choose.__defaults__[3:]),
        )
        yield folder


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.slow
def test_a_run_and_its_beginning_are_judged_alike_and_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "judged.md"
    judge_study.main([str(run), *BUDGET, "--paper", str(run), "--out", str(out)])
    title, _, trained, untrained = out.read_text().splitlines()
    name = re.escape(str(run))
    assert title.count("|") == trained.count("|") == untrained.count("|")
    assert re.fullmatch(rf"\| {name} \|( {ACCURACY} \|){{4}} 12\.3 \|( \d+\.\d \|){{3}}", trained), trained
    assert re.fullmatch(
        rf"\| untrained, as {name} \|( {ACCURACY} \|){{3}} - \| - \|( \d+\.\d \|){{2}} - \|", untrained
    ), untrained

    ours, theirs = run / "judged-0.3", run / "untrained" / "judged-0.3"
    files = ours / "tuned-2.json", theirs / "tuned-2.json", ours / "paper-3.json"
    assert [read(file)["steps"] for file in files] == [2 * (432 // 64), 2 * (432 // 64), 3 * (432 // 256)]
    assert read(ours / "sweep.json")["linear"]["num_train"] == read(theirs / "sweep.json")["knn"]["num_train"] == 432
    assert read(ours / "sweep.json")["linear"] != read(theirs / "sweep.json")["linear"]

    fine, bare, probe = (
        parse((folder / CONFIG).read_text(), "") for folder in (ours / "tuned-2", theirs / "tuned-2", ours / "paper-3")
    )
    assert fine["init"]["from"] == str(run)
    assert bare["init"] is None
    for section in ("backbone", "data", "batch", "length", "objective", "seed"):
        assert bare[section] == fine[section], section
    assert fine["seed"] == 3
    assert fine["data"]["augment"] == parse((run / CONFIG).read_text(), "")["data"]["augment"]
    assert (probe["optim"]["name"], probe["optim"]["lr"], probe["objective"]["frozen"]) == ("lars", 6.4, True)

    monkeypatch.setattr(judge_study, "train", None)  # nothing of it may be called
    monkeypatch.setattr(judge_study.probing, "measure", None)
    before = out.read_text()
    judge_study.main([str(run), *BUDGET, "--paper", str(run), "--out", str(out)])
    assert out.read_text() == before

    other = shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("untrained"))
    judge_study.main([str(run), str(other), *BUDGET, "--out", str(out)])
    assert len(out.read_text().splitlines()) == 5, "both began with the same weights, which have one line"
    for name in ("tuned-2.json", "sweep.json"):
        assert read(other / "untrained" / "judged-0.3" / name) == read(theirs / name)


def test_interrupted_work_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 30.0, 100.0, 190.0])
    monkeypatch.setattr(judge_study.study, "_cpu_seconds", lambda: next(clock))
    file = tmp_path / "judged" / "sweep.json"

    def interrupted() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_study.kept(file, interrupted)
    assert not file.exists()
    judge_study.kept(file, lambda: {"accuracy": 0.5})
    assert read(file) == {"accuracy": 0.5, "minutes": 2.0}
    judge_study.kept(file, interrupted)  # found, so not measured
