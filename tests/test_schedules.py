"""Schedules: closed forms, the parts of a run that they are given in, and runs whose numbers follow them."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mrp
from mrp.build import build_optimizer, build_step, measure_cost
from mrp.checkpoint import checkpoints
from mrp.config import ConfigError
from mrp.methodkit import Scheduled, ScheduledCount
from mrp.methodkit.scheduled import LEVELS
from mrp.optim.groups import set_weight_decay
from mrp.plan import plan_run
from mrp.run import load
from mrp.schedules import Length, Schedule, Span
from tests.forked import launch
from tests.objectives.test_every_objective import make_batch, make_run

HUNDRED = Length(100, 10.0, 64)


def at(section: dict[str, Any], *steps: int, length: Length = HUNDRED) -> list[float]:
    return [Schedule(**section).at(step, length) for step in steps]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"kind": "constant", "value": 2}, {0: 2, 50: 2, 99: 2}),
        ({"kind": "linear", "value": 1, "end": 3}, {0: 1, 25: 1.5, 50: 2, 99: 2.98, 100: 3}),
        ({"kind": "linear", "value": 1, "end": 3, "until": "50 %"}, {0: 1, 25: 2, 50: 3, 99: 3}),
        ({"kind": "cosine", "value": 0.04, "end": 0.4}, {
            0: 0.04, 30: 0.4 - 0.36 * (1 + math.cos(0.3 * math.pi)) / 2, 50: 0.22, 100: 0.4,
        }),
        ({"kind": "cosine", "value": 1, "warmup": "20 steps", "start": 0.5}, {
            0: 0.5, 10: 0.75, 20: 1, 60: 0.5, 99: (1 + math.cos(math.pi * 79 / 80)) / 2,
        }),
        ({"kind": "cosine", "value": 1, "warmup": "20 steps", "whole": True}, {
            10: 0.5, 20: (1 + math.cos(0.2 * math.pi)) / 2, 50: 0.5,
        }),
        ({"kind": "wsd", "value": 1, "end": 0.1, "warmup": "1 epoch", "decay": "20 %"}, {
            0: 0, 5: 0.5, 10: 1, 80: 1, 90: 0.55, 99: 0.145,
        }),
        ({"kind": "steps", "value": 8, "drops": ["30 %", "6 epochs"], "factor": 0.5}, {29: 8, 30: 4, 59: 4, 60: 2}),
    ],
)  # fmt: skip
def test_values_are_those_of_the_closed_form(section: dict[str, Any], expected: dict[int, float]) -> None:
    assert at(section, *expected) == pytest.approx(list(expected.values()))


def test_shares_follow_another_length_and_durations_do_not() -> None:
    twice = Length(200, 10.0, 64)
    share = {"kind": "wsd", "value": 1, "warmup": "10 %", "decay": "20 %"}
    assert at(share, 5, 50, 95) == pytest.approx(at(share, 10, 100, 190, length=twice))
    steps = {"kind": "linear", "value": 1, "end": 2, "until": "50 steps"}
    assert at(steps, 25, length=twice) == at(steps, 25) == [1.5]


@pytest.mark.parametrize("text", ["10 %", "2.5 %", "40 epochs", "500 steps"])
def test_a_part_of_a_run_is_written_as_it_is_read(text: str) -> None:
    assert str(Span.parse(text)) == text


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("optim.lr={kind: wave, value: 1}", "optim.lr.kind: 'wave' was given; allowed: 'constant', 'linear', 'cosine'"),
        ("optim.lr={kind: linear}", "optim.lr.value: this key is required and missing"),
        ("optim.lr={kind: linear, value: 1, warmup: 0.1}", "optim.lr.warmup: 0.1 is no part of a run; write for"),
        ("optim.lr={kind: linear, value: 1, valeu: 2}", "optim.lr.valeu: unknown key; did you mean 'value'?"),
        ("optim.lr={kind: constant, value: 1, end: 2}", "optim.lr: end is for linear and cosine and wsd, and the kind"),
        ("optim.lr={kind: steps, value: 1}", "optim.lr: drops are missing, at which the number changes"),
        ("optim.lr={kind: linear, value: 1, start: 1}", "optim.lr: start is where a warm-up begins, and warmup is not"),
        ("optim.lr={kind: linear, value: -1}", "optim.lr: it reaches -1; allowed: 0 or more"),
        ("optim.lr={kind: cosine, value: 0}", "optim.lr: it is 0 throughout; allowed: a value greater than 0"),
        (
            "optim.lr={kind: linear, value: 1}",
            "optim: warmup is for a learning rate that is one number; set optim.warmup=",
        ),
        (
            "objective.mask_ratio={kind: linear, value: 0.5, end: 1.5}",
            "objective.mask_ratio: it reaches 1.5; allowed: 0",
        ),
        ("objective.mask_ratio={kind: linear, value: 0.5}", "objective.mask_ratio: end is missing, which it reaches"),
        ("optim.lr={kind: linear, value: 1, until: 150 %}", "optim.lr.until: '150 %' is no part of a run; write for"),
    ],
)
def test_what_makes_no_sense_is_one_line(word: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load("demo", [word])
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "line"),
    [
        (
            "{kind: linear, value: 1, until: 10 steps, warmup: 20 steps}",
            "optim.weight_decay.until: 10 steps and a warm-up",
        ),
        (
            "{kind: wsd, value: 1, decay: 60 %, warmup: 50 %}",
            "optim.weight_decay.decay: 60 % and a warm-up of 50 % do not",
        ),
        (
            "{kind: constant, value: 1, warmup: 99 epochs}",
            "optim.weight_decay.warmup: 99 epochs .* is longer than the run",
        ),
    ],
)
def test_what_does_not_fit_into_the_run_is_one_line(section: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        plan_run(load("demo", [f"optim.weight_decay={section}", "length=100 steps"]), 10, 1, 2**30)


def test_a_teachers_own_ramp_and_a_schedule_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"objective\.teacher: last and steps are for a decay that is one number"):
        load("data2vec_tiny_digits", ["objective.teacher={decay: {kind: linear, value: 0.9, end: 1}, last: 0.9}"])


def test_a_plain_number_stays_one() -> None:
    weight = Scheduled(0.3, "weight")
    weight.set(5, HUNDRED)
    assert weight() == 0.3
    assert not weight.state_dict()
    assert isinstance(load("demo").optim.lr, float)


def test_a_schedule_is_not_saved_with_the_weights() -> None:
    weight = Scheduled(Schedule(kind="linear", value=1, end=2), "weight")
    weight.set(50, HUNDRED)
    assert float(weight()) == weight.now == 1.5
    assert not weight.state_dict()


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"kind": "linear", "value": 0.5, "end": 0.9}, [98, 87, 75, 64, 53, 42, 30, 19]),
        ({"kind": "steps", "value": 0.5, "drops": ["50 %"], "factor": 1.5}, [98, 49]),
        ({"kind": "linear", "value": 0.5, "end": 0.52}, [98, 97, 96, 95, 94]),
    ],
)
def test_a_number_of_patches_takes_few_values(section: dict[str, Any], expected: list[int]) -> None:
    visible = ScheduledCount(Schedule(**section), "mask_ratio", lambda ratio: int(196 * (1 - ratio)))
    assert visible.count == max(expected)
    found = []
    for step in range(100):
        visible.set(step, HUNDRED)
        found.append(visible.count)
    assert list(dict.fromkeys(found)) == expected
    assert len(expected) <= LEVELS


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_a_compiled_step_serves_every_value_and_each_number_of_patches_has_one_graph(name: str) -> None:
    ratio = {"kind": "steps", "value": 0.5, "drops": ["50 %"], "factor": 1.5}
    uniformity = {"weight": {"kind": "linear", "value": 0, "end": 1}, "feature": "mean"}
    run = make_run(name)
    options = run.objective.model_dump(mode="json") | {"mask_ratio": ratio, "uniformity": uniformity}
    run = make_run(name, objective=options)
    step = build_step(run)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(step, backend="eager", fullgraph=True, dynamic=False)
    batch, length, penalties = make_batch(run), Length(6, 1.0, 8), []
    for number in range(6):
        step.before_step(number, length)
        output = compiled(batch)
        assert torch.allclose(output.loss, step(batch).loss)
        parts = output.metrics
        assert torch.allclose(output.loss, parts["reconstruction"] + number / 6 * parts["uniformity"], atol=1e-6)
        penalties.append(float(parts["reconstruction"]))
    assert penalties[0] == penalties[2] != penalties[3] == penalties[5]  # with other masks from the third step on
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_the_cost_is_that_of_the_most_visible_patches() -> None:
    changing = {"kind": "linear", "value": 0.5, "end": 0.75}
    costs = [measure_cost(make_run("mae", objective={"name": "mae", "mask_ratio": r})) for r in (changing, 0.5, 0.75)]
    assert costs[0] == replace(costs[1], changes=True) != costs[2]


def test_weight_decay_changes_where_it_applies() -> None:
    run = make_run("mae", optim={"lr": 1e-3, "weight_decay": {"kind": "cosine", "value": 0, "end": 0.4}})
    optimizer = build_optimizer(run.optim, build_step(run))
    set_weight_decay(optimizer, run.optim.weight_decay_at(50, HUNDRED) or 0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx(0.2), 0]


def numbers(folder: Path) -> dict[int, dict[str, float]]:
    return {line["step"]: line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())}


SCHEDULED = [
    "data2vec_tiny_digits", "length=8 steps", "batch=32", "backbone.depth=2", "backbone.width=16", "backbone.heads=2",
    "objective.layers=1", "diagnose.every=null", "machine.workers=0", "track.every=1", "checkpoint.every=4 steps",
    "optim.warmup=0 steps", "optim.min_lr=0", "checkpoint.keep=3",
    "optim.lr={kind: wsd, value: 0.001, start: 0.0005, warmup: 25 %, decay: 25 %}",
    "optim.weight_decay={kind: linear, value: 0.04, end: 0.4}",
    "objective.teacher={decay: {kind: linear, value: 0.5, end: 1.0}}",
    "objective.uniformity={weight: {kind: cosine, value: 0.1, end: 0}, feature: mean}",
]  # fmt: skip


def test_a_run_logs_its_schedules_and_a_resumed_one_goes_on_exactly(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    mrp.pretrain(*SCHEDULED, folder=whole)
    logged = numbers(whole)
    assert [logged[step]["lr"] for step in range(1, 9)] == pytest.approx([0.0005, 0.00075, *[0.001] * 5, 0.0005])
    assert [logged[step]["optim/weight_decay"] for step in (1, 5)] == pytest.approx([0.04, 0.22])
    assert [logged[step]["objective/teacher.decay"] for step in (1, 5)] == pytest.approx([0.5, 0.75])
    assert [logged[step]["objective/uniformity.weight"] for step in (1, 5)] == pytest.approx([0.1, 0.05])

    mrp.pretrain(*SCHEDULED, folder=resumed)
    shutil.rmtree(checkpoints.numbered(resumed, 8).folder)
    mrp.pretrain(*SCHEDULED, folder=resumed)
    ours, theirs = (checkpoints.newest(folder) for folder in (whole, resumed))
    assert ours is not None
    assert theirs is not None
    assert ours.step == theirs.step == 8
    assert all(torch.equal(tensor, theirs.weights()[name]) for name, tensor in ours.weights().items())

    # A loaded model has the numbers of its last step.
    of_step_4 = {each.option: each.now for each in mrp.load(whole, step=4).module.scheduled()}
    assert of_step_4 == pytest.approx({name: logged[4][f"objective/{name}"] for name in of_step_4})


@pytest.mark.slow
def test_two_processes_follow_the_same_schedules(tmp_path: Path) -> None:
    mrp.pretrain(*SCHEDULED, folder=tmp_path / "one")
    assert launch(2, ["pretrain", *SCHEDULED, "--folder", str(tmp_path / "two")]) == 0
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    for step, line in one.items():
        for name in ("lr", "optim/weight_decay", "objective/teacher.decay", "objective/uniformity.weight"):
            assert two[step][name] == line[name]
        assert two[step]["loss"] == pytest.approx(line["loss"], rel=1e-4)


def test_capis_recipe_goes_through_the_first_four_fifths_of_half_a_cosine() -> None:
    run, length = load("capi_vit_large_in22k"), Length(500_000, 800.0, 16384)
    decay: Any = run.objective.teacher.decay  # type: ignore[attr-defined]
    run.optim.lr.check("optim.lr", length)  # type: ignore[union-attr]
    decay.check("teacher.decay", length)
    for step in (50_000, 200_000, 500_000):
        left = 0.5 * (1 + math.cos(math.pi * 0.8 * (step - 50_000) / 450_000))
        assert run.optim.lr_at(step, length) == pytest.approx(1e-3 * left)
        assert decay.at(step, length) == pytest.approx(1 - 1e-3 * left)
    assert run.optim.lr_at(25_000, length) == pytest.approx(5e-4)
    assert decay.at(25_000, length) == pytest.approx(0.9995)


@pytest.mark.parametrize("scale", [1.0, 0.65**12])
def test_every_layer_of_data2vec_2s_fine_tuning_begins_and_ends_at_the_same_rate(scale: float) -> None:
    optim, length = load("finetune_data2vec2_vit_base_in1k").optim, Length(250_200, 2502.0, 512)
    peak, floor = 1e-3 * scale, 1e-6
    for step in (0, 8_000):
        assert optim.lr_at(step, length, scale=scale) == pytest.approx(floor + (peak - floor) * step / 16_000)
    for step in (16_000, 100_000, 250_200):
        left = 0.5 * (1 + math.cos(math.pi * (step - 16_000) / 234_200))
        assert optim.lr_at(step, length, scale=scale) == pytest.approx(floor + (peak - floor) * left)
