"""`mrp probe`, `mrp features` and `mrp compare` from end to end, on a small run on digits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrp import api
from mrp.build import open_source
from mrp.cli import main
from mrp.data.source import Arrays
from mrp.evaluate import results, sweep
from tests import forked
from tests.probed import write_probe
from tests.trained import NARROW, pretrained

SMALL = [*NARROW, "length=12 steps", "optim.warmup=2 steps", "backbone.depth=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = pretrained(tmp_path_factory.mktemp("probed") / "run", *SMALL)
    with pytest.MonkeyPatch.context() as patch:  # fewer heads, or the tests of the order would train hundreds for it
        patch.setattr(sweep, "LRS", (1e-2, 1e-1))
        patch.setattr(sweep, "DECAYS", (0.0,))
        patch.setattr(
            sweep.choose,
            "__defaults__",
            ((1e-2, 1e-1), (0.0,), sweep.Schedule(epochs=2, steps=40), *sweep.choose.__defaults__[3:]),
        )
        yield folder


def read(folder: Path, backbone: str = "trained") -> dict[str, dict[str, Any]]:
    """What each evaluator has measured last."""
    return {record.evaluator: record.result for record in results.read(folder) if record.backbone == backbone}


@pytest.mark.slow
def test_a_run_is_judged_beside_its_untrained_backbone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluators = ("linear", "knn", "few_shot", "logistic")
    main(["probe", str(run), "--untrained", *(word for name in evaluators for word in ("--evaluator", name))])
    text = capsys.readouterr().out
    trained = read(run)
    assert set(trained) == set(read(run, "untrained")) == set(evaluators)
    assert {record.step for record in results.read(run)} == {0, 12}
    for result in trained.values():
        assert (result["num_train"], result["num_test"]) == (1437, 360)
    for result in (trained["linear"], trained["knn"], trained["logistic"], *trained["knn"]["neighbours"]):
        assert 0 < result["low"] < result["accuracy"] < result["high"] <= 1
    assert [one["k"] for one in trained["knn"]["neighbours"]] == [10, 20, 100, 200]
    assert [one["shots"] for one in trained["few_shot"]["few_shot"]] == [1, 5, 10]
    assert len(trained["linear"]["trials"]) == 8 * 2
    assert trained["linear"]["accuracy"] == pytest.approx(trained["logistic"]["accuracy"], abs=0.06)
    for word in ("linear probe", "kNN (k = 20)", "untrained", "layer", "pooling", "few-shot", "written to"):
        assert word in text, word


@pytest.mark.slow
def test_the_test_set_is_read_after_the_choice(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order in which things happen, as the whole command does them."""
    events = []
    read_one, chosen, fitted = Arrays.read, sweep.choose, sweep.fit

    def reading(self: Arrays, index: int) -> Any:
        events.append("train" if "train" in self.name else "test")
        return read_one(self, index)

    def choosing(*words: Any, **options: Any) -> sweep.Choice:
        choice = chosen(*words, **options)
        events.append("chosen")
        return choice

    def fitting(*words: Any, **options: Any) -> sweep.Head:
        head = fitted(*words, **options)
        events.append("fitted")
        return head

    monkeypatch.setattr(Arrays, "read", reading)
    monkeypatch.setattr(sweep, "choose", choosing)
    monkeypatch.setattr(sweep, "fit", fitting)
    api.probe(run, cache=tmp_path)
    assert list(dict.fromkeys(events)) == ["train", "chosen", "fitted", "test"]
    assert events.index("test") > events.index("fitted")


