"""`mrp judge` from end to end, on small runs on digits: what is kept and shared, and what survives interruptions."""

from __future__ import annotations

import functools
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mrp
from mrp import judging
from mrp.build import open_source
from mrp.cli import main
from mrp.config import ConfigError
from mrp.evaluate import heads, results, statistics, sweep
from mrp.evaluate.table import Writer
from mrp.evaluate.tables import Tables
from mrp.evaluators import attentive
from mrp.judging import carry_out, plan_of_suite
from mrp.processes.signals import Interrupted
from mrp.run import load as load_run
from tests.trained import NARROW

SMALL = [*NARROW, "length=6 steps", "optim.warmup=1 steps", "backbone.depth=2"]
SUITE = """\
# Digits as folders, and digits with other classes.
places: {images: folders of digits}
data:
  digits: {train: digits, test: digits}
  few: {train: digits, test: digits, fraction: 0.2, score: mean_per_class}
  folders:
    train: "{images}/train"
    tests:
      all: "{images}/test"
      some: {path: "{images}/some", limited: true}
      numbered: {path: "{images}/numbered", classes: by_index}
measure:
  - {evaluator: linear, data: [digits, folders]}
  - {evaluator: knn, data: [digits, few, folders]}
  - {evaluator: few_shot, data: few}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Two runs that differ in their seed."""
    top = tmp_path_factory.mktemp("judged")
    folders = [top / "first", top / "second"]
    for seed, folder in enumerate(folders):
        main(["pretrain", *SMALL, f"seed={seed}", "--folder", str(folder)])
    with pytest.MonkeyPatch.context() as patch:  # fewer heads and steps
        patch.setattr(
            sweep.choose,
            "__defaults__",
            ((1e-1,), (0.0,), heads.Schedule(epochs=1, steps=10), *sweep.choose.__defaults__[3:]),
        )
        patch.setattr(sweep.fit, "__defaults__", (heads.Schedule(epochs=1, steps=10), *sweep.fit.__defaults__[1:]))
        patch.setattr(attentive, "_SCHEDULE", heads.Schedule((128, 128), steps=10))
        yield folders


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training and eight test images for each class as files; of three classes alone; with numbers as names."""
    top = tmp_path_factory.mktemp("images")
    names = [f"n{number:02}" for number in range(10)]
    for folder, split, kept, called in (
        ("train", "train", range(10), names),
        ("test", "test", range(10), names),
        ("some", "test", (2, 5, 7), names),
        ("numbered", "test", range(10), [str(number) for number in range(10)]),
    ):
        source = open_source(load_run("demo"), split)  # type: ignore[arg-type]
        for label in kept:
            (top / folder / called[label]).mkdir(parents=True)
            for number, index in enumerate(np.flatnonzero(source.labels == label)[: 12 if split == "train" else 8]):
                pixels = np.asarray(source.read(int(index))[0])[..., 0]
                Image.fromarray(pixels).save(top / folder / called[label] / f"{number:02}.png")
    return top


@pytest.fixture
def fresh(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The runs without anything measured; tests are in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    Path("suite.yaml").write_text(SUITE)
    return copied(runs, tmp_path)


def silent(text: str) -> None:
    """Says nothing."""


def values(judged: Any) -> dict[tuple[str, str], float]:
    return {(one.evaluator, one.data + one.test): record.result["accuracy"] for one, record in judged.records.items()
            if "accuracy" in record.result}  # fmt: skip


def test_a_suite_is_measured_once_and_its_page_is_written(
    fresh: list[Path], images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["judge", *map(str, fresh), "--suite", "suite.yaml", f"images={images}", "--out", "out"]
    chosen, fit = [], sweep.fit
    monkeypatch.setattr(sweep, "fit", lambda *words, **named: chosen.append(words[0]) or fit(*words, **named))
    main(words)
    text = capsys.readouterr().out
    assert len(chosen) == 2 * 2  # the head is learned once for the three test sets of folders
    assert "(step 6) on folders/some: linear probe" in text
    assert sorted(path.name for path in Path("out").iterdir()) == ["judge.json", "judge.md", "judge.png", "judge.tex"]
    page = json.loads(Path("out/judge.json").read_text())
    assert page["rows"] == ["first", "second", "first, mean of 2 seeds"]
    columns = list(dict.fromkeys((cell["data"], cell["measure"]) for cell in page["cells"]))
    assert columns == [
        ("digits", "linear probe"), ("folders/all", "linear probe"), ("folders/some", "linear probe"),
        ("folders/numbered", "linear probe"), ("digits", "kNN (k = 20)"), ("few", "kNN (k = 20), mean per class"),
        ("folders/all", "kNN (k = 20)"), ("folders/some", "kNN (k = 20)"), ("folders/numbered", "kNN (k = 20)"),
        ("few", "1 image per class"), ("few", "5 images per class"), ("few", "10 images per class"),
    ]  # fmt: skip
    before = {path: path.read_bytes() for path in Path("out").glob("*.[jmt]*")}
    monkeypatch.setattr(Tables, "get", None)  # nothing is measured again, so nothing is read
    main(words)
    assert "on digits: " not in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before


def test_test_sets_are_counted_as_they_say(fresh: list[Path], images: Path) -> None:
    (judged,) = carry_out(plan_of_suite("suite.yaml", {"images": str(images)}), [fresh[0]], say=silent)
    found = values(judged)
    assert found["linear", "foldersall"] == found["linear", "foldersnumbered"]  # the same images, the classes mapped
    by_test = {one.test: one for one in judged.records if (one.evaluator, one.data) == ("knn", "folders")}
    outcomes = {name: results.read_outcomes(judged.folder, judged.records[task]) for name, task in by_test.items()}
    assert outcomes["all"] is not None
    assert outcomes["some"] is not None
    assert outcomes["some"].classes.tolist() == sorted([2, 5, 7] * 8)
    same_images = np.isin(outcomes["all"].classes, [2, 5, 7])
    assert outcomes["some"].right.sum() >= outcomes["all"].right[same_images].sum()  # fewer wrong answers are possible
    few = next(record for one, record in judged.records.items() if (one.evaluator, one.data) == ("knn", "few"))
    kept = results.read_outcomes(judged.folder, few)
    assert kept is not None
    assert few.result["accuracy"] == pytest.approx(kept.right.mean())
    assert few.result["mean_per_class"] == pytest.approx(statistics.mean_per_class(*kept).of_accuracy())


def test_answers_limited_to_the_classes_that_are_there(fresh: list[Path], images: Path) -> None:
    """Whatever is answered rightly among all classes is so among three, too."""
    evaluators = ("linear", "logistic", "attentive", "knn", "few_shot")
    Path("suite.yaml").write_text(f"""
