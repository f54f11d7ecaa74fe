"""What a configuration comes to: steps, learning rate, micro-batch, identity."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from mrp.build import build_step, measure_cost
from mrp.config import ConfigError
from mrp.plan import inseparable, plan_order, plan_run
from mrp.run import Machine, Run, find_recipe, load, recipes

GIB = 2**30


def demo(*overrides: str) -> Run:
    return load("demo", overrides)


def test_steps_warm_up_and_checkpoints_follow_from_the_data() -> None:
    plan = plan_run(
        demo("length=4 epochs", "optim.warmup=1 epoch", "checkpoint.every=640 samples", "batch=64"), 22, 1, GIB
    )
    assert (plan.steps, plan.warmup, plan.checkpoint_every) == (88, 22, 10)


def test_the_micro_batch_is_the_largest_divisor_that_fits() -> None:
    run = demo("batch=96")
    whole = plan_run(run, 1, 1, 64 * GIB)
    assert (whole.micro_batch, whole.accumulation) == (96, 1)
    cost = measure_cost(run)
    tight = plan_run(run, 1, 2, int(cost.memory(20) / 0.85))
    assert (tight.micro_batch, tight.accumulation) == (16, 3)  # divisors of 48: 24 does not fit
    assert plan_run(run, 1, 1, 1).micro_batch == 1


def test_a_micro_batch_that_is_asked_for_is_taken_or_refused() -> None:
    run = demo("batch=96", "machine.micro_batch=12")
    assert plan_run(run, 1, 2, 1).accumulation == 4
    with pytest.raises(ConfigError, match=r"machine.micro_batch: 12 does not divide the 32 images"):
        plan_run(run, 1, 3, 1)


@pytest.mark.parametrize(
    ("overrides", "processes", "message"),
    [
        (["batch=100"], 3, r"batch: 100 is not a multiple of the 3 processes; the nearest that is: 99"),
        (["length=1 epoch", "optim.warmup=2 epochs"], 1, r"optim.warmup: 2 epochs \(22 steps\) is longer than the run"),
    ],
)
def test_plans_that_cannot_be(overrides: list[str], processes: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_run(demo(*overrides), 11, processes, GIB)


@pytest.mark.parametrize("unit", ["steps", "epochs", "samples"])
def test_a_bare_unit_is_answered_with_a_length(unit: str) -> None:
    with pytest.raises(ConfigError, match=rf"{unit}: unknown key; .* length='10 {unit}'$"):
        load("demo", [f"{unit}=10"])


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("mask_ratio=0.5", "objective.mask_ratio"),  # no section was named: the nearest key of all
        ("data.samples=10", "lanes"),  # and not init.resample, which is nearer, in another section
        ("data.mask_ratio=0.5", "objective.mask_ratio"),  # the very key of another section
        ("objective.mask_ration=0.5", "mask_ratio"),
    ],
)
def test_a_hint_stays_in_the_section_that_was_named(word: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown key; did you mean '{hint}'\?$"):
        load("demo", [word])


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch: 2000 .* the data holds 1437; give 1437 or fewer"):
        plan_order(demo("batch=2000"), 1437)


def test_the_identity_is_what_changes_results_and_nothing_else() -> None:
    base = demo().identity("abc")
    for same in (
        "machine.workers=3",
        "machine.micro_batch=8",
        "track=tensorboard",
        "checkpoint.keep=9",
        "data.test=null",
    ):
        assert demo(same).identity("abc") == base, same
    for other in (
        "seed=1",
        "batch=64",
        "precision=bf16",
        "objective.mask_ratio=0.5",
        "data.tail=continuous",
        "optim.lr=1",
    ):
        assert demo(other).identity("abc") != base, other
    assert demo().identity("abd") != base
    assert demo("data.train=elsewhere").identity("abc") == base  # the data's content counts, not its place


def test_the_seed_alone_decides_the_initial_weights() -> None:
    first, second, other = build_step(demo()), build_step(demo()), build_step(demo("seed=1"))
    weight = "objective.backbone.blocks.0.attn.qkv.weight"
    assert (first.state_dict()[weight] == second.state_dict()[weight]).all()
    assert (first.state_dict()[weight] != other.state_dict()[weight]).any()


def test_an_interval_of_zero_is_never() -> None:
    run = demo("diagnose.every=0 steps", "evaluate={knn: {every: 0 epochs}}", "checkpoint.milestone=0 steps")
    assert run.evaluations == {}
    assert plan_run(run, 22, 1, GIB).milestone_every == 0
    with pytest.raises(ConfigError, match=r"checkpoint\.every: 0 steps is never; give 1 step or more"):
        plan_run(demo("checkpoint.every=0 steps"), 22, 1, GIB)


@pytest.mark.parametrize("path", sorted(recipes().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_sound_and_says_what_it_is(path: Path) -> None:
    head = path.read_text().splitlines()
    assert head[0].startswith("# ")
    assert any(line.startswith("#   mrp ") for line in head), "its command"
    run = load(path)
    if run.coupled_batch is None:
        run = load(path, ["machine.micro_batch=2"])
    assert yaml.safe_load(yaml.safe_dump(run.resolved())) == run.resolved()
    with torch.device("meta"):
        build_step(run)
    plan = plan_run(run, 1000, 8, 80 * GIB)
    assert plan.micro_batch * plan.accumulation * 8 == run.batch


def test_a_recipe_is_found_by_name_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "demo.yaml", "configs/demo.yaml"):
        assert find_recipe(name).is_file()
    (tmp_path / "demo").write_text("seed: 3")  # a user's own file comes first
    assert find_recipe("demo") == Path("demo")


def test_to_be_given_up_a_process_has_to_be_watched() -> None:
    with pytest.raises(ConfigError, match="machine: give_up needs the watchdog, which is off"):
        demo("machine={watchdog: null, give_up: 60}")


@pytest.mark.parametrize(
    ("cores", "local", "processes", "workers"),
    [(8, None, 1, 7), (8, None, 2, 3), (8, "4", 32, 1), (1, None, 1, 1), (128, None, 1, 16), (128, "8", 64, 15)],
)
def test_workers_are_the_share_of_the_cores_less_one(
    cores: int, local: str | None, processes: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    monkeypatch.setattr("mrp.processes.container.usable_cores", lambda: cores)
    assert Machine(workers="auto").workers_among(processes) == workers
    assert Machine(workers=5).workers_among(processes) == 5


def test_what_has_to_stay_together_is_counted_in_views_and_in_pairs() -> None:
    assert inseparable(demo()) == 1
    assert inseparable(demo("data.views=2")) == 2
    assert inseparable(load("finetune_tiny_digits", ["backbone.depth=1", "mix={mixup: 0.8}", "data.views=2"])) == 4


def test_another_optimizer_by_its_name_alone_keeps_what_both_have(capsys: pytest.CaptureFixture[str]) -> None:
    usual, muon = demo().optim, demo("optim.name=muon", "optim.weight_decay=0.1").optim
    assert muon.name == "muon"
    assert (muon.lr, muon.warmup, muon.weight_decay) == (usual.lr, usual.warmup, 0.1)
    assert muon.model_dump()["betas"] == usual.model_dump()["betas"]
    assert demo("optim.lr=3e-4", "optim.name=muon").optim.lr == 3e-4
    assert capsys.readouterr().err == ""
    lars = demo("optim.name=lars", "optim.lr=0.1").optim
    assert (lars.lr, lars.warmup) == (0.1, usual.warmup)
    assert capsys.readouterr().err.splitlines() == ["mrp: optim: lars does not take over the recipe's betas"]
    with pytest.raises(ConfigError, match=r"optim.lr: this key is required"):  # a whole section stands for itself
        demo("optim={name: muon}")


@pytest.mark.parametrize("word", ["init=~/runs/mae", "init={from: ~/runs/mae, weights: student}"])
def test_weights_may_lie_in_the_home_folder(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/mine")
    with pytest.raises(ConfigError, match="init: /home/mine/runs/mae: there is no such file or folder"):
        load("demo", [word])