def test_a_checkpoint_other_data_and_no_training_at_all(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = run / "checkpoints" / "step-00000012"
    main(["probe", str(step), "data.fraction=0.5", "--evaluator", "knn"])
    found = read(run)["knn"]
    assert 700 < found["num_train"] < 740
    assert "kNN" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["optim.lr=1"], "optim.lr: cannot be changed here; allowed: data.train="),
        (["data.test=null"], "data.test is not set, so there is nothing to measure accuracy on"),
        (["data.test=nowhere"], "data.test: 'nowhere' does not exist"),
        (["linear.layers=7"], "layers: 7 were asked for, but the backbone has 2; give at most 2"),
    ],
)
def test_what_cannot_be_probed(run: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(["probe", str(run), *words])
    assert left.value.code == 2
    assert line in capsys.readouterr().err


def test_features_are_written_with_names_and_labels(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.npy"
    main(["features", str(run), "--out", str(out)])
    rows = np.load(out)
    about = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert rows.shape == (360, 24)
    assert len(about) == 360
    assert about[7]["id"] == "digits (test): image 7"
    model = api.load(run)
    test = open_source(model.run, "test")
    assert [one["label"] for one in about] == [test.read(i)[1] for i in range(360)]
    expected = model.features(api.held_out(model.run, 360)).numpy()  # the same images in another order
    assert np.sort(rows[:, 0]).tolist() == pytest.approx(np.sort(expected[:, 0]).tolist(), abs=2e-3)
    main(["features", str(run), "--out", str(out), "--layer", "1", "--pooling", "mean", "--split", "train"])
    assert np.load(out).shape == (1437, 24)


def test_features_in_a_form_that_is_not_known(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["features", str(run), "--out", str(tmp_path / "features.csv")])
    assert "allowed: a name that ends in .npy, .parquet" in capsys.readouterr().err


def test_runs_are_compared(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = {"accuracy": 0.8, "low": 0.7, "high": 0.9}
    for name, step in (("mae", 10), ("umae", 20)):
        few_shot = {"few_shot": [{"shots": 10, **verdict}]}
        write_probe(tmp_path / name, step, linear=verdict, knn=verdict, few_shot=few_shot)
    out = tmp_path / "compare.png"
    main(["compare", str(tmp_path / "mae"), str(tmp_path / "umae"), "--out", str(out)])
    text = capsys.readouterr().out
    assert text.count("80.0 % (70.0 to 90.0)") == 6
    assert out.stat().st_size > 10_000
    shutil.copy(tmp_path / "mae" / "probe.json", tmp_path / "umae" / "probe-00000010.json")
    main(["compare", str(tmp_path / "umae"), "--out", str(out)])
    assert capsys.readouterr().out.count("umae") == 2
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path)])
    assert "nothing has been measured here yet; 'mrp probe" in capsys.readouterr().err


@pytest.mark.slow
def test_three_processes_count_what_one_counts(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,437 and 360 images: neither is a multiple of three times the batch."""
    words = ["probe", str(run), "--evaluator", "knn", "--weights", "student"]
    main([*words, "--cache", str(tmp_path / "one")])
    one = read(run)["knn"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = forked.mrp([*words, "--processes", "3", "--cache", str(tmp_path / "three")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1
    three = read(run)["knn"]
    assert three["num_train"] == 1437
    for mine, theirs in zip(one["neighbours"], three["neighbours"], strict=True):
        assert mine["accuracy"] == pytest.approx(theirs["accuracy"], abs=2 / 360)


@pytest.mark.slow
def test_the_papers_protocol_is_a_run_of_its_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["length=4 steps", "optim.warmup=1 steps", "batch=256", "validation.every=4 steps", "machine.workers=0"]
    main(["probe", str(run), "--protocol", "paper", *words])
    text = capsys.readouterr().out
    assert "classify on 1,437 images: 4 steps of 256" in text
    assert "on the test data after step 4" in text
    found = json.loads((run / "paper-00000012" / "validation.json").read_text())
    assert found["student"]["images"] == 360
    main(["compare", str(run), "--out", str(run / "compare.png")])
    assert "linear probe (paper)" in capsys.readouterr().out
    for words in (["--evaluator", "knn"], ["--classes", "by_index"]):
        with pytest.raises(SystemExit):
            main(["probe", str(run), "--protocol", "paper", *words])
        assert f"{words[0]}: does nothing with --protocol paper" in capsys.readouterr().err