data:
  folders:
    train: {images}/train
    tests: {{open: {images}/some, limited: {{path: {images}/some, limited: true}}}}
measure: [{", ".join(f"{{evaluator: {name}, data: folders}}" for name in evaluators)}]
""")
    (judged,) = carry_out(plan_of_suite("suite.yaml", {}), [fresh[0]], say=silent)
    for name in evaluators:
        both = [record for task, record in judged.records.items() if task.evaluator == name]
        if name == "few_shot":
            free, limited = ([one["accuracy"] for one in record.result["few_shot"]] for record in both)
            assert all(low < high for low, high in zip(free, limited, strict=True))
            continue
        kept = [results.read_outcomes(judged.folder, record) for record in both]
        assert kept[0] is not None
        assert kept[1] is not None
        assert (kept[0].right <= kept[1].right).all()
        assert kept[1].right.sum() > kept[0].right.sum()
        for outcomes, record in zip(kept, both, strict=True):
            assert outcomes is not None
            assert outcomes.right.mean() == pytest.approx(record.result["accuracy"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{layer: 1}", "suite.yaml, line 7: layer: unknown key; did you mean 'layers'?"),
        ("{layers: many}", "suite.yaml, line 7: layers: 'many' was given; allowed: integer"),
        ("{every: 1 epochs}", "suite.yaml, line 7: every: is for evaluators inside training"),
        ("{layers: 9}", "linear on digits: layers: 9 were asked for, but the backbone has 2"),
    ],
)
def test_options_that_an_evaluator_does_not_take(fresh: list[Path], options: str, message: str) -> None:
    Path("suite.yaml").write_text(f"""# With a wrong option.
