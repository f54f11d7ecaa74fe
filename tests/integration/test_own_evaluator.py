"""An evaluator of a user's own is one file: it runs inside training on its schedule, and after it by `mrp probe`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrp import api
from mrp.cli import main
from mrp.config import ConfigError, dump
from mrp.evaluate import results
from mrp.evaluators import read_options
from mrp.run import load
from tests.forked import launch
from tests.trained import NARROW

EVALUATOR = '''
"""The share of test images whose features lie within a radius of their mean."""
from pydantic import Field

from mrp.evaluate import contract
from mrp.evaluate.config import Section
from mrp.evaluate.readout import Readout
from mrp.evaluate.sealed import NothingToChoose


class Config(Section):
    radius: float = Field(1.0, gt=0)


class Evaluator(contract.Evaluator):
    def __init__(self, config, setting):
        self.config, self.setting = config, setting

    def measure(self, model, step, pause):
        readout = Readout.own(model)
        table = self.setting.test_features(model, readout, pause).open(NothingToChoose("nothing is trained"))
        if table is None:
            return contract.Result()
        rows = table.rows(readout.blocks, slice(None))
        near = (rows - rows.mean(0)).norm(dim=1) < self.config.radius
        return contract.Result({"share": float(near.float().mean())}, {"images": len(rows), "share": float(near.sum())})
'''
SMALL = [*NARROW, "length=12 steps", "optim.warmup=2 steps", "backbone.depth=2", "track.every=5", "average.decay=0.5"]


def lines(folder: Path) -> dict[int, dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in found}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "near.py"
    path.write_text(EVALUATOR)
    return path


def test_one_file_measures_in_training_and_after_it(own: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    main(["pretrain", *SMALL, f"evaluate={{{own}: {{every: 8 steps, radius: 2}}, knn: {{every: 6 steps}}}}",
          "--folder", str(folder)])  # fmt: skip
    measured = lines(folder)
    assert [step for step in measured if "near/share" in measured[step]] == [8, 12]
    assert [step for step in measured if "knn/accuracy" in measured[step]] == [6, 12]
    assert 0 <= measured[12]["near/average/share"] <= 1
    assert measured[12]["knn/average/accuracy"] > 0
    last = json.loads((folder / "evaluations" / "near.json").read_text())
    assert (last["step"], last["student"]["images"]) == (12, 360)
    assert not list((folder / "features").iterdir())  # tables of weights that are not kept are not kept either

    words = ["--evaluator", str(own), "--evaluator", "knn", "--weights", "student"]
    main(["probe", str(folder), *words, "near.radius=2"])
    after = {record.evaluator: record for record in results.read(folder)}
    assert after["near"].options == {"radius": 2}
    assert after["near"].result["share"] / 360 == pytest.approx(measured[12]["near/share"], abs=1e-6)
    assert after["knn"].result["accuracy"] == pytest.approx(measured[12]["knn/accuracy"], abs=1e-6)
    main(["probe", str(folder), *words[:2], "near.radius=0.01"])
    assert len([record for record in results.read(folder) if record.evaluator == "near"]) == 2
    assert [Path(name).name for name in api.read(folder).evaluate] == [own.name, "knn"]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("{knn: {}}", "evaluate: knn: every is missing; say how often, for example {every: 10 epochs}"),
        ("{knn: {every: 2}}", "evaluate: knn: every: 2 is not a duration"),
        ("{knn: {every: 2 steps, k: 3}}", "evaluate: knn: k: unknown key"),
        ("{kn: {every: 2 steps}}", "evaluate: unknown evaluator 'kn'; did you mean 'knn'?"),
        ("{./none.py: {every: 2 steps}}", "none.py' does not exist"),
        ("{knn: often}", "evaluate: knn: a section (key: value) is needed"),
        ("{validation: {every: 2 steps}}", "evaluate: validation: has a section of its own, 'validation:'"),
        ("knn", "evaluate: a mapping is needed, such as {knn: {every: 10 epochs}}"),
    ],
)
def test_a_wrong_section_is_one_line(value: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load("demo", [f"evaluate={value}"])
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "measured"),
    [
        (["evaluate={}"], []),
        (["evaluate=null"], []),
        (["evaluate.knn=null"], ["linear"]),
        (["evaluate.knn.every=null"], ["linear"]),
        (["evaluate.knn=null", "evaluate.linear=null"], []),
        (["evaluate=null", "evaluate.knn.every=2 epochs"], ["knn"]),
        (["validation=null", "diagnose=null"], ["linear", "knn"]),
    ],
)
def test_what_a_recipe_measures_can_be_switched_off(words: list[str], measured: list[str], tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: demo\nevaluate: {linear: {every: 1 epoch, layers: 1}, knn: {every: 1 epoch}}\n")
    run = load(recipe, words)
    assert list(run.evaluations) == measured
    (tmp_path / "resolved.yaml").write_text(dump(run.resolved()))
    assert load(tmp_path / "resolved.yaml") == run


def test_an_evaluator_without_options_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: demo\nevaluate:\n  knn:\n")
    assert load(recipe).evaluate == {}
    assert "evaluate: knn: null, so not measured" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("knn.py",), ("features.py",), ("a/mine.py", "b/mine.py")])
def test_results_tell_evaluators_apart_by_name(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(EVALUATOR)
    with pytest.raises(ConfigError, match=r"another evaluator is called '(knn|features|mine)' too; rename the file"):
        read_options({str(tmp_path / name): {"every": "2 steps"} for name in names})


def test_an_empty_section_is_left_out_of_the_resolved_configuration(own: Path) -> None:
    assert "evaluate" not in load("demo").resolved()
    run = load("demo", [f"evaluate={{{own}: {{every: 8 steps, radius: 2}}}}"])
    assert run.resolved()["evaluate"] == {str(own): {"every": "8 steps", "radius": 2.0}}
    assert run.identity("data") == load("demo").identity("data")


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "full"])
def test_two_processes_measure_what_one_measures(shard: str, tmp_path: Path) -> None:
    """After one step at a learning rate of zero both have the weights that they started with, whole or in parts."""
    evaluate = "evaluate={knn: {every: 1 steps}, few_shot: {every: 1 steps}}"
    words = [*SMALL, "length=1 steps", "optim.warmup=1 steps", evaluate]
    main(["pretrain", *words, "--folder", str(tmp_path / "one")])
    two = ["pretrain", *words, f"machine.shard={shard}", "--folder", str(tmp_path / "two")]
    assert launch(2, two) == 0
    one, both = lines(tmp_path / "one")[1], lines(tmp_path / "two")[1]
    measured = [n for n in one if n.startswith(("knn/", "few_shot/")) and not n.endswith("/seconds")]
    assert len(measured) == 2 * (5 + 3)
    for name in measured:
        assert both[name] == pytest.approx(one[name], abs=2 / 360), name