data:
  digits: {{train: digits, test: digits}}
measure:
  - evaluator: linear
    data: digits
    options: {options}
""")
    with pytest.raises(ConfigError) as caught:
        mrp.judge(fresh[0], "suite.yaml")
    assert str(caught.value).startswith(message)


def test_data_that_are_not_there_and_weights_given_twice(fresh: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"data set 'folders' of the suite: data.test: 'nowhere/test' does not exist"):
        mrp.judge(fresh[0], "suite.yaml", images="nowhere")
    with pytest.raises(ConfigError, match="second: is not of the form PLACE=PATH"):
        mrp.judge(fresh[0], "suite.yaml", "second")
    with pytest.raises(ConfigError, match="the same weights are given twice"):
        mrp.judge([fresh[0], fresh[0]], "suite.yaml")
    with pytest.raises(ConfigError, match=r"it is not said where any of its data are; give imagenet=PATH \(the folder"):
        mrp.judge(fresh[0], "imagenet")


def test_what_is_not_given_is_said(fresh: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    main(["judge", str(fresh[0]), "--suite", "suite.yaml"])
    text = capsys.readouterr().out
    assert "Not given: images= (for folders/all, folders/some, folders/numbered)." in " ".join(text.split())
    assert "Not given" in Path("runs/judge-suite/judge.md").read_text()
    assert "linear probe on folders" not in text
    main(["judge", str(fresh[0]), "--suite", "suite.yaml", "--untrained"])
    page = json.loads(Path("runs/judge-suite/judge.json").read_text())
    assert page["rows"] == ["first", "untrained, as first"]


def test_results_of_probe_are_those_of_judge(fresh: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights, data, evaluator and options are the same measurement."""
    Path("suite.yaml").write_text(
        "data: {digits: {train: digits, test: digits}}\nmeasure: [{evaluator: knn, data: digits}]"
    )
    probed = mrp.probe(fresh[0], evaluators=["knn"])
    monkeypatch.setattr(Tables, "get", None)
    judged = mrp.judge(fresh[0], "suite.yaml")
    assert judged is not None
    (cell,) = judged.page.cells.values()
    assert cell.measure is not None
    assert cell.measure.value == probed.results["trained"]["knn"]["accuracy"]
    assert cell.outcomes is not None


def test_repeating_keeps_the_earlier_result(fresh: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("suite.yaml").write_text(
        "data: {digits: {train: digits, test: digits}}\nmeasure: [{evaluator: knn, data: digits}]"
    )
    mrp.judge(fresh[0], "suite.yaml")
    path = fresh[0] / "probe.json"
    path.write_text(path.read_text().replace('"k": 200', '"k": 201'))  # as if it had been measured otherwise
    mrp.judge(fresh[0], "suite.yaml", again=True)
    assert '"k": 200' in path.read_text()
    (earlier,) = (fresh[0] / results.EARLIER).read_text().splitlines()
    assert json.loads(earlier)["result"]["neighbours"][-1]["k"] == 201
    (outcome,) = (fresh[0] / results.OUTCOMES).glob("right-*")
    (record,) = results.read(fresh[0])
    for damaged in (b"", outcome.read_bytes()[:-1] + b"?"):
        outcome.write_bytes(damaged)
        assert results.read_outcomes(fresh[0], record) is None
    mrp.judge(fresh[0], "suite.yaml")  # damaged outcomes are measured again
    assert results.read_outcomes(fresh[0], record) is not None


def copied(runs: list[Path], folder: Path) -> list[Path]:
    """Copies of the runs without anything measured."""
    for run in runs:
        leave = shutil.ignore_patterns("features", "probe*", "outcomes")
        shutil.copytree(run, folder / run.name, ignore=leave)
    return [folder / run.name for run in runs]


def page(runs: list[Path], images: Path, suite: str = "suite.yaml") -> str:
    judged = mrp.judge(runs, suite, images=images)
    assert judged is not None
    return json.dumps(judged.page.plain())


class Fuse:
    """Raises before or after one of the calls of some functions, at random."""

    def __init__(self, patch: pytest.MonkeyPatch, seed: int) -> None:
        self.dice, self.left, self.blown = random.Random(seed), 0, 0
        for owner, name in (
            (Writer, "put"), (Writer, "finish"), (heads.Heads, "step"), (sweep, "fit"), (Tables, "get"),
            (results, "with_outcomes"), (results, "write_atomically"), (results, "replacing"), (results, "add"),
            (judging, "make"), (judging, "load"),
        ):  # fmt: skip
            patch.setattr(owner, name, self.wrapped(getattr(owner, name)))

    def wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*words: Any, **named: Any) -> Any:
            self.left -= 1
            before = self.dice.random() < 0.5
            if self.left == 0 and before:
                raise Interrupted
            result = function(*words, **named)
            if self.left == 0 and not before:
                raise Interrupted
            return result

        return call


def test_an_untrained_backbone_is_judged_once(fresh: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of several methods begin with the same backbone, whatever else they hold."""
    Path("suite.yaml").write_text(
        "data: {digits: {train: digits, test: digits}}\nmeasure: [{evaluator: knn, data: digits}]"
    )
    copy = shutil.copytree(fresh[0], fresh[0].parent / "copy")
    build, built = judging.build_step, []

    def with_another_decoder(run: Any) -> Any:
        built.append(build(run))
        built[-1].objective.decoder.norm.weight.data += len(built)
        return built[-1]

    monkeypatch.setattr(judging, "build_step", with_another_decoder)
    judged = mrp.judge([fresh[0], copy], "suite.yaml", untrained=True)
    assert judged is not None
    assert [row.name for row in judged.page.rows] == ["first", "untrained, as first", "copy"]
    assert len(built) == 2


@pytest.mark.slow
def test_twenty_interruptions_end_with_the_same_table(fresh: list[Path], images: Path, tmp_path: Path) -> None:
    torn = copied(fresh, tmp_path / "torn")
    expected = page(fresh, images)
    interruptions = 0
    with pytest.MonkeyPatch.context() as patch:
        fuse = Fuse(patch, seed=0)
        while interruptions < 20:
            fuse.left = fuse.dice.randrange(1, 40)
            try:
                page(torn, images)
            except Interrupted:
                interruptions += 1
            else:  # all is there before the twentieth: as if some had not been measured
                path = fuse.dice.choice(torn) / "probe.json"
                content = json.loads(path.read_text())
                content["records"] = [record for record in content["records"] if fuse.dice.random() < 0.5]
                path.write_text(json.dumps(content))
                shutil.rmtree(path.parent / "features")
        fuse.left = 0
    assert page(torn, images) == expected
    assert not list(tmp_path.rglob(".*.unfinished"))


@pytest.mark.slow
def test_a_killed_judge_goes_on(fresh: list[Path], images: Path, tmp_path: Path) -> None:
    torn = copied(fresh, tmp_path / "torn")
    Path("light.yaml").write_text(SUITE.replace("  - {evaluator: linear, data: [digits, folders]}\n", ""))
    torn, fresh = torn[:1], fresh[:1]
    expected = page(fresh, images, "light.yaml")
    command = [sys.executable, "-m", "mrp", "judge", *map(str, torn), "--suite", "light.yaml", f"images={images}"]
    for event in ("first/features/.unfinished-*", "first/probe.json"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not any((tmp_path / "torn").glob(event)):
            time.sleep(0.005)
        process.kill()  # or it was complete before: then there is nothing left to interrupt
        process.wait()
    assert page(torn, images, "light.yaml") == expected
